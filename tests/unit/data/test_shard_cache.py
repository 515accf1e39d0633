import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.shards.cache import FETCH_TRIES, CacheFullError, Pin, ShardCache, Wanted
from schemas.errors import IntegrityError


def content(number: int, size: int = 100) -> bytes:
    return bytes([number]) * size


def wanted(number: int, fetch: Callable[[Path], None] | None = None) -> Wanted:
    data = content(number)

    def copy(target: Path) -> None:
        target.write_bytes(data)

    return Wanted(hashlib.sha256(data).hexdigest(), len(data), f"file {number}", fetch or copy)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_file_is_fetched_once_and_kept_under_its_digest(tmp_path: Path) -> None:
    fetches = []

    def fetch(target: Path) -> None:
        fetches.append(target)
        target.write_bytes(content(1))

    cache = ShardCache(tmp_path, limit_bytes=1000)
    for _ in range(3):
        assert cache.pin(wanted(1, fetch)).path.read_bytes() == content(1)
    assert len(fetches) == 1
    assert names(tmp_path) == {wanted(1).sha256}
    assert cache.used_bytes() == 100


def test_the_least_recently_opened_file_leaves_first_and_the_limit_holds(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, limit_bytes=300)
    for number in (1, 2, 3, 1, 4):
        cache.pin(wanted(number)).release()
        time.sleep(0.01)  # the order of use is that of the files' times
        assert cache.used_bytes() <= 300
    assert names(tmp_path) == {wanted(number).sha256 for number in (1, 3, 4)}


def test_what_is_pinned_stays_and_a_full_cache_says_so(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, limit_bytes=250)
    first, second = cache.pin(wanted(1)), cache.pin(wanted(2))
    with pytest.raises(CacheFullError, match=r"file 3 has 100 bytes; .* 250, and 200 of them"):
        cache.pin(wanted(3))
    first.release()
    third = cache.pin(wanted(3))
    assert names(tmp_path) == {wanted(2).sha256, wanted(3).sha256}
    assert second.path.read_bytes() == content(2)
    assert third.path.read_bytes() == content(3)


def test_a_file_larger_than_the_cache_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    def fetch(target: Path) -> None:
        raise AssertionError

    with pytest.raises(CacheFullError):
        ShardCache(tmp_path, limit_bytes=99).pin(wanted(1, fetch))


def test_a_file_damaged_on_its_way_is_fetched_again(tmp_path: Path) -> None:
    arrivals = [content(9), content(1)[:-1], content(1)]
    cache = ShardCache(tmp_path, limit_bytes=1000)
    pin = cache.pin(wanted(1, lambda target: (target.write_bytes(arrivals.pop(0)), None)[1]))
    assert pin.path.read_bytes() == content(1)
    assert not arrivals


def test_a_file_damaged_at_its_origin_is_an_integrity_error(tmp_path: Path) -> None:
    fetches = []

    def fetch(target: Path) -> None:
        fetches.append(1)
        target.write_bytes(content(9))

    cache = ShardCache(tmp_path, limit_bytes=1000)
    with pytest.raises(IntegrityError, match="file 1 is not what was written"):
        cache.pin(wanted(1, fetch))
    assert len(fetches) == FETCH_TRIES
    assert names(tmp_path) == set()
    assert cache.used_bytes() == 0


def test_an_empty_file_left_by_a_power_failure_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / wanted(1).sha256).touch()
    cache = ShardCache(tmp_path, limit_bytes=1000)
    assert cache.pin(wanted(1)).path.read_bytes() == content(1)


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fetch(target: Path) -> None:
        target.write_bytes(b"half")
        raise ConnectionError

    cache = ShardCache(tmp_path, limit_bytes=1000)
    with pytest.raises(ConnectionError):
        cache.pin(wanted(1, fetch))
    assert cache.used_bytes() == 0


def test_many_threads_share_one_fetch(tmp_path: Path) -> None:
    fetches = []

    def fetch(target: Path) -> None:
        fetches.append(1)
        time.sleep(0.05)
        target.write_bytes(content(1))

    cache = ShardCache(tmp_path, limit_bytes=1000)
    pins: list[Pin] = []
    threads = [
        threading.Thread(target=lambda: pins.append(cache.pin(wanted(1, fetch)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetches) == 1
    assert {pin.path.read_bytes() for pin in pins} == {content(1)}


def hold_for_ever(folder: Path, ready: Path) -> None:
    pin = ShardCache(folder, limit_bytes=250).pin(wanted(1))
    ready.write_text(str(pin.path))
    time.sleep(600)


def fetch_for_ever(folder: Path, ready: Path) -> None:
    def fetch(target: Path) -> None:
        target.write_bytes(b"half")
        ready.write_text("fetching")
        time.sleep(600)

    ShardCache(folder, limit_bytes=250).pin(wanted(1, fetch))


def other_process(target: Callable[[Path, Path], None], folder: Path, ready: Path) -> int:
    process = multiprocessing.get_context("spawn").Process(target=target, args=(folder, ready))
    process.start()
    while not ready.exists():
        assert process.is_alive()
        time.sleep(0.02)
    assert process.pid is not None
    return process.pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_another_process_pins_until_it_dies(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    pid = other_process(hold_for_ever, folder, tmp_path / "ready")
    cache = ShardCache(folder, limit_bytes=250)
    cache.pin(wanted(2)).release()
    cache.pin(wanted(3)).release()
    assert wanted(1).sha256 in names(folder)
    kill(pid)
    own = [cache.pin(wanted(2)), cache.pin(wanted(3))]
    assert names(folder) == {wanted(2).sha256, wanted(3).sha256}
    assert len(own) == 2


@pytest.mark.parametrize("number", [1, 2])
def test_what_a_killed_process_fetched_in_part_goes(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "cache"
    kill(other_process(fetch_for_ever, folder, tmp_path / "ready"))
    cache = ShardCache(folder, limit_bytes=150)
    assert cache.used_bytes() == 100
    assert cache.pin(wanted(number)).path.read_bytes() == content(number)
    assert cache.used_bytes() == 100

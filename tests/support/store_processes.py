"""Processes that race for one key, or die in the middle of a commit; started by their tests.

    python -m tests.support.store_processes race URI FOLDER
    python -m tests.support.store_processes faults URI FOLDER
    python -m tests.support.store_processes crash FOLDER
    python -m tests.support.store_processes hold FOLDER

Each forks from a small process of its own, never from the one that runs the tests.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from infra.storage import LocalStore, open_store
from infra.store_gc import GcPolicy, collect
from schemas.store import Garbage
from tests.support.artifacts import KIND, make_artifact, stage_record, write_files

CONTENDERS = 8
_CHANGES = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.truncate"}


def race(uri: str, local: Path) -> None:
    """In each round, all contenders commit one key at once; all must be told one winner."""
    for number in range(3 if uri.startswith("s3:") else 10):
        start_read, start_write = os.pipe()
        told_read, told_write = os.pipe()
        children = [
            _fork(partial(_contend, uri, local, number, index, start=start_read, told=told_write))
            for index in range(CONTENDERS)
        ]
        os.write(start_write, b"x" * CONTENDERS)
        statuses = [os.waitpid(child, 0)[1] for child in children]
        assert statuses == [0] * CONTENDERS, statuses
        told = os.read(told_read, 1 << 16).decode().split()
        assert len(told) == CONTENDERS
        assert len(set(told)) == 1, f"several winners: {told}"
        store = open_store(uri, local=local / "check")
        result = store.lookup(KIND, stage_record(number).key)
        assert result is not None
        assert result.attempt == told[0]
        assert store.verify(result) is None


def _contend(uri: str, local: Path, number: int, index: int, *, start: int, told: int) -> None:
    store = open_store(uri, local=local / str(index))
    record = stage_record(number)
    attempt = store.begin(KIND, record.key)
    write_files(attempt.path, f"made by {index}")
    os.read(start, 1)
    winner = store.commit(attempt, record, known_sha256={})
    os.write(told, f"{winner.attempt}\n".encode())


def faults(uri: str, local: Path) -> None:
    """Be killed at the first, the second, ... fault point of an attempt, a discard, a collection.

    After each kill the same is done again, and must come to what it comes to undisturbed.
    """
    points: list[str] = []
    for number in range(1000):
        told, told_write = os.pipe()
        child = _fork(partial(_live_and_be_killed, uri, local, number, told=told_write))
        os.close(told_write)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        at = os.read(told, 4096).decode()
        _check_after_kill(open_store(uri, local=local), number)
        if status == 0:
            sys.stdout.write("\n".join(points) + "\n")
            return
        assert status == -signal.SIGKILL, status
        points.append(at)
    raise AssertionError("the points have no end")


def _live_and_be_killed(uri: str, local: Path, point: int, *, told: int) -> None:
    left = point

    def before(change: str) -> None:
        nonlocal left
        if left == 0:
            os.write(told, change.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    store = open_store(uri, local=local, before=before)
    # A heartbeat outlives its writer by a minute: that it runs out is a test of its own.
    with nullcontext() if uri.startswith("s3:") else store.hold(KIND, stage_record(point).key):
        make_artifact(store, point)
    collected(store, trash_days=7)
    collected(store, trash_days=0)


def _check_after_kill(store: Any, number: int) -> None:
    """Nothing is visible, or a whole artifact; the same again works, and leaves nothing behind."""
    with store.hold(KIND, stage_record(number).key):  # nobody has to unlock anything
        again = make_artifact(store, number)
    assert store.verify(again) is None
    assert store.record(again) == stage_record(number)
    for _ in range(2):
        collected(store, trash_days=0)
    assert list(store.artifacts()) == []


def collected(store: Any, *, trash_days: float) -> list[Garbage]:
    """One collection that keeps nothing for its age."""
    policy = GcPolicy(keep_days=0, trash_days=trash_days, now=datetime.now(UTC))
    return list(collect(store, policy))


def crash(root: Path) -> None:
    """Die before the first, the second, ... change of the disk until a commit comes through."""
    for number in range(1000):
        status = os.waitpid(_fork(partial(_commit_and_die, root, number)), 0)[1]
        _check_after_crash(LocalStore(root), number)
        if status == 0:
            sys.stdout.write(f"{number}\n")
            return
        assert os.waitstatus_to_exitcode(status) == 137, status
    raise AssertionError("no commit came through")


def _commit_and_die(root: Path, changes: int) -> None:
    left = changes

    def before_change(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        is_read = event == "open" and not int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if event not in _CHANGES or is_read:
            return
        if left == 0:
            os._exit(137)
        left -= 1

    sys.addaudithook(before_change)
    make_artifact(LocalStore(root), changes)


def _check_after_crash(store: LocalStore, number: int) -> None:
    """Nothing is visible, or a whole artifact is; a later attempt works."""
    key = stage_record(number).key
    seen = store.lookup(KIND, key)
    if seen is not None:
        assert store.verify(seen) is None
        assert store.record(seen) == stage_record(number)
    again = make_artifact(store, number)
    assert seen is None or again == seen
    assert store.verify(again) is None


def hold(root: Path) -> None:
    """Hold a key until killed."""
    with LocalStore(root).hold(KIND, stage_record().key):
        sys.stdout.write("holding\n")
        sys.stdout.flush()
        time.sleep(600)


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    if sys.argv[1] in {"race", "faults"}:
        {"race": race, "faults": faults}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
    else:
        {"crash": crash, "hold": hold}[sys.argv[1]](Path(sys.argv[2]))

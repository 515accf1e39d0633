"""Files behind URIs of stores that have no pages of their own, on fsspec's store in memory."""

import pickle
from collections.abc import Iterator

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.remote_files import FsspecFiles
from schemas.errors import DataError

FILES: FsspecFiles = pickle.loads(pickle.dumps(FsspecFiles()))
NAMES = st.text(alphabet="ab-/.0", min_size=1, max_size=8).filter(
    lambda name: all(part not in ("", ".", "..") for part in name.split("/"))
)


@pytest.fixture(autouse=True)
def _empty_store() -> Iterator[None]:
    yield
    clear()


def clear() -> None:
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@given(st.sets(NAMES, min_size=1, max_size=12))
def test_a_walk_meets_every_file_once_by_path(names: set[str]) -> None:
    clear()
    files = {name for name in names if not any(other.startswith(f"{name}/") for other in names)}
    for name in files:
        fsspec.filesystem("memory").pipe_file(f"/root/{name}", b"123")
    found = list(FILES.walk("memory://root/"))
    assert [status.path for status in found] == sorted(files)
    assert {status.size for status in found} == {3}


def test_ranges_and_statuses_are_those_of_the_file() -> None:
    fsspec.filesystem("memory").pipe_file("/root/a b#c.bin", b"0123456789")
    uri = "memory://root/a b#c.bin"
    assert FILES.read(uri, start=2, size=3) == b"234"
    assert FILES.read(uri, start=8) == b"89"
    assert FILES.read(uri, start=3, size=0) == b""
    status = FILES.status(uri)
    assert status is not None
    assert (status.path, status.size) == ("a b#c.bin", 10)
    assert status.version
    assert FILES.status("memory://root") is None
    with FILES.open(uri) as stream:
        stream.seek(-2, 2)
        assert stream.read() == b"89"


def test_another_version_is_seen() -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/root/a", b"1")
    before = FILES.status("memory://root/a")
    store.pipe_file("/root/a", b"2")
    assert FILES.status("memory://root/a") != before


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(DataError, match="memory://root/x does not exist"):
        FILES.read("memory://root/x")
    with pytest.raises(DataError, match="does not exist"):
        list(FILES.walk("memory://root/x"))

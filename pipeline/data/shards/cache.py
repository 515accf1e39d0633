"""Files of remote shard sets on the local disk: a folder with a byte limit, shared by a node.

    FOLDER/<sha256>                            a whole file, named by its content
    FOLDER/.<sha256>.<bytes>.<random>.tmp/     a fetch under way; counts with its final size
    FOLDER/.locks/<two hex digits>             who fetches files whose names begin so
    FOLDER/.locks/room                         who makes room

Any number of processes and threads use one folder: each file is fetched once, and nobody evicts a
file that another has mapped. All locks are `flock`s, which die with their process, so there is
nothing to unlock after a crash; what a killed process fetched in part goes when room is made. A
file bears its name only after its sha256 was found right.

Costs. Finding a file is one open; making room lists the folder. The least recently opened files
leave first. Files that are mapped count and stay.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.staging import disk_guard, sha256_of
from schemas.errors import DataError, IntegrityError

FETCH_TRIES = 3
"""Times that a file is fetched before its origin counts as damaged."""
_ROOM = "room"


class CacheFullError(DataError):
    """All that is in the cache is in use, and the next file has no room beside it."""


class Pin:
    """A file of the cache that nobody evicts until `release`, or until this object is gone."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Hold the shared lock that `descriptor` has on the file."""
        self.path = path
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let the file go; whoever mapped it may read on, but it may be evicted."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        """Let the file go with the last reference."""
        self.release()


@dataclass(frozen=True)
class Wanted:
    """A file that somebody wants to read."""

    sha256: str
    """In hex; the file's name in the cache."""
    size_bytes: int
    origin: str
    """Where it comes from, for messages."""
    fetch: Callable[[Path], None]
    """Copies it to a new local file."""


class ShardCache:
    """A bounded folder of files by content; see the module."""

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        """Use `folder`, which is made as needed; a smaller limit than before evicts on next use."""
        self._folder = folder
        self._limit_bytes = limit_bytes

    def pin(self, wanted: Wanted) -> Pin:
        """The file, fetched if it is not here; it stays as long as the pin.

        Raises:
            IntegrityError: If what arrives is not what was written, each of several times.
            CacheFullError: If it has no room beside the files that are pinned.
            DiskFullError: If the disk is full before the limit is reached.
        """
        (self._folder / ".locks").mkdir(parents=True, exist_ok=True)
        found = self._find(wanted)
        if found is not None:
            return found
        with self._locked(wanted.sha256[:2]):
            # Another may have fetched it while this one waited.
            return self._find(wanted) or self._fetch(wanted)

    def discard(self, sha256: str) -> None:
        """Forget a file that was found damaged; who has it mapped keeps what is mapped."""
        (self._folder / sha256).unlink(missing_ok=True)

    def used_bytes(self) -> int:
        """Bytes of the files here and of those on their way."""
        return sum(size for _, size, _ in self._entries())

    def _find(self, wanted: Wanted) -> Pin | None:
        path = self._folder / wanted.sha256
        pin = _pin_file(path)
        if pin is None:
            return None
        # After a power failure a name can stand on an empty file.
        if path.stat().st_size != wanted.size_bytes:
            pin.release()
            self.discard(wanted.sha256)
            return None
        os.utime(path)
        return pin

    def _fetch(self, wanted: Wanted) -> Pin:
        found = ""
        for _ in range(FETCH_TRIES):
            with self._reserved(wanted) as target, disk_guard(target):
                wanted.fetch(target)
                found = sha256_of(target)
                if found == wanted.sha256:
                    return self._publish(target, wanted)
        raise IntegrityError(
            f"{wanted.origin} is not what was written: its sha256 is {found[:12]}... in each of "
            f"{FETCH_TRIES} fetches, not {wanted.sha256[:12]}...",
            hint="put the right file there again, or use another copy of the shard set",
        )

    def _publish(self, target: Path, wanted: Wanted) -> Pin:
        """Give a fetched file its name; it is pinned before anybody can evict it."""
        descriptor = os.open(target, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        path = target.replace(self._folder / wanted.sha256)
        return Pin(path, descriptor)

    @contextlib.contextmanager
    def _reserved(self, wanted: Wanted) -> Iterator[Path]:
        """A place to fetch to; its final size counts from the start."""
        with self._locked(_ROOM):
            for left in self._folder.glob(f".{wanted.sha256}.*.tmp"):
                shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
            self._make_room(wanted)
            prefix = f".{wanted.sha256}.{wanted.size_bytes}."
            folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=self._folder))
        try:
            yield folder / "file"
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _make_room(self, wanted: Wanted) -> None:
        entries = sorted(self._entries())
        used = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if used + wanted.size_bytes <= self._limit_bytes:
                return
            if self._evict(path):
                used -= size
        if used + wanted.size_bytes > self._limit_bytes:
            raise CacheFullError(
                f"{wanted.origin} has {wanted.size_bytes:,} bytes; the cache {self._folder} may "
                f"hold {self._limit_bytes:,}, and {used:,} of them are in use",
                hint="allow the cache more bytes, or start fewer readers",
            )

    def _evict(self, path: Path) -> bool:
        """Remove a file that nobody has pinned, or a fetch whose process is gone."""
        if path.suffix == ".tmp":
            with self._locked(path.name[1:3], wait=False) as mine:
                if mine:
                    shutil.rmtree(path, ignore_errors=True)
                return mine
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        else:
            return True
        finally:
            os.close(descriptor)

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """Last use in ns, bytes and path of each file, fetches under way included."""
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):  # gone while we look
                if entry.name.endswith(".tmp"):
                    yield 0, int(entry.name.split(".")[2]), Path(entry.path)
                elif entry.is_file():
                    status = entry.stat()
                    yield status.st_mtime_ns, status.st_size, Path(entry.path)

    @contextlib.contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Exclusive use of a lock; without `wait`, yields False where another has it."""
        path = self._folder / ".locks" / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(descriptor)


def _pin_file(path: Path) -> Pin | None:
    """A shared lock on the file that bears this name now; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    pin = Pin(path, descriptor)
    if os.fstat(descriptor).st_nlink == 0:  # evicted between the two calls
        pin.release()
        return None
    return pin

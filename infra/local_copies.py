"""Copies of whole artifacts on a disk of this machine: a folder with a byte limit.

    artifacts/<artifact>/attempts/<ulid>/copy.json   that this is a copy, its bytes, its last use
    fetching/                                        a fetch under way, and the lock for all of them

Any number of processes use one folder. A copy is pinned by a shared `flock` on its `copy.json` for
as long as the process that asked for it lives; what is not pinned leaves in the order of last use.
A copy gets its name when all of it is here, by a rename, and loses it by another. One fetch at a
time: it has all the bandwidth, and what it needs is known. All locks die with their process.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from infra.atomic_files import disk_errors, write_atomic
from schemas.errors import DataError

COPY_FILE = "copy.json"
_FETCHING = "fetching"


class LocalCopies:
    """A bounded folder of artifacts; see the module."""

    def __init__(self, root: Path, *, limit_bytes: int) -> None:
        """Use `root`, which is made as needed."""
        self._root = root
        self._limit_bytes = limit_bytes
        self._pins: dict[str, int] = {}

    def pin(self, name: str, size_bytes: int, fetch: Callable[[Path], None]) -> None:
        """Have an attempt here until this process ends.

        Args:
            name: Its folder, relative to the root.
            size_bytes: Of all its files.
            fetch: Writes the attempt into a new folder.

        Raises:
            DataError: If it has no room beside what is in use.
        """
        folder = self._root / name
        if self._take(name):
            return
        with disk_errors("fetch an artifact", folder), self._alone():
            if self._take(name):  # another has fetched it while this one waited
                return
            if not (folder / "manifest.json").exists():
                self._make_room(name, size_bytes)
                self._fetch(folder, size_bytes, fetch)
            self.adopt(name, size_bytes)
        self._take(name)

    def adopt(self, name: str, size_bytes: int) -> None:
        """Count an attempt that was made or written here as a copy of what is in the store."""
        write_atomic(self._root / name / COPY_FILE, json.dumps({"size_bytes": size_bytes}) + "\n")

    def drop(self, name: str) -> None:
        """Remove a copy that was found damaged, whoever uses it."""
        pin = self._pins.pop(name, None)
        if pin is not None:
            os.close(pin)
        with self._alone() as scratch:
            _remove(self._root / name, scratch)

    def _take(self, name: str) -> bool:
        if name in self._pins:
            return True
        path = self._root / name / COPY_FILE
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                os.utime(path)
                self._pins[name] = descriptor
                return True
        os.close(descriptor)  # it left between the two calls
        return False

    def _fetch(self, folder: Path, size_bytes: int, fetch: Callable[[Path], None]) -> None:
        scratch = Path(tempfile.mkdtemp(dir=self._root / _FETCHING))
        try:
            fetch(scratch)
            (scratch / COPY_FILE).write_text(json.dumps({"size_bytes": size_bytes}) + "\n")
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)  # what a killed attempt left
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _make_room(self, name: str, size_bytes: int) -> None:
        copies = sorted(self._copies())
        used = sum(size for _, size, _ in copies)
        for _, size, path in copies:
            if used + size_bytes <= self._limit_bytes:
                return
            if self._evict(path):
                used -= size
        if used + size_bytes > self._limit_bytes:
            raise DataError(
                f"{name.split('/')[1]} has {size_bytes:,} bytes; copies of the store in "
                f"{self._root} may take {self._limit_bytes:,}, and {used:,} of them are in use",
                hint="allow more in the store's URI: s3://BUCKET/PREFIX?cache_gib=N",
            )

    def _evict(self, copy: Path) -> bool:
        """Remove a copy that nobody has pinned."""
        try:
            descriptor = os.open(copy, os.O_RDONLY)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(copy.parent, self._root / _FETCHING)
        except BlockingIOError:
            return False
        else:
            return True
        finally:
            os.close(descriptor)

    def _copies(self) -> Iterator[tuple[int, int, Path]]:
        """Last use in ns, bytes and note of each copy."""
        for path in self._root.glob(f"artifacts/*/attempts/*/{COPY_FILE}"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                size = int(json.loads(path.read_text())["size_bytes"])
                yield path.stat().st_mtime_ns, size, path

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Path]:
        """Exclusive use of the folder for fetches, without what killed ones left in it."""
        scratch = self._root / _FETCHING
        scratch.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(scratch / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for left in scratch.iterdir():
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
            yield scratch
        finally:
            os.close(descriptor)


def _remove(folder: Path, scratch: Path) -> None:
    """Take the name from a folder at once, then its bytes."""
    aside = Path(tempfile.mkdtemp(dir=scratch))
    with contextlib.suppress(FileNotFoundError):
        folder.rename(aside / folder.name)
    shutil.rmtree(aside, ignore_errors=True)

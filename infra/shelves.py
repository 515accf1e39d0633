"""Where the documents and files of a store lie: one small protocol, and a folder that fulfils it.

Names are relative, with forward slashes. Every change of a shelf goes through a method of it, and
each of these tells `before` what it is about to do, in words that begin with its verb: tests use
that to end a process at each single write, so that a write without such a point cannot be added.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from infra.atomic_files import disk_errors, fsync_path, write_atomic, write_beside

Before = Callable[[str], None]
"""Is told each change before it is made, such as `write format.json`."""

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Usage:
    """What lies below a name."""

    size_bytes: int
    """What deleting it frees: a file that has several names counts in parts."""
    changed_at: float
    """When the newest of it was written, in seconds since 1970; 0 where there is nothing."""


class Shelf(Protocol):
    """Documents by name, of which some are made once; and trees of files.

    Raises, in every method: `UnreachableError` where the place does not answer or refuses access,
    and `DiskFullError` where it is full.
    """

    place: str
    """For messages."""

    def read(self, name: str) -> bytes | None:
        """A document, or None where there is none."""
        ...

    def write(self, name: str, text: str) -> None:
        """Replace a document; a reader sees the old one or the new one, never a part."""
        ...

    def create(self, name: str, text: str) -> bool:
        """Make a document unless there is one; of any number who try at once, one gets True."""
        ...

    def delete(self, name: str) -> None:
        """Delete a document, if it is there."""
        ...

    def delete_tree(self, name: str) -> None:
        """Delete all that lies below a name; what cannot be deleted is left."""
        ...

    def children(self, name: str) -> Iterator[str]:
        """The names, one level below a name, of documents and of trees; in order."""
        ...

    def usage(self, name: str) -> Usage:
        """Bytes below a name; lists its files and holds none of them."""
        ...


class DiskShelf:
    """Fulfils `Shelf` in a folder, which is made with the first write."""

    def __init__(self, root: Path, *, before: Before) -> None:
        """Use `root`."""
        self.root = root
        self.place = str(root)
        self._before = before

    def read(self, name: str) -> bytes | None:
        """A document, or None where there is none."""
        path = self.root / name
        with disk_errors("read the store", path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, name: str, text: str) -> None:
        """Replace a document, and force it to the disk."""
        self._before(f"write {name}")
        with disk_errors("write the store", self.root / name):
            write_atomic(self.root / name, text)

    def create(self, name: str, text: str) -> bool:
        """Make a document by a hard link of a whole temporary file, where links can be made."""
        final = self.root / name
        with disk_errors("write the store", final):
            final.parent.mkdir(parents=True, exist_ok=True)
            self._before(f"prepare {name}")
            temporary = write_beside(final, text)
            try:
                self._before(f"create {name}")
                made = _link(temporary, final, text)
                self._before(f"settle {name}")
                fsync_path(final.parent)
            finally:
                temporary.unlink(missing_ok=True)
        return made

    def delete(self, name: str) -> None:
        """Delete a document, and make that durable."""
        path = self.root / name
        self._before(f"delete {name}")
        with disk_errors("delete from the store", path):
            path.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                fsync_path(path.parent)

    def delete_tree(self, name: str) -> None:
        """Delete a folder with all that is in it."""
        self._before(f"delete {name}/")
        shutil.rmtree(self.root / name, ignore_errors=True)

    def children(self, name: str) -> Iterator[str]:
        """What a folder holds."""
        folder = self.root / name
        with disk_errors("read the store", folder):
            try:
                yield from sorted(entry.name for entry in os.scandir(folder))
            except (FileNotFoundError, NotADirectoryError):
                return

    def usage(self, name: str) -> Usage:
        """Bytes of the files below a folder, or of a file."""
        size, newest = 0, 0.0
        for path in _files(self.root / name):
            with contextlib.suppress(FileNotFoundError):  # gone while we look
                found = path.lstat()
                size += found.st_size // found.st_nlink
                newest = max(newest, found.st_mtime)
        return Usage(size, newest)


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    for here, _, names in os.walk(path):
        yield from (Path(here, name) for name in names)


def _link(temporary: Path, final: Path, text: str) -> bool:
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _create_exclusively(final, text)
    return True


def _create_exclusively(final: Path, text: str) -> bool:
    """The same without hard links; a crash may leave a torn file, which readers move aside."""
    try:
        descriptor = os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True

"""Files that are whole or not there: atomic writes, appended JSON lines, errors as sentences."""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from schemas.errors import DiskFullError, UnreachableError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def disk_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn what the disk may answer into the errors that a user can read.

    Args:
        doing: What is under way, as in "write the artifact".
        path: Where; it need not exist.

    Raises:
        DiskFullError: If the disk or the quota is full.
        UnreachableError: If the place cannot be written for another reason.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise _full(doing, path) from error
        raise UnreachableError(
            f"cannot {doing}: {error.strerror or error}",
            where=str(error.filename or path),
            hint="check that the folder is mounted and yours to write, or give another --workspace",
        ) from error


def _full(doing: str, path: Path) -> DiskFullError:
    return DiskFullError(
        f"cannot {doing}: the disk or its quota is full, {free_bytes(path):,} bytes are left",
        where=str(path),
        hint="free some space (`vitrail plan` prints the bytes needed), then run again",
    )


def free_bytes(path: Path) -> int:
    """Space that is left for files below `path`, which need not exist yet."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def fsync_path(path: Path) -> None:
    """Force the bytes of a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text`; a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = write_beside(path, text)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def write_beside(path: Path, text: str) -> Path:
    """Write `text` to a new temporary file in the folder of `path`, and force it to the disk."""
    unique = f"{os.getpid()}-{threading.get_ident()}-{os.urandom(4).hex()}"
    temporary = path.with_name(f".{path.name}.{unique}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


class JsonLines:
    """Appends whole lines to a file that has one writer and any number of readers."""

    def __init__(self, path: Path) -> None:
        """Open for appending; a last line that was torn by a dead writer is cut off."""
        self._path = path
        with disk_errors("open a log", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            os.ftruncate(self._descriptor, _end_of_last_line(path))

    def append(self, lines: list[str]) -> None:
        """Write the lines at once, so that a reader or a crash finds at most the last one torn."""
        payload = "".join(f"{line}\n" for line in lines).encode()
        with disk_errors("append to a log", self._path):
            start = os.fstat(self._descriptor).st_size
            if os.write(self._descriptor, payload) < len(payload):
                # The disk filled up; what is half written would glue itself to the next line.
                os.ftruncate(self._descriptor, start)
                raise _full("append to a log", self._path)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_lines(path: Path, offset: int) -> list[tuple[str, int]]:
    """Whole lines from byte `offset` on, each with the offset after it; a torn tail is left out."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return []
    found: list[tuple[str, int]] = []
    for line in data.split(b"\n")[:-1]:
        offset += len(line) + 1
        found.append((line.decode(), offset))
    return found


def _end_of_last_line(path: Path) -> int:
    lines = read_lines(path, 0)
    return lines[-1][1] if lines else 0

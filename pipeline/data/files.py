"""Files by path or by URI: the local twin of `pipeline.ports.RemoteFiles`, and which one to ask.

Light to import. Local names that are no UTF-8 travel as surrogates.
"""

import os
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.ports import FileStatus, RemoteFiles
from schemas.errors import DataError


class LocalFiles:
    """Fulfils `pipeline.ports.RemoteFiles` for paths of this machine; versions are times."""

    def walk(self, uri: str) -> Iterator[FileStatus]:
        """Every file below a folder, by path; holds the listings of one folder and those above."""
        for path, entry in entries(Path(uri)):
            if entry.is_file():
                yield _status(path, entry.stat())

    def status(self, uri: str) -> FileStatus | None:
        """The file at a path, or None if there is none (a folder is none)."""
        path = Path(uri)
        return _status(path.name, path.stat()) if path.is_file() else None

    def open(self, uri: str) -> BinaryIO:
        """A seekable, buffered reader of one file."""
        try:
            return Path(uri).open("rb")
        except OSError as error:
            raise _unreadable(uri, error) from error

    def read(self, uri: str, *, start: int = 0, size: int | None = None) -> bytes:
        """A range of a file's bytes; all from `start` on where `size` is None."""
        try:
            with Path(uri).open("rb") as file:
                file.seek(start)
                return file.read(-1 if size is None else size)
        except OSError as error:
            raise _unreadable(uri, error) from error

    def fetch(self, uri: str, target: Path) -> None:
        """Copy a whole file."""
        try:
            shutil.copyfile(uri, target)
        except OSError as error:
            raise _unreadable(uri, error) from error


def files_of(uri: str, remote: RemoteFiles | None) -> RemoteFiles:
    """Who reads the files of a place.

    Raises:
        DataError: If it is a URI and there is nobody to read it.
    """
    if not is_remote(uri):
        return LocalFiles()
    if remote is None:
        raise DataError(f"{uri} is a URI, and only files of this machine can be read here")
    return remote


def is_remote(uri: str) -> bool:
    """Whether a place is a URI of another scheme than `file`."""
    return "://" in uri and not uri.startswith("file://")


def place_of(uri: str) -> str:
    """The place as its reader wants it: a path for `file://`, all else as it is, no slash behind.

    `~` is the home folder.
    """
    if uri.startswith("file://"):
        uri = urllib.parse.unquote(urllib.parse.urlsplit(uri).path)
    if not is_remote(uri):
        uri = str(Path(uri).expanduser())
    return uri.rstrip("/") or "/"


def join(place: str, path: str) -> str:
    """The place of a file below a folder; a path that is absolute or a URI stays what it is."""
    if not path or path == ".":
        return place
    if "://" in path or path.startswith("/"):
        return place_of(path)
    return f"{place.rstrip('/')}/{path.removeprefix('./')}"


def printable(path: str) -> str:
    """The path as text that every reader of UTF-8 accepts."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def stamp_of(status: FileStatus) -> str:
    """What must not have changed between listing and reading."""
    return f"{status.size}:{status.version}"


def entries(
    folder: Path,
    *,
    only: frozenset[str] | None = None,
    below: str = "",
    above: tuple[tuple[int, int], ...] = (),
) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Whatever is no folder below `folder`, with its relative path, by name; hidden names are not.

    Args:
        folder: Where to look.
        only: Names right below it that are wanted; None: all.
        below: What stands before every path that is yielded, with its slash.
        above: Device and inode of the folders on the way down, against loops.

    Raises:
        DataError: If a folder cannot be listed, or links lead round in a circle.
    """
    try:
        status = folder.stat()
        with os.scandir(folder) as scan:
            found = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise DataError(f"{folder} is a link to a folder above it; remove the link")
    for entry in found:
        if entry.name.startswith(".") or (only is not None and entry.name not in only):
            continue
        if entry.is_dir():
            deeper = f"{below}{entry.name}/"
            yield from entries(folder / entry.name, below=deeper, above=(*above, here))
        else:
            yield below + entry.name, entry


def _status(path: str, status: os.stat_result) -> FileStatus:
    return FileStatus(path, status.st_size, str(status.st_mtime_ns))


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"{printable(path)} cannot be read: {error.strerror}")

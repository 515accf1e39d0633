"""Files behind URIs, kept in a folder: what is asked for is counted, and some arrive damaged."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.ports import FileStatus
from schemas.errors import DataError

BASE = "test://bucket/"


class FolderFiles:
    """Fulfils `pipeline.ports.RemoteFiles`: `test://bucket/KEY` is the file KEY of a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.fetched: list[str] = []
        """URIs that were fetched whole, in order."""
        self.damage: Callable[[str, bytes], bytes] = lambda _uri, data: data
        """What becomes of the bytes of a fetched file on their way."""

    def walk(self, uri: str) -> Iterator[FileStatus]:
        folder = self._path(uri)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield FileStatus(str(path.relative_to(folder)), path.stat().st_size, "1")

    def status(self, uri: str) -> FileStatus | None:
        path = self._path(uri)
        return FileStatus(path.name, path.stat().st_size, "1") if path.is_file() else None

    def open(self, uri: str) -> BinaryIO:
        return cast("BinaryIO", self._existing(uri).open("rb"))

    def read(self, uri: str, *, start: int = 0, size: int | None = None) -> bytes:
        data = self._existing(uri).read_bytes()[start:]
        return data if size is None else data[:size]

    def fetch(self, uri: str, target: Path) -> None:
        self.fetched.append(uri)
        shutil.copyfile(self._existing(uri), target)
        target.write_bytes(self.damage(uri, target.read_bytes()))

    def _existing(self, uri: str) -> Path:
        path = self._path(uri)
        if not path.is_file():
            raise DataError(f"{uri} does not exist")
        return path

    def _path(self, uri: str) -> Path:
        assert uri.startswith(BASE), uri
        return self._root / uri.removeprefix(BASE)

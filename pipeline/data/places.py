"""Where the files of a shard set lie: in a local folder, or behind a URI and a bounded cache."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pipeline.data.shards.cache import ShardCache, Wanted
from pipeline.data.staging import sha256_of
from pipeline.ports import RemoteFiles
from schemas.errors import DataError, IntegrityError

_CHUNK_BYTES = 2**20


class Held(Protocol):
    """A local file that stays where it is as long as this object."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...


@dataclass(frozen=True)
class LocalFile:
    """A file that was there before; nobody evicts it."""

    path: Path


class Place(Protocol):
    """The files of one shard set, by their names relative to its manifest."""

    @property
    def location(self) -> str:
        """As a user names it."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file, unchecked; None if it is not there."""
        ...

    def hold(self, name: str, sha256: str, *, size_bytes: int | None = None) -> Held:
        """A local copy; `size_bytes` where the caller knows it.

        Raises:
            IntegrityError: If the file is missing, has another size, or did not arrive whole.
        """
        ...

    def forget(self, sha256: str) -> bool:
        """Drop a copy that was found damaged; False where the file itself is what was read."""
        ...

    def sha256(self, name: str) -> str | None:
        """Of the bytes at the origin, all of them read; None if the file is not there."""
        ...


@dataclass(frozen=True)
class LocalPlace:
    """A folder."""

    folder: Path

    @property
    def location(self) -> str:
        """The folder's path."""
        return str(self.folder)

    def read(self, name: str) -> bytes | None:
        """As `Place.read`."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def hold(self, name: str, sha256: str, *, size_bytes: int | None = None) -> Held:  # noqa: ARG002  # named by its path
        """As `Place.hold`; the bytes are not read here."""
        path = self.folder / name
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            raise IntegrityError(f"{path} is missing")
        if size_bytes is not None and found != size_bytes:
            raise IntegrityError(f"{path} has {found} bytes; {size_bytes} bytes were written")
        return LocalFile(path)

    def forget(self, sha256: str) -> bool:  # noqa: ARG002
        """As `Place.forget`: there is no copy."""
        return False

    def sha256(self, name: str) -> str | None:
        """As `Place.sha256`."""
        path = self.folder / name
        return sha256_of(path) if path.is_file() else None


@dataclass(frozen=True)
class RemotePlace:
    """A folder behind a URI."""

    uri: str
    files: RemoteFiles
    cache: ShardCache

    @property
    def location(self) -> str:
        """The URI."""
        return self.uri

    def read(self, name: str) -> bytes | None:
        """As `Place.read`; not cached, since it is checked by nothing."""
        uri = self._uri(name)
        return None if self.files.status(uri) is None else self.files.read(uri)

    def hold(self, name: str, sha256: str, *, size_bytes: int | None = None) -> Held:
        """As `Place.hold`, through the cache."""
        uri = self._uri(name)

        def fetch(target: Path) -> None:
            try:
                self.files.fetch(uri, target)
            except DataError as error:
                raise IntegrityError(f"{uri} is missing") from error

        if size_bytes is None:
            size_bytes = self._size(uri)
        return self.cache.pin(Wanted(sha256, size_bytes, uri, fetch))

    def forget(self, sha256: str) -> bool:
        """As `Place.forget`: the next `hold` fetches again."""
        self.cache.discard(sha256)
        return True

    def sha256(self, name: str) -> str | None:
        """As `Place.sha256`; streams the file past the cache."""
        uri = self._uri(name)
        if self.files.status(uri) is None:
            return None
        digest = hashlib.sha256()
        with closing(self.files.open(uri)) as file:
            for chunk in _chunks(file):
                digest.update(chunk)
        return digest.hexdigest()

    def _uri(self, name: str) -> str:
        return f"{self.uri.rstrip('/')}/{name}"

    def _size(self, uri: str) -> int:
        status = self.files.status(uri)
        if status is None:
            raise IntegrityError(f"{uri} is missing")
        return status.size


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk

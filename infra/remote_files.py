"""`RemoteFiles` on fsspec: files behind `s3://`, `gs://`, `https://`, `memory://` and other URIs.

fsspec's only door. Credentials and endpoints come from the environment, as each store's own library
reads them (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, profiles, instance roles); none is ever taken
from a spec, held here, or put into a message.

Memory: one page of a listing (S3: 1,000 keys; other stores: one folder), one block of an open file.
"""

import contextlib
import io
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.ports import FileStatus
from schemas.errors import DataError, SpecError, UnreachableError, VitrailError

BLOCK_BYTES = 4 * 2**20
"""What a reader asks for at once: a tar's headers and small members come along in one request."""
_VERSION_FIELDS = ("ETag", "etag", "version_id", "VersionId", "generation", "md5Hash", "checksum")
_TIME_FIELDS = ("mtime", "LastModified", "last_modified", "updated", "created")
_EXTRAS = {"s3": "s3", "s3a": "s3"}
"""Protocol -> the extra of this package that brings its library."""


@dataclass(frozen=True)
class FsspecFiles:
    """Fulfils `pipeline.ports.RemoteFiles`; without state, so it travels to any process."""

    def walk(self, uri: str) -> Iterator[FileStatus]:
        """Every file below a folder, by path."""
        found = False
        with _sentences(uri):
            store, root = _store(uri)
            pages = _s3_pages if "s3" in _protocols(store) else _folder_pages
            for page in pages(store, root.rstrip("/")):
                for path, info in page:
                    found = True
                    yield _status(path, info)
        if not found:
            raise DataError(f"{_shown(uri)} does not exist, or is empty")

    def status(self, uri: str) -> FileStatus | None:
        """The file at a URI, or None if there is none (a folder is none)."""
        with _sentences(uri):
            store, path = _store(uri)
            try:
                info = store.info(path)
            except FileNotFoundError:
                return None
        if info["type"] != "file":
            return None
        return _status(path.rstrip("/").rsplit("/", 1)[-1], info)

    def open(self, uri: str) -> BinaryIO:
        """A seekable, buffered reader of one file."""
        status = self.status(uri)
        if status is None:
            raise DataError(f"{_shown(uri)} does not exist")
        return io.BufferedReader(_Ranges(self, uri, status.size), BLOCK_BYTES)

    def read(self, uri: str, *, start: int = 0, size: int | None = None) -> bytes:
        """A range of a file's bytes; all from `start` on where `size` is None."""
        if size == 0:
            return b""
        with _sentences(uri):
            store, path = _store(uri)
            end = None if size is None else start + size
            data: bytes = store.cat_file(path, start=start, end=end)
            return data

    def fetch(self, uri: str, target: Path) -> None:
        """Copy a whole file to a new local file."""
        with _sentences(uri):
            store, path = _store(uri)
            store.get_file(path, str(target))


class _Ranges(io.RawIOBase):
    """One remote file as ranges of bytes."""

    def __init__(self, files: FsspecFiles, uri: str, size: int) -> None:
        self._files, self._uri, self._size, self._place = files, uri, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._place))
        data = self._files.read(self._uri, start=self._place, size=count)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def _store(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path in it; nothing of a listing is kept between calls."""
    import fsspec

    store, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    return store, path


def _protocols(store: Any) -> tuple[str, ...]:
    protocol = store.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _s3_pages(store: Any, root: str) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Pages of keys below a prefix, as S3 gives them: in the order of their UTF-8 bytes."""
    bucket, _, key = root.partition("/")
    prefix = f"{key}/" if key else ""
    more: dict[str, str] = {}
    while True:
        page = store.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
        yield [
            (entry["Key"][len(prefix) :], {**entry, "size": entry["Size"]})
            for entry in page.get("Contents", ())
            if not entry["Key"].endswith("/")  # a mark that some tools leave for a folder
        ]
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _folder_pages(
    store: Any, root: str, below: str = ""
) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Folder after folder; a folder's name sorts with its slash, so that paths come in order."""
    entries = []
    for info in store.ls(f"{root}/{below}".rstrip("/"), detail=True):
        name = info["name"].rstrip("/").rsplit("/", 1)[-1]
        entries.append((f"{name}/" if info["type"] == "directory" else name, info))
    for name, info in sorted(entries, key=lambda entry: entry[0]):
        if name.endswith("/"):
            yield from _folder_pages(store, root, below + name)
        else:
            yield [(below + name, info)]


def _status(path: str, info: dict[str, Any]) -> FileStatus:
    fields = (*_VERSION_FIELDS, *_TIME_FIELDS)
    version = next((str(info[field]) for field in fields if info.get(field) is not None), "")
    return FileStatus(path, int(info["size"] or 0), version.strip('"'))


@contextlib.contextmanager
def _sentences(uri: str) -> Iterator[None]:
    """Turn whatever a store's library raises into one of our errors."""
    try:
        yield
    except (VitrailError, GeneratorExit):
        raise
    except Exception as error:
        raise _sentence(uri, error) from error


def _sentence(uri: str, error: Exception) -> VitrailError:
    shown, what = _shown(uri), str(error).strip() or type(error).__name__
    protocol = uri.split("://", 1)[0]
    if isinstance(error, ImportError):
        extra = _EXTRAS.get(protocol)
        hint = f"pip install 'vitrail[{extra}]'" if extra else what
        return UnreachableError(f"{shown} needs a library that is not installed", hint=hint)
    if isinstance(error, FileNotFoundError):
        return DataError(f"{shown} does not exist")
    if isinstance(error, ValueError) and "rotocol not known" in what:
        return SpecError(f"{shown} is of an unknown kind: {protocol!r} names no store")
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return UnreachableError(
            f"{shown} needs credentials and there are none",
            hint="export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    if isinstance(error, PermissionError):
        return UnreachableError(f"{shown}: access is refused: {what}")
    advice = "see that the network and AWS_ENDPOINT_URL are right" if protocol in _EXTRAS else None
    return UnreachableError(f"{shown} cannot be reached: {what}", hint=advice)


def _shown(uri: str) -> str:
    """The URI without what may be secret: user, password, query."""
    parts = urllib.parse.urlsplit(uri)
    place = parts.netloc.rsplit("@", 1)[-1]
    return urllib.parse.urlunsplit((parts.scheme, place, parts.path, "", ""))

"""`Shelf` in a bucket of S3, or of a server that speaks its protocol; boto3's only door.

Credentials, region and endpoint come from the environment, as boto3 reads them (`AWS_PROFILE`,
`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, instance roles); none is ever held here or put into a
message. The server must honour `If-None-Match: *` on PUT (S3 since August 2024, MinIO, Ceph, R2).

Memory: one page of a listing (1,000 keys), and the parts that boto3 has in flight.
"""

import contextlib
import email.utils
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.atomic_files import disk_errors
from infra.shelves import Before, Usage
from schemas.errors import UnreachableError, VitrailError

CONFLICT_TRIES = 10
"""Times that a conditional put is tried while others put the same name at the same moment (409)."""
_CHUNK_BYTES = 2**20
_ABSENT = {"NoSuchKey", "404"}
_LOST = {"PreconditionFailed", "412"}
_BUSY = {"ConditionalRequestConflict", "409"}


class S3Shelf:
    """Fulfils `infra.shelves.Shelf`."""

    def __init__(self, bucket: str, prefix: str, *, before: Before) -> None:
        """Use the keys of `bucket` below `prefix`, which may be empty."""
        self.place = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._before = before
        with _sentences(self.place):
            self._client = _client()

    def read(self, name: str) -> bytes | None:
        """A document, or None where there is none."""
        with _sentences(self.place):
            try:
                found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            except self._client.exceptions.NoSuchKey:
                return None
            with contextlib.closing(found["Body"]) as body:
                text: bytes = body.read()
                return text

    def write(self, name: str, text: str) -> None:
        """Put a document, over what is there."""
        self._before(f"write {name}")
        with _sentences(self.place):
            self._put(name, text)

    def create(self, name: str, text: str) -> bool:
        """Put a document unless there is one.

        A put whose answer was lost is sent again, and then loses against itself: who gets False
        reads who has won.
        """
        self._before(f"create {name}")
        with _sentences(self.place):
            for turn in range(CONFLICT_TRIES):
                try:
                    self._put(name, text, IfNoneMatch="*")
                except self._client.exceptions.ClientError as error:
                    if _code(error) in _LOST:
                        return False
                    if _code(error) not in _BUSY:
                        raise
                    time.sleep(min(1.0, 0.05 * 2**turn))
                else:
                    return True
        raise UnreachableError(f"{self.place}/{name} is written by others again and again")

    def delete(self, name: str) -> None:
        """Delete a document, if it is there."""
        self._before(f"delete {name}")
        with _sentences(self.place):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def delete_tree(self, name: str) -> None:
        """Delete all keys below a name, a page at a time."""
        self._before(f"delete {name}/")
        for page in self._pages(f"{name}/"):
            keys = [{"Key": entry["Key"]} for entry in page.get("Contents", ())]
            if keys:
                with _sentences(self.place):
                    wanted = {"Objects": keys, "Quiet": True}
                    self._client.delete_objects(Bucket=self._bucket, Delete=wanted)

    def children(self, name: str) -> Iterator[str]:
        """The next part of all keys below a name."""
        below = len(self._prefix) + len(name) + 1
        for page in self._pages(f"{name}/", Delimiter="/"):
            folders = [found["Prefix"].rstrip("/") for found in page.get("CommonPrefixes", ())]
            files = [found["Key"] for found in page.get("Contents", ())]
            yield from sorted(key[below:] for key in (*folders, *files))

    def usage(self, name: str) -> Usage:
        """Bytes of a key, or of all keys below it."""
        size, newest = 0, 0.0
        for page in self._pages(name):
            for entry in page.get("Contents", ()):
                key = entry["Key"].removeprefix(self._prefix)
                if key == name or key.startswith(f"{name}/"):
                    size += entry["Size"]
                    newest = max(newest, entry["LastModified"].timestamp())
        return Usage(size, newest)

    def sizes(self, name: str) -> Iterator[tuple[str, int]]:
        """Every file below a name, by its relative path, with its bytes."""
        below = len(self._prefix) + len(name) + 1
        for page in self._pages(f"{name}/"):
            for entry in page.get("Contents", ()):
                yield entry["Key"][below:], entry["Size"]

    def age_seconds(self, name: str) -> float | None:
        """How long ago a document was written, by the server's own clock; None if there is none."""
        with _sentences(self.place):
            try:
                found = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)
            except self._client.exceptions.ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise
        now = email.utils.parsedate_to_datetime(
            found["ResponseMetadata"]["HTTPHeaders"]["date"]
        ).timestamp()
        written: float = found["LastModified"].timestamp()
        return max(0.0, now - written)

    def upload(self, path: Path, name: str) -> None:
        """Put a file, in parts if it is large."""
        self._before(f"put {name}")
        with _sentences(self.place):
            self._client.upload_file(str(path), self._bucket, self._prefix + name)

    def download(self, name: str, path: Path) -> str:
        """Write a file to a new local one; returns the sha256 of its bytes.

        Raises:
            FileNotFoundError: If there is no such file.
            DiskFullError: If the disk is full.
        """
        digest = hashlib.sha256()
        with disk_errors("fetch an artifact", path), path.open("xb") as target:
            for chunk in self._chunks(name):
                digest.update(chunk)
                target.write(chunk)
        return digest.hexdigest()

    def sha256(self, name: str) -> str:
        """sha256 of a file's bytes, all of which are read.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        digest = hashlib.sha256()
        for chunk in self._chunks(name):
            digest.update(chunk)
        return digest.hexdigest()

    def _chunks(self, name: str) -> Iterator[bytes]:
        with _sentences(self.place):
            try:
                found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            except self._client.exceptions.NoSuchKey:
                raise FileNotFoundError(name) from None
            with contextlib.closing(found["Body"]) as body:
                yield from body.iter_chunks(_CHUNK_BYTES)

    def _put(self, name: str, text: str, **condition: str) -> None:
        self._client.put_object(
            Bucket=self._bucket, Key=self._prefix + name, Body=text.encode(), **condition
        )

    def _pages(self, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        with _sentences(self.place):
            yield from self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix, **options
            )


def _client() -> Any:
    import boto3
    from botocore.config import Config

    retries = {"mode": "standard", "max_attempts": 5}
    return boto3.client("s3", config=Config(retries=retries, connect_timeout=10))


def _code(error: Any) -> str:
    code: str = error.response["Error"]["Code"]
    return code


@contextlib.contextmanager
def _sentences(place: str) -> Iterator[None]:
    """Turn whatever boto3 raises into one of our errors."""
    try:
        yield
    except (VitrailError, FileNotFoundError, GeneratorExit):
        raise
    except Exception as error:
        raise _sentence(place, error) from error


def _sentence(place: str, error: Exception) -> UnreachableError:
    what, name = str(error).strip(), type(error).__name__
    if isinstance(error, ImportError):
        hint = "pip install 'vitrail[s3]'"
        return UnreachableError(f"{place} needs a library that is not installed", hint=hint)
    if name in {"NoCredentialsError", "PartialCredentialsError"}:
        return UnreachableError(
            f"{place} needs credentials and there are none",
            hint="export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    if name == "NoRegionError":
        return UnreachableError(f"{place}: no region is known", hint="export AWS_DEFAULT_REGION")
    if name == "NoSuchBucket":
        return UnreachableError(f"{place}: there is no such bucket; the store makes none")
    if hasattr(error, "response") and _code(error) in {"AccessDenied", "403"}:
        return UnreachableError(f"{place}: access is refused: {what}")
    hint = "see that the network and AWS_ENDPOINT_URL are right"
    return UnreachableError(f"{place} cannot be reached: {what}", hint=hint)

"""A store on a disk or in a bucket, and somebody who changes it behind its back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.storage import open_store
from tests.support.s3_server import BUCKET, client


@dataclass(frozen=True)
class Place:
    """Where a store lies."""

    uri: str
    local: Path

    @property
    def is_s3(self) -> bool:
        return self.uri.startswith("s3://")

    def open(
        self,
        *,
        local: Path | None = None,
        say: Callable[[str], None] | None = None,
        before: Callable[[str], None] | None = None,
    ) -> Any:
        return open_store(self.uri, local=local or self.local, say=say, before=before)

    def read(self, name: str) -> bytes | None:
        if not self.is_s3:
            path = Path(self.uri, name)
            return path.read_bytes() if path.is_file() else None
        try:
            return client().get_object(Bucket=BUCKET, Key=self._key(name))["Body"].read()
        except client().exceptions.NoSuchKey:
            return None

    def write(self, name: str, data: bytes) -> None:
        if self.is_s3:
            client().put_object(Bucket=BUCKET, Key=self._key(name), Body=data)
        else:
            path = Path(self.uri, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def remove(self, name: str) -> None:
        if self.is_s3:
            client().delete_object(Bucket=BUCKET, Key=self._key(name))
        else:
            Path(self.uri, name).unlink()

    def names(self, below: str = "") -> list[str]:
        """All files, those under attempts that were never committed among them."""
        if not self.is_s3:
            root = Path(self.uri)
            found = [path.relative_to(root).as_posix() for path in root.rglob("*")]
            return sorted(
                name for name in found if (root / name).is_file() and name.startswith(below)
            )
        prefix = self._key("")
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        found = [
            entry["Key"].removeprefix(prefix)
            for page in pages
            for entry in page.get("Contents", ())
        ]
        return sorted(name for name in found if name.startswith(below))

    def _key(self, name: str) -> str:
        return f"{self.uri.removeprefix(f's3://{BUCKET}/')}/{name}"

"""Where a build keeps its work in progress, how it commits a piece, and how it reports.

A piece is written under a temporary name, flushed, and renamed: whatever bears its final name is
whole, however often and in whatever order tasks ran, were killed or ran twice.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.ports import RemoteFiles, StopSignal, TaskPool
from schemas.errors import DiskFullError, PausedError
from schemas.spec import canonical_json

SECONDS_BETWEEN_LINES = 2.0
BUILD_PIECES = ("plan.json", "thresholds.json", "listing", "units", "buckets", "shards")
"""All that a build keeps below its progress folder: see `Staging`."""


@dataclass(frozen=True)
class BuildTools:
    """What a build works with, besides its data."""

    pool: TaskPool
    progress: Path
    """Folder of finished pieces, which a later attempt goes on from."""
    stop: StopSignal
    say: Callable[[str], None]
    files: RemoteFiles | None = None
    """Reads URIs; None: only files of this machine can be read."""


@dataclass(frozen=True)
class Staging:
    """Paths below the progress folder of a build."""

    root: Path

    @property
    def plan(self) -> Path:
        """What is built; pieces of another plan are thrown away."""
        return self.root / "plan.json"

    @property
    def thresholds(self) -> Path:
        """Largest selection hash kept, for each split and label."""
        return self.root / "thresholds.json"

    @property
    def listed(self) -> Path:
        """What the list step found; its presence is the step's commit."""
        return self.root / "listing" / "done.json"

    def listing(self, unit: int) -> Path:
        """The members of a unit."""
        return self.root / "listing" / f"{unit:06d}.json"

    def staged(self, unit: int) -> Path:
        """The prepared rows of a unit."""
        return self.root / "units" / f"{unit:06d}.arrow"

    def unit(self, unit: int) -> Path:
        """Counts of a unit; its presence is the unit's commit."""
        return self.root / "units" / f"{unit:06d}.json"

    def begun(self, unit: int) -> Path:
        """Is there while the images of a unit are decoded, and after a death meanwhile."""
        return self.root / "units" / f"{unit:06d}.begun"

    def unit_rejections(self, unit: int) -> Path:
        """The files of a unit that were refused, if there are any."""
        return self.root / "units" / f"{unit:06d}.rejections.arrow"

    def shard(self, name: str) -> Path:
        """A finished shard."""
        return self.root / "shards" / name

    def bucket(self, split: str, bucket: int, buckets: int) -> Path:
        """What became of a bucket; its presence is the bucket's commit."""
        return self.root / "buckets" / f"{split}-{bucket}-of-{buckets}.json"

    def bucket_rejections(self, split: str, bucket: int, buckets: int) -> Path:
        """The copies and contradictions found in a bucket, if there are any."""
        return self.root / "buckets" / f"{split}-{bucket}-of-{buckets}.rejections.arrow"

    @property
    def known(self) -> Path:
        """What of the new images stands in the set that they are added to."""
        return self.root / "known"

    def resume(self, digest: str) -> None:
        """Keep the pieces of a plan with this digest; start afresh for any other."""
        if not self.plan.is_file() or json.loads(self.plan.read_bytes())["digest"] != digest:
            self.forget()

    def begin(self, digest: str, plan: dict[str, Any]) -> None:
        """Say what is built from now on; places in it may have moved since an earlier attempt."""
        write_json(self.plan, {"digest": digest, "plan": plan})

    def forget(self) -> None:
        """Throw every piece away."""
        self.plan.unlink(missing_ok=True)
        for folder in ("listing", "units", "known", "shards", "buckets"):
            shutil.rmtree(self.root / folder, ignore_errors=True)


def read_plan(staging: Staging) -> dict[str, Any]:
    """The plan that `begin` wrote."""
    plan: dict[str, Any] = json.loads(staging.plan.read_bytes())["plan"]
    return plan


@contextlib.contextmanager
def committing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and give it its name.

    Raises:
        DiskFullError: If no space is left; nothing bears the name then.
    """
    with scratch_file(path.parent) as temporary, disk_guard(path):
        yield temporary
        publish(temporary, path)


@contextlib.contextmanager
def scratch_file(folder: Path) -> Iterator[Path]:
    """Yield a new file in `folder` that nobody else has; gone afterwards, unless published."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Flush a finished file to disk and give it its name, in one step."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.chmod(0o644)
    temporary.replace(path)


@contextlib.contextmanager
def disk_guard(path: Path, *, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn "no space left" into a sentence.

    Raises:
        DiskFullError: Where the system says that the disk or the quota is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        need = f", {needed_bytes:,} bytes," if needed_bytes is not None else ""
        raise DiskFullError(
            f"no space is left for {path}{need}: {shutil.disk_usage(path.parent).free:,} bytes are "
            "free; what is finished is kept",
            hint="free some space, then run again",
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Commit a small file."""
    with committing(path) as temporary, disk_guard(path, needed_bytes=len(data)):
        temporary.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Commit canonical JSON; text that UTF-8 cannot hold stays escaped."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    write_bytes(path, text.encode())


def write_canonical(path: Path, value: object) -> str:
    """Commit the canonical JSON of schema documents; returns the file's sha256 in hex."""
    data = canonical_json(value).encode()
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def write_table(path: Path, table: pa.Table, *, rows_per_batch: int = 65_536) -> None:
    """Commit a table as an uncompressed Arrow IPC file."""
    with committing(path) as temporary, disk_guard(path, needed_bytes=table.nbytes):
        write_arrow(temporary, table, rows_per_batch=rows_per_batch)


def write_arrow(path: Path, table: pa.Table, *, rows_per_batch: int) -> None:
    """Write a table as an uncompressed Arrow IPC file of equal batches (the last is shorter)."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for batch in table.combine_chunks().to_batches(max_chunksize=rows_per_batch):
            writer.write_batch(batch)


def read_table(path: Path) -> pa.Table:
    """Memory-map a table."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Progress:
    """Counts finished pieces, prints a line now and then, and notices a request to stop."""

    def __init__(self, tools: BuildTools, label: str, total: int) -> None:
        """Begin at zero of `total` pieces."""
        self._tools = tools
        self._label = label
        self._total = total
        self._done = self._images = self._rejected = 0
        self._began = self._spoke = time.monotonic()

    def finished(self, images: int, *, rejected: int = 0) -> None:
        """One piece with so many images, some of them rejected, is committed.

        Raises:
            PausedError: If somebody asked for a stop and there is more to do.
        """
        self._done += 1
        self._images += images
        self._rejected += rejected
        now = time.monotonic()
        if now - self._spoke >= SECONDS_BETWEEN_LINES or self._done == self._total:
            self._spoke = now
            self._tools.say(self._line(max(now - self._began, 1e-3)))
        if self._done < self._total and self._tools.stop.requested():
            raise PausedError(
                f"stopped on request while {self._label}, {self._done} of {self._total} done",
                hint="run again; it goes on from there",
            )

    def _line(self, seconds: float) -> str:
        line = f"{self._label}: {self._done} of {self._total}, {self._images:,} images, "
        if self._rejected:
            line += f"{self._rejected:,} rejected, "
        line += f"{self._images / seconds:,.0f} images/s"
        left = round(seconds / self._done * (self._total - self._done))
        return line + (f", about {timedelta(seconds=left)} left" if left else "")

"""Builds small shard sets in this process."""

from pathlib import Path
from typing import Any

from infra.serial_pool import NeverStop, SerialPool
from pipeline.data.ingest.build import BuildResult, build_shard_set
from pipeline.data.shards.shard_set import ShardSet, Split
from pipeline.data.sources import fingerprint
from pipeline.data.staging import BuildTools
from pipeline.ports import RemoteFiles, StopSignal, TaskPool
from schemas.data import IngestSpec
from tests.support.corpora import write_folder


def ingest_spec(folder: Path, **fields: Any) -> IngestSpec:
    """A spec of a folder; `splits` goes to the source."""
    source = {"type": "image_folder", "uri": str(folder), "splits": fields.pop("splits", {})}
    image = {"max_side_px": 64, **fields.pop("image", {})}
    return IngestSpec.parse({"kind": "ingest", "source": source, "image": image, **fields})


def build(
    spec: IngestSpec,
    where: Path,
    *,
    pool: TaskPool | None = None,
    stop: StopSignal | None = None,
    said: list[str] | None = None,
    files: RemoteFiles | None = None,
) -> BuildResult:
    """Build into `where / "out"`, with progress in `where / "progress"`."""
    lines = [] if said is None else said
    pool, stop = pool or SerialPool(), stop or NeverStop()
    tools = BuildTools(pool, where / "progress", stop, lines.append, files)
    found = fingerprint(spec.source, files)
    return build_shard_set(spec, fingerprint=found, tools=tools, out=where / "out")


def build_from(
    source: dict[str, Any], where: Path, *, files: RemoteFiles | None = None, **fields: Any
) -> BuildResult:
    """Build from any source, images of 40 px at most."""
    spec = IngestSpec.parse({"source": source, "image": {"max_side_px": 40}, **fields})
    return build(spec, where, files=files)


def small_set(where: Path, *, per_class: int = 12, shard_bytes: int = 20_000) -> ShardSet:
    """Splits `train` and `test` of three classes, in several shards."""
    folder = write_folder(where / "raw", per_class=per_class, splits=("train", "test"))
    splits = {"train": "train", "test": "test"}
    build(ingest_spec(folder, splits=splits, shard_bytes=shard_bytes), where)
    return ShardSet.open(where / "out")


def uids(split: Split) -> list[bytes]:
    """The images of a split in storage order."""
    return [split.row(index).uid for index in range(split.num_rows)]

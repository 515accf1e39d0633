"""Builds small shard sets in this process."""

from pathlib import Path
from typing import Any

from pipeline.data.build import BuildResult, build_shard_set
from pipeline.data.shards import ShardSet
from pipeline.data.sources import fingerprint
from pipeline.data.staging import BuildTools
from pipeline.ports import StopSignal, TaskPool
from schemas.data import IngestSpec
from tests.support.corpora import write_folder
from tests.support.pools import NoStop, SerialPool


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
) -> BuildResult:
    """Build into `where / "out"`, with progress in `where / "progress"`."""
    lines = [] if said is None else said
    tools = BuildTools(pool or SerialPool(), where / "progress", stop or NoStop(), lines.append)
    return build_shard_set(
        spec, fingerprint=fingerprint(spec.source), tools=tools, out=where / "out"
    )


def small_set(where: Path, *, per_class: int = 12, shard_bytes: int = 20_000) -> ShardSet:
    """Splits `train` and `test` of three classes, in several shards."""
    folder = write_folder(where / "raw", per_class=per_class, splits=("train", "test"))
    splits = {"train": "train", "test": "test"}
    build(ingest_spec(folder, splits=splits, shard_bytes=shard_bytes), where)
    return ShardSet.open(where / "out")

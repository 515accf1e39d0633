"""A build of any number of rows in which the driver is real and the tasks are not.

The driver lists, gathers, selects, seals, measures and commits as ever; its pool writes what tasks
would leave for it on disk (units, commits, rejections, shard files of a few bytes), at once.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from infra.serial_pool import NeverStop
from infra.storage import LocalStore
from pipeline.data.ingest.build import build_shard_set
from pipeline.data.ingest.listing import Listing, ListTask, list_part
from pipeline.data.ingest.mapping import UnitTask, stage_unit
from pipeline.data.ingest.reduce import BucketTask, reduce_bucket
from pipeline.data.ingest.rejections import write_rejections
from pipeline.data.shards.quality import QualityTask, Tally, measure, measure_shard
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.sources import fingerprint
from pipeline.data.staging import BuildTools, Staging
from schemas.artifacts import Environment, KeyRecord, StageRecord
from schemas.data import IngestSpec
from schemas.spec import canonical_json

UNIT_ROWS = 512
CLASSES = 1000
ROW_BYTES = 24_000
_REJECTED_OF_UNIT = 5

X = TypeVar("X")
Y = TypeVar("Y")


@dataclass(frozen=True)
class Grown:
    """What a driver came to."""

    rows: int
    shards: int
    peak_bytes: int
    """Largest resident set of the process, from its start on."""


def drive(work: Path, rows: int) -> Grown:
    """Build, measure and commit so many rows in this process, which should be a fresh one."""
    raw = work / "raw"
    for name in _class_names()[:2]:  # something for the list step to look at
        (raw / name).mkdir(parents=True)
        (raw / name / "0.jpg").write_bytes(name.encode())
    spec = IngestSpec.parse({"source": {"type": "image_folder", "uri": str(raw)}})
    record = _record(spec)
    attempt = LocalStore(work / "store").begin("ingest", record.key)
    tools = BuildTools(_Tasks(rows), attempt.progress, NeverStop(), lambda _line: None)
    out = attempt.path / "dataset"
    made = build_shard_set(spec, fingerprint=fingerprint(spec.source), tools=tools, out=out)
    measure(ShardSet.open(out), tools)
    known = {f"dataset/{path}": sha256 for path, sha256 in made.known_sha256.items()}
    LocalStore(work / "store").commit(attempt, record, known_sha256=known)
    return Grown(made.manifest.num_rows, made.manifest.num_shards, peak_resident())


def peak_resident() -> int:
    """Largest resident set of this process so far, in bytes.

    `getrusage` would tell that of the process it was forked from, if that was larger.
    """
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024


class _Tasks:
    """A `TaskPool` whose tasks leave on disk what real ones would have left."""

    def __init__(self, rows: int) -> None:
        self._units = -(-rows // UNIT_ROWS)
        self._rows = rows
        self._listed = False

    def map(
        self,
        function: Callable[[X], Y],
        items: Iterable[X],
        *,
        label: str,  # noqa: ARG002
        memory_bytes: int = 0,  # noqa: ARG002
        gpus: float = 0,  # noqa: ARG002
        at_once: int | None = None,  # noqa: ARG002
    ) -> Iterator[tuple[X, Y]]:
        instead: dict[Any, Callable[[Any], Any]] = {
            list_part: self._list,
            stage_unit: self._stage,
            reduce_bucket: self._reduce,
            measure_shard: self._measure,
        }
        return ((item, instead[function](item)) for item in items)

    def _list(self, task: ListTask) -> Listing:
        units, self._listed = (0 if self._listed else self._units), True
        folder = Staging(task.progress).listing(0).parent
        folder.mkdir(parents=True, exist_ok=True)
        for unit in range(units):
            (folder / f"part-{task.number}-{unit}.json").touch()
        return Listing(units, set(_class_names()), Counter({"train": self._rows}))

    def _stage(self, task: UnitTask) -> tuple[int, int]:
        staging = Staging(task.progress)
        reason, count = ("truncated", "zero_byte")[task.unit % 2], _REJECTED_OF_UNIT
        rows = [(f"{task.unit}/{it}.jpg", reason, "the file ends early") for it in range(count)]
        rejected = write_rejections(staging.unit_rejections(task.unit), rows)
        stored = {"rows": {"train": UNIT_ROWS}, "bytes": {"train": UNIT_ROWS * ROW_BYTES}}
        _write(staging.unit(task.unit), stored | {"rejected": rejected})
        return UNIT_ROWS, count

    def _reduce(self, task: BucketTask) -> int:
        staging = Staging(task.progress)
        content = f"shard {task.bucket}".encode()
        name = f"{hashlib.sha256(content).hexdigest()}.arrow"
        shard = staging.shard(name)
        shard.parent.mkdir(parents=True, exist_ok=True)
        shard.write_bytes(content)
        counts = np.full(CLASSES, self._rows // task.buckets // CLASSES)
        counts[: self._rows // task.buckets % CLASSES] += 1
        histogram = [[label, int(count)] for label, count in enumerate(counts) if count]
        entry = {"name": name, "rows": int(counts.sum()), "bytes": len(content)}
        entry |= {"label_histogram": histogram, "split": task.split, "rejected": {}}
        _write(staging.bucket(task.split, task.bucket, task.buckets), entry)
        return int(counts.sum())

    def _measure(self, task: QualityTask) -> Tally:
        return Tally(np.ones(task.num_classes, np.int64))


def _class_names() -> list[str]:
    return [f"class {number:04d}" for number in range(CLASSES)]


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(canonical_json(value))


def _record(spec: IngestSpec) -> StageRecord:
    key = KeyRecord(kind="ingest", revision=1, fields={}, inputs={}, libraries={}, seed=None)
    nowhere = dict.fromkeys(("python", "platform", "cpu", "hostname", "code_digest"), "")
    environment = Environment.model_validate(
        {**nowhere, "packages": {}, "code_files": {}, "git_commit": None, "git_dirty": None}
    )
    return StageRecord(
        experiment="scale",
        stage="corpus",
        key=key.key(),
        key_record=key,
        spec=spec.dump(),
        input_artifacts={},
        environment=environment,
        run="scale",
        started_at="",
        seconds=0,
        metrics={},
    )

"""The map step: one task prepares one unit of raw files and stages its rows for the reduce step.

Staged rows are sorted by (split, order key), so every later bucket is a contiguous range of them.
A task holds one unit, its stored bytes up to three times, and decodes one image at a time (see
`pipeline.data.images.prepare` for what that takes).
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.files import printable
from pipeline.data.images.prepare import Prepared
from pipeline.data.ingest.isolation import Prepare, preparing
from pipeline.data.ingest.rejections import RejectionRow, write_rejections
from pipeline.data.order import keyed_hash
from pipeline.data.shards.shard_files import row_checksum
from pipeline.data.sources import corpus_of
from pipeline.data.staging import Staging, read_plan, write_json, write_table
from pipeline.data.units import RawImage, Unit
from pipeline.ports import RemoteFiles
from schemas.data import IngestSpec
from schemas.records import RECORD

ORDER_KEY = "order_key"
STORED_BYTES = "stored_bytes"
STAGED = pa.schema(
    [
        pa.field("split", pa.int32()),
        pa.field(ORDER_KEY, pa.uint64()),
        pa.field(STORED_BYTES, pa.int64()),
        *RECORD,
    ]
)

_TEST_SPLIT = "test"
_TRAIN_SPLIT = "train"


@dataclass(frozen=True)
class UnitTask:
    """Names one unit of the build in `progress`."""

    progress: Path
    unit: int
    files: RemoteFiles | None = None
    """Reads sources behind URIs."""


@dataclass(frozen=True)
class _Plan:
    """What holds for all images."""

    spec: IngestSpec
    labels: dict[str, int]


@dataclass
class _Staged:
    """What a unit has come to so far."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    rejections: list[RejectionRow] = field(default_factory=list)


def stage_unit(task: UnitTask) -> tuple[int, int]:
    """Prepare and commit one unit; returns how many images it has, and how many were rejected.

    Raises:
        DataError: If a file cannot be read or has changed since it was listed.
        DiskFullError: If no space is left.
    """
    staging = Staging(task.progress)
    plan = read_plan(staging)
    spec = IngestSpec.parse(plan["spec"])
    unit = wanted(Unit.load(json.loads(staging.listing(task.unit).read_bytes())), plan["chosen"])
    labels = {name: label for label, name in enumerate(plan["classes"])}
    hashes = spec.near_duplicates
    staged = _Staged([], [(printable(r.path), r.reason, r.problem) for r in unit.refused])
    with preparing(staging.begun(task.unit), spec.image, hashes=hashes) as prepare:
        for raw in corpus_of(spec.source, task.files).read(unit):
            _stage_image(raw, prepare, _Plan(spec, labels), staged)
    split_index = {name: index for index, name in enumerate(plan["splits"])}
    _commit(staging, task.unit, staged, split_index)
    return len(unit.members), len(staged.rejections)


def wanted(unit: Unit, classes: list[str]) -> Unit:
    """The unit without the files of classes that are left out."""
    keep = set(classes)
    return replace(
        unit,
        members=tuple(member for member in unit.members if member.class_name in keep),
        refused=tuple(file for file in unit.refused if file.class_name in {*keep, ""}),
    )


def _stage_image(raw: RawImage, prepare: Prepare, plan: _Plan, staged: _Staged) -> None:
    result = prepare(raw.data)
    if not isinstance(result, Prepared):
        staged.rejections.append((raw.source, result.reason, result.message))
        return
    uid = raw.uid or hashlib.sha256(raw.data).digest()[:16]
    row = _record(result, uid, raw.source, plan.labels[raw.class_name])
    row["split"] = _split_of(raw, plan.spec, uid)
    row[ORDER_KEY] = keyed_hash("order", plan.spec.shuffle_seed, uid)
    staged.rows.append(row)


def _record(image: Prepared, uid: bytes, source: str, label: int) -> dict[str, Any]:
    return {
        "uid": uid,
        "image": {"bytes": image.data, "path": None},
        "label": label,
        "width_px": image.width_px,
        "height_px": image.height_px,
        "orig_width_px": image.orig_width_px,
        "orig_height_px": image.orig_height_px,
        "encoding": image.encoding,
        "crc32c": image.checksum,
        "row_crc32c": row_checksum(
            image.checksum,
            uid=uid,
            label=label,
            size_hw=(image.height_px, image.width_px),
            encoding=image.encoding,
            source=source,
        ),
        "phash": image.phash,
        "phash_mirror": image.phash_mirror,
        "thumbnail": image.thumbnail,
        "source": source,
    }


def _split_of(raw: RawImage, spec: IngestSpec, uid: bytes) -> str:
    if spec.split is None:
        return raw.split
    drawn = keyed_hash("split", spec.split.seed, uid) / 2**64
    return _TEST_SPLIT if drawn < spec.split.test_ratio else _TRAIN_SPLIT


def _commit(staging: Staging, unit: int, staged: _Staged, splits: dict[str, int]) -> None:
    """Write the rows, then the sidecar that says they are whole."""
    rows = staged.rows
    rows.sort(key=lambda row: (splits[row["split"]], row[ORDER_KEY], row["uid"], row["source"]))
    counts = Counter(row["split"] for row in rows)
    sizes: Counter[str] = Counter()
    for row in rows:
        row[STORED_BYTES] = len(row["image"]["bytes"])
        sizes[row["split"]] += row[STORED_BYTES]
        row["split"] = splits[row["split"]]
    write_table(staging.staged(unit), pa.Table.from_pylist(rows, schema=STAGED))
    rejected = write_rejections(staging.unit_rejections(unit), staged.rejections)
    write_json(staging.unit(unit), {"rows": counts, "bytes": sizes, "rejected": rejected})

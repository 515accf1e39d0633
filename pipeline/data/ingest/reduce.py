"""The select and reduce steps: one task gathers one bucket of one split from all staged units.

A bucket is a range of the order key, so all copies of an image meet in it. Memory of a task is
about three times the bytes of its bucket; each task opens every staged file once, so the whole
costs units x buckets openings (a corpus beyond tens of terabytes would want two levels of buckets).
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.ingest.known import without_known
from pipeline.data.ingest.mapping import ORDER_KEY, STORED_BYTES
from pipeline.data.ingest.rejections import RejectionRow, write_rejections
from pipeline.data.order import keyed_hash
from pipeline.data.staging import (
    Staging,
    disk_guard,
    publish,
    read_plan,
    read_table,
    scratch_file,
    sha256_of,
    write_arrow,
    write_json,
)
from schemas.records import RECORD, ROWS_PER_BATCH
from schemas.spec import canonical_json

KEY_BITS = 64

Candidate = tuple[int, str, int]
"""Selection hash, uid in hex, bytes of the stored image: sorts by the draw."""


@dataclass(frozen=True)
class BucketTask:
    """Names one bucket of the build in `progress`."""

    progress: Path
    split: str
    bucket: int
    buckets: int
    """A power of two."""


def select_bucket(task: BucketTask) -> dict[int, list[Candidate]]:
    """Label -> the images of the bucket with the smallest selection hashes, copies not counted.

    At most as many of each label as `select.per_class` keeps of the whole split.
    """
    staging = Staging(task.progress)
    plan = read_plan(staging)
    seed, count = plan["spec"]["select"]["seed"], plan["spec"]["select"]["per_class"][task.split]
    rows = _gather(task, ["uid", "label", "source", STORED_BYTES])
    kept = _settle(staging, rows).kept
    drawn: dict[int, list[Candidate]] = {}
    for index in kept.tolist():
        uid = rows["uid"][index].as_py()
        candidate = (keyed_hash("select", seed, uid), uid.hex(), rows[STORED_BYTES][index].as_py())
        drawn.setdefault(rows["label"][index].as_py(), []).append(candidate)
    return {label: sorted(candidates)[:count] for label, candidates in drawn.items()}


def reduce_bucket(task: BucketTask) -> int:
    """Write and commit one shard; returns its rows (a bucket without rows makes no shard).

    Raises:
        DiskFullError: If no space is left.
    """
    staging = Staging(task.progress)
    images: list[bytes] = []
    rows = _gather(task, [name for name in RECORD.names if name != "image"], images)
    settled = _settle(staging, rows)
    kept = _selected(task, rows, settled.kept)
    entry = _write_shard(staging, _shard(rows, images, kept))
    place = task.split, task.bucket, task.buckets
    rejected = write_rejections(staging.bucket_rejections(*place), settled.rejections)
    write_json(staging.bucket(*place), entry | {"split": task.split, "rejected": rejected})
    return int(entry["rows"])


def is_committed(task: BucketTask) -> bool:
    """Whether the bucket's shard is there, whole; reads it, since a damaged one is made again."""
    staging = Staging(task.progress)
    commit = staging.bucket(task.split, task.bucket, task.buckets)
    if not commit.is_file():
        return False
    entry = json.loads(commit.read_bytes())
    shard = staging.shard(entry["name"])
    return not entry["rows"] or (shard.is_file() and sha256_of(shard) == shard.stem)


@dataclass(frozen=True)
class _Settled:
    """The rows of a bucket after copies and contradictions are out, in shard order."""

    kept: NDArray[np.int64]
    rejections: list[RejectionRow]


def _gather(task: BucketTask, columns: list[str], images: list[bytes] | None = None) -> pa.Table:
    """The bucket's rows of every unit, in memory; units follow each other in listing order.

    Stored images go into `images`, where it is given: each is copied once here, and once when all
    are put in order. Arrow would copy them four times, which took longer than writing them.
    """
    staging = Staging(task.progress)
    plan = read_plan(staging)
    split = plan["splits"].index(task.split)
    copies = []
    for unit in range(plan["units"]):
        part = _range_of_unit(read_table(staging.staged(unit)), split, task)
        # `take` copies, so that no task keeps every staged file mapped.
        copies.append(part.select([ORDER_KEY, *columns]).take(pa.array(np.arange(len(part)))))
        if images is not None:
            images += _images(part)
    return pa.concat_tables(copies).combine_chunks()


def _images(part: pa.Table) -> Iterator[bytes]:
    for chunk in part["image"].chunks:
        column = chunk.field("bytes")
        _, bounds, data = column.buffers()
        view = memoryview(data)
        within = np.frombuffer(bounds, np.int32)[column.offset : column.offset + len(column) + 1]
        for start, stop in itertools.pairwise(within.tolist()):
            yield view[start:stop].tobytes()


def _shard(rows: pa.Table, images: list[bytes], kept: NDArray[np.int64]) -> pa.Table:
    """The kept rows in shard order, as they are written."""
    schema = _shard_schema()
    in_order = [images[index] for index in kept.tolist()]
    # `pa.array` would grow its memory as it goes, and copy what it has each time.
    bounds = np.cumsum([0, *map(len, in_order)], dtype=np.int32)
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(b"".join(in_order))]
    data = pa.Array.from_buffers(pa.binary(), len(kept), buffers)
    no_path = pa.array([None] * len(kept), pa.string())
    image = pa.StructArray.from_arrays([data, no_path], fields=list(schema.field("image").type))
    rest = rows.take(pa.array(kept))
    columns = [image if name == "image" else rest[name] for name in schema.names]
    return pa.table(columns, schema=schema)


def _range_of_unit(staged: pa.Table, split: int, task: BucketTask) -> pa.Table:
    splits = staged["split"].to_numpy()
    first, last = np.searchsorted(splits, [split, split + 1])
    keys = staged[ORDER_KEY].to_numpy()[first:last]
    shift = KEY_BITS - (task.buckets.bit_length() - 1)
    begin = np.searchsorted(keys, np.uint64(task.bucket << shift)) if shift < KEY_BITS else 0
    final = task.bucket + 1 == task.buckets
    end = len(keys) if final else np.searchsorted(keys, np.uint64((task.bucket + 1) << shift))
    return staged.slice(int(first + begin), int(end - begin))


def _settle(staging: Staging, rows: pa.Table) -> _Settled:
    """Order the rows by (key, uid, source); drop copies and what is labelled in two ways.

    Where the build adds to a set, the images of that set are dropped, too.
    """
    order = pc.sort_indices(
        rows.select([ORDER_KEY, "uid", "source"]),
        sort_keys=[(ORDER_KEY, "ascending"), ("uid", "ascending"), ("source", "ascending")],
    ).to_numpy()
    order = order.astype(np.int64)
    uids = rows["uid"].to_pylist()
    labels = rows["label"].to_numpy()
    kept: list[int] = []
    rejections: list[RejectionRow] = []
    for group in _groups(order, uids):
        if len({labels[index] for index in group}) > 1:
            rejections += _conflict(rows, group)
            continue
        kept.append(group[0])
        rejections += _copies(rows, group)
    fresh, known = without_known(staging, rows, np.array(kept, np.int64))
    return _Settled(fresh, rejections + known)


def _groups(order: NDArray[np.int64], uids: list[bytes]) -> list[list[int]]:
    """Runs of the ordered rows that are the same image."""
    groups: list[list[int]] = []
    for index in order.tolist():
        if groups and uids[groups[-1][0]] == uids[index]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _conflict(rows: pa.Table, group: list[int]) -> list[RejectionRow]:
    sources = [rows["source"][index].as_py() for index in group]
    message = f"the same bytes stand under several classes: {', '.join(sources[:4])}"
    return [(source, "label_conflict", message) for source in sources]


def _copies(rows: pa.Table, group: list[int]) -> list[RejectionRow]:
    first = rows["source"][group[0]].as_py()
    return [
        (rows["source"][index].as_py(), "duplicate", f"the same bytes as {first}")
        for index in group[1:]
    ]


def _selected(task: BucketTask, rows: pa.Table, kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the kept rows that the draw of `select.per_class` keeps."""
    staging = Staging(task.progress)
    select = read_plan(staging)["spec"]["select"]
    if task.split not in select["per_class"]:
        return kept
    last = json.loads(staging.thresholds.read_bytes())[task.split]
    chosen = []
    for index in kept.tolist():
        uid = rows["uid"][index].as_py()
        label = str(rows["label"][index].as_py())
        if [keyed_hash("select", select["seed"], uid), uid.hex()] <= last[label]:
            chosen.append(index)
    return np.array(chosen, np.int64)


def _write_shard(staging: Staging, shard: pa.Table) -> dict[str, Any]:
    labels, counts = np.unique(shard["label"].to_numpy(), return_counts=True)
    entry: dict[str, Any] = {
        "name": "",
        "rows": len(shard),
        "bytes": 0,
        "label_histogram": [[int(a), int(b)] for a, b in zip(labels, counts, strict=True)],
    }
    if not len(shard):
        return entry
    folder = staging.shard("")
    with scratch_file(folder) as temporary:
        with disk_guard(folder, needed_bytes=shard.nbytes):
            write_arrow(temporary, shard, rows_per_batch=ROWS_PER_BATCH)
        entry["name"] = f"{sha256_of(temporary)}.arrow"
        entry["bytes"] = temporary.stat().st_size
        publish(temporary, staging.shard(entry["name"]))
    return entry


@cache
def _shard_schema() -> pa.Schema:
    """The record, with the note by which Hugging Face `datasets` shows `image` as a picture."""
    features = {
        field.name: {"dtype": str(field.type), "_type": "Value"}
        if field.name != "image"
        else {"_type": "Image"}
        for field in RECORD
    }
    note = canonical_json({"info": {"features": features}})
    # `datasets` knows a picture only where the column may be null.
    fields = [field.with_nullable(True) if field.name == "image" else field for field in RECORD]  # noqa: FBT003
    return pa.schema(fields, metadata={"huggingface": note})

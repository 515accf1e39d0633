"""Finds which of the newly prepared images stand already in the set that they are added to.

One task goes through some shards of the set and keeps what it finds; the reduce step rejects it.

Costs. A task reads the uids of about a million rows of the set, and holds the uids of two million
new images at a time; what it keeps is no larger than the copies themselves.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.ingest.rejections import RejectionRow
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BuildTools, Progress, Staging, read_table, write_table
from schemas.manifest import SHARDS_FOLDER

_KNOWN = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("reason", pa.string()),  # why it was taken out of the set, if it was
    ]
)
_ROWS_PER_TASK = 1 << 20
_UIDS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class KnownTask:
    """Names some shards of a set, and the build whose images are looked for."""

    progress: Path
    dataset: Path
    first: int
    """Place of the first shard in the set's table."""
    last: int
    """One past the place of the last."""
    units: int
    """Of the build."""

    @property
    def out(self) -> Path:
        """What was found."""
        return Staging(self.progress).known / f"{self.first:06d}.arrow"


def find_known(onto: ShardSet, staging: Staging, units: int, tools: BuildTools) -> None:
    """Look through all shards of the set; what an earlier attempt found stays.

    Raises:
        PausedError: If a stop was requested; the next call goes on.
        DiskFullError: If no space is left.
    """
    tasks = [
        KnownTask(staging.root, onto.folder, first, last, units)
        for first, last in _runs(onto.table["rows"].to_numpy())
    ]
    progress = Progress(tools, "looking for images that are known", len(tasks))
    for _, rows in tools.pool.map(look_through, tasks, label="known"):
        progress.finished(rows)


def look_through(task: KnownTask) -> int:
    """Keep what of the new images stands in some shards; returns the rows looked through."""
    data = ShardSet.open(task.dataset)
    shards = data.table.slice(task.first, task.last - task.first)
    if not task.out.is_file():
        parts = [_KNOWN.empty_table()]
        for uids in _new_uids(Staging(task.progress), task.units):
            for name, split in zip(shards["name"], shards["split"], strict=True):
                path = task.dataset / SHARDS_FOLDER / name.as_py()
                parts.append(_found(data, path, split.as_py(), uids))
        write_table(task.out, pa.concat_tables(parts))
    return int(pc.sum(shards["rows"]).as_py() or 0)


def without_known(
    staging: Staging, rows: pa.Table, kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[RejectionRow]]:
    """Those of the kept rows that are new to the set, and the rejections of the others.

    A build that adds to no set has nothing that is known.
    """
    rejections: list[RejectionRow] = []
    for path in sorted(staging.known.glob("*.arrow")):
        known = read_table(path)
        uids = rows["uid"].take(pa.array(kept))
        places = pc.index_in(uids, value_set=known["uid"])
        is_known = places.is_valid().to_numpy()
        found = known.take(places.drop_null())
        rejections += _reject(rows.take(pa.array(kept[is_known])), found)
        kept = kept[~is_known]
    return kept, rejections


def _new_uids(staging: Staging, units: int) -> Iterator[pa.ChunkedArray]:
    """The uids of all staged images, a bounded number at a time."""
    some: list[pa.ChunkedArray] = []
    for unit in range(units):
        some.append(read_table(staging.staged(unit))["uid"])
        if sum(map(len, some)) >= _UIDS_AT_ONCE or unit + 1 == units:
            yield pa.chunked_array([chunk for column in some for chunk in column.chunks])
            some = []


def _found(data: ShardSet, path: Path, split: str, uids: pa.ChunkedArray) -> pa.Table:
    """The rows of one shard that are among the uids, tombstoned ones included."""
    rows = read_table(path).select(["uid", "label", "source"])
    rows = rows.take(pc.indices_nonzero(pc.is_in(rows["uid"], value_set=uids)))
    rows = rows.append_column("split", pa.array([split] * len(rows), pa.string()))
    return rows.append_column("reason", _reasons(data, split, rows["uid"])).cast(_KNOWN)


def _reasons(data: ShardSet, split: str, uids: pa.ChunkedArray) -> pa.Array:
    """Why each image was taken out of the set; null for those that are in it."""
    if data.tombstones is None or not len(uids):
        return pa.nulls(len(uids), pa.string())
    mine = data.tombstones.filter(pc.equal(data.tombstones["split"], split))
    return mine["reason"].take(pc.index_in(uids, value_set=mine["uid"]))


def _reject(rows: pa.Table, known: pa.Table) -> Iterator[RejectionRow]:
    columns = rows["source"], rows["label"], known["source"], known["label"]
    more = zip(*(column.to_pylist() for column in columns), strict=True)
    places = zip(known["split"].to_pylist(), known["reason"].to_pylist(), strict=True)
    for (source, label, other, other_label), (split, reason) in zip(more, places, strict=True):
        where = f"{other} of the split {split} of the set that it was to be added to"
        if label != other_label:
            yield source, "label_conflict", f"the same bytes as {where}, under another class"
        elif reason is not None:
            yield source, "duplicate", f"the same bytes as {where}, taken out there as {reason}"
        else:
            yield source, "duplicate", f"the same bytes as {where}"


def _runs(shard_rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Neighbouring shards of about a million rows: the first, and one past the last."""
    first = total = 0
    for shard, rows in enumerate(shard_rows.tolist()):
        total += rows
        if total >= _ROWS_PER_TASK or shard + 1 == len(shard_rows):
            yield first, shard + 1
            first, total = shard + 1, 0

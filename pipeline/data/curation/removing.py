"""Takes named images out of a shard set: every split, test splits included; nothing is rewritten.

Costs. One task reads the uids and source names of about 260,000 rows; the wanted ones are a file.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.curation.blocks import Blocks, cut
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.shards.tombstones import DerivedSet, without_rows
from pipeline.data.staging import BuildTools, Progress, read_table, write_table
from schemas.curation import RemoveSpec
from schemas.errors import DataError
from schemas.records import TOMBSTONES

REASON = "taken_out"
REMOVE_PIECES = ("uids.arrow", "sources.arrow")
"""All that a removal keeps below its progress folder."""


@dataclass(frozen=True)
class RemoveTask:
    """Names some shards of a split, and what is looked for."""

    progress: Path
    blocks: Blocks
    number: int
    note: str


@dataclass(frozen=True)
class Found:
    """What of the named images a set has."""

    rows: pa.Table
    """Those that are live, as `TOMBSTONES`, in storage order."""
    before: int
    """Images that were taken out before."""
    missing: tuple[str, ...]
    """Names of images that are not in the set."""


def remove_images(
    data: ShardSet, spec: RemoveSpec, *, tools: BuildTools, out: Path
) -> tuple[DerivedSet, Found]:
    """Write a shard set without the images that a spec names.

    Args:
        data: The set that they stand in.
        spec: The images, by uid or by source.
        tools: Pool, progress folder, stop signal and voice.
        out: Folder of the new shard set; its shards are links of the old one's.

    Raises:
        DataError: As `find_images`, or if nothing would be left of a split.
        DiskFullError: If no space is left.
        PausedError: If a stop was requested; the next call begins again.
    """
    found = find_images(data, spec, tools=tools)
    return without_rows(data, found.rows, out=out), found


def find_images(data: ShardSet, spec: RemoveSpec, *, tools: BuildTools) -> Found:
    """Look up the images that a spec names, in every split.

    Raises:
        DataError: If an image is not in the set and the spec does not allow that.
        PausedError: If a stop was requested.
    """
    uids = pa.array([bytes.fromhex(uid) for uid in spec.uids], pa.binary(16))
    wanted = {"uid": uids, "source": pa.array(spec.sources, pa.string())}
    for (name, column), file in zip(wanted.items(), REMOVE_PIECES, strict=True):
        write_table(tools.progress / file, pa.table({name: column}))
    rows = _look_for(data, spec.note, tools)
    before = _named(data.tombstones, wanted)
    missing = _missing(wanted, [rows, before])
    if missing and not spec.allow_missing:
        listed = ", ".join(missing[:5]) + (" and others" if len(missing) > 5 else "")
        raise DataError(
            f"{len(missing)} of the named images are not in the set: {listed}",
            where="uids" if spec.uids else "sources",
            hint="correct the names, or say allow_missing: true",
        )
    return Found(rows, len(before), missing)


def _look_for(data: ShardSet, note: str, tools: BuildTools) -> pa.Table:
    """The live rows that are named, in storage order."""
    splits = [cut(data, split, tools.progress) for split in sorted(data.manifest.splits)]
    tasks = [
        RemoveTask(tools.progress, blocks, number, note)
        for blocks in splits
        for number in range(len(blocks))
    ]
    progress = Progress(tools, "looking for the named images", len(tasks))
    found = [TOMBSTONES.empty_table()]
    for _, (rows, seen) in tools.pool.map(find_named, tasks, label="look"):
        found.append(rows)
        progress.finished(seen)
    return pa.concat_tables(found)


def find_named(task: RemoveTask) -> tuple[pa.Table, int]:
    """The live rows of some shards that are named, as tombstones; and how many were looked at."""
    split = ShardSet.open(task.blocks.dataset).split(task.blocks.split)
    wanted = [read_table(task.progress / file) for file in REMOVE_PIECES]
    named = {table.column_names[0]: table.column(0) for table in wanted}
    parts, seen = [TOMBSTONES.empty_table()], 0
    for shard in range(*task.blocks.bounds[task.number : task.number + 2]):
        rows = split.live_table(shard, ["uid", "source"])
        rows = rows.append_column("row", pa.array(split.live_rows(shard)))
        found = _named(rows, named)
        parts.append(_tombstones(found, split.name, split.shard_names[shard], task.note))
        seen += len(rows)
    return pa.concat_tables(parts), seen


def _tombstones(rows: pa.Table, split: str, shard: str, note: str) -> pa.Table:
    texts = {"split": split, "shard": shard, "reason": REASON, "note": note or None}
    columns = {name: pa.nulls(len(rows), TOMBSTONES.field(name).type) for name in TOMBSTONES.names}
    columns |= {name: pa.array([text] * len(rows), pa.string()) for name, text in texts.items()}
    columns |= {name: rows[name] for name in rows.column_names}
    return pa.table(columns).select(TOMBSTONES.names).cast(TOMBSTONES)


def _named(rows: pa.Table | None, wanted: dict[str, pa.Array]) -> pa.Table:
    """Those of the rows whose uid or source is named."""
    if rows is None:
        return TOMBSTONES.empty_table()
    named = [pc.is_in(rows[name], value_set=column) for name, column in wanted.items()]
    return rows.take(pc.indices_nonzero(pc.or_(*named)))


def _missing(wanted: dict[str, pa.Array], found: list[pa.Table]) -> tuple[str, ...]:
    missing: list[str] = []
    for name, column in wanted.items():
        there = pa.concat_tables([rows.select([name]) for rows in found])[name]
        absent = column.filter(pc.invert(pc.is_in(column, value_set=there)))
        missing += [it.hex() if isinstance(it, bytes) else it for it in absent.to_pylist()]
    return tuple(missing)

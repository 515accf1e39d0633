"""What a filter removes of one block, as the rows of its table of tombstones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.curation.blocks import Block, Blocks
from pipeline.data.curation.judging import NO_TEST, first_of_each_row
from pipeline.data.curation.matching import Bools, Int64s
from pipeline.data.staging import read_table, write_table
from schemas.records import TOMBSTONES

REMOVALS = pa.schema(
    [
        *TOMBSTONES,
        pa.field("place", pa.int32(), nullable=False),  # of the shard in the split
        pa.field("test", pa.int32(), nullable=False),  # place of the test split, or NO_TEST
        pa.field("matched_place", pa.int32()),  # where the matched image is: shard of its split
        pa.field("matched_row", pa.int64()),  # in that shard
        pa.field("other_label", pa.bool_(), nullable=False),  # than its near duplicate's
    ]
)
"""One removed row each, in storage order."""


@dataclass(frozen=True)
class DescribeTask:
    """Names a block, what was found of it, and what the sets are called."""

    blocks: Blocks
    number: int
    found: tuple[Path, ...]
    """Tables of matches."""
    tests: tuple[Blocks, ...]
    names: tuple[str, ...]
    """Of the test splits, and last of the split itself."""
    out: Path


def describe_block(task: DescribeTask) -> int:
    """Write what is removed of one block, unless that was done; returns the number of rows.

    Raises:
        DiskFullError: If no space is left.
    """
    if not task.out.is_file():
        matches = first_of_each_row(pa.concat_tables([read_table(path) for path in task.found]))
        parts = [REMOVALS.empty_table()]
        keys = matches.select(["test", "block"]).group_by(["test", "block"]).aggregate([])
        for key in keys.to_pylist():
            mine = _equal(matches["test"], key["test"]) & _equal(matches["block"], key["block"])
            parts.append(_describe(task, matches.filter(pa.array(mine)), **key))
        rows = pa.concat_tables(parts)
        order = np.lexsort((rows["row"].to_numpy(), rows["place"].to_numpy()))
        write_table(task.out, rows.take(pa.array(order)))
    return len(read_table(task.out))


def _equal(column: pa.ChunkedArray, value: int | None) -> Bools:
    same = column.is_null() if value is None else pc.fill_null(pc.equal(column, value), False)  # noqa: FBT003
    equal: Bools = same.to_numpy()
    return equal


def _describe(task: DescribeTask, matches: pa.Table, *, test: int, block: int | None) -> pa.Table:
    """The rows of one block that repeat images of one other block, or none."""
    ours, rows = Block(task.blocks, task.number), matches["row"].to_numpy()
    columns = {
        "uid": ours.table["uid"].take(pa.array(rows)),
        "split": pa.array([task.blocks.split] * len(rows), pa.string()),
        "shard": ours.shard_names(rows),
        "row": pa.array(ours.places[1][rows]),
        "source": ours.columns(["source"], rows)["source"],
        "reason": matches["reason"],
        "hamming_bits": matches["hamming_bits"],
        "thumbnail_difference": matches["thumbnail_difference"],
        "cosine": matches["cosine"],
        "place": pa.array(ours.places[0][rows].astype(np.int32)),
        "test": matches["test"],
        "other_label": pa.array(np.zeros(len(rows), np.bool_)),
    }
    if block is not None:
        theirs = Block(task.blocks if test == NO_TEST else task.tests[test], block)
        columns |= _matched(theirs, matches["keeper"].to_numpy(), task.names[test])
        columns["other_label"] = _other_labels(ours, rows, theirs, matches)
    none = {field.name: pa.nulls(len(rows), field.type) for field in REMOVALS}
    return pa.table({**none, **columns}).select(REMOVALS.names).cast(REMOVALS)


def _matched(theirs: Block, keeper: Int64s, name: str) -> dict[str, object]:
    return {
        "matched_set": pa.array([name] * len(keeper), pa.string()),
        "matched_uid": theirs.table["uid"].take(pa.array(keeper)),
        "matched_source": theirs.columns(["source"], keeper)["source"],
        "matched_place": pa.array(theirs.places[0][keeper].astype(np.int32)),
        "matched_row": pa.array(theirs.places[1][keeper]),
    }


def _other_labels(ours: Block, rows: Int64s, theirs: Block, matches: pa.Table) -> pa.Array:
    """Which near duplicates have another label; other sets have labels of their own."""
    keeper = matches["keeper"].to_numpy()
    differ = ours.table["label"].to_numpy()[rows] != theirs.table["label"].to_numpy()[keeper]
    within = matches["test"].to_numpy() == NO_TEST
    return pa.array(differ & within)

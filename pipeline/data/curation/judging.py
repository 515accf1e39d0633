"""Finds the rows of one block that a filter removes, each row judged for itself.

Copies of test images, exactly (same uid) or nearly (`.matching`), and images that the quality rules
refuse. A task holds one block and looks through all blocks of the test splits, one at a time. Rows
without a hash are compared exactly only.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.curation.blocks import Block, Blocks
from pipeline.data.curation.matching import Bools, Int64s, Limits, Pairs, Skip, near_pairs
from pipeline.data.staging import write_table
from schemas.curation import QualitySpec

NO_TEST = -1
"""`test` of a match within the split, and of a row that repeats nothing."""
MATCHES = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),  # of the block
        pa.field("reason", pa.string(), nullable=False),
        pa.field("test", pa.int32(), nullable=False),  # place of the test split, or NO_TEST
        pa.field("block", pa.int32()),  # where the image is that it repeats
        pa.field("keeper", pa.int64()),  # row of that block
        pa.field("hamming_bits", pa.int32()),
        pa.field("thumbnail_difference", pa.float32()),
        pa.field("cosine", pa.float32()),
    ]
)
"""One judgement of one row: at most one for each test split, and one for all quality rules."""

_HITS = pa.schema([("test", pa.int32()), ("block", pa.int32()), ("keeper", pa.int64())])
_AT_ONCE = 4096
_APART = ("exact_copy", "near_copy", "alike_copy")
"""Kinds of copies, the surest first."""

Nearness = tuple[Int64s, NDArray[np.float32], NDArray[np.float32]] | None


@dataclass(frozen=True)
class JudgeTask:
    """Names a block, and by what it is judged."""

    blocks: Blocks
    number: int
    tests: tuple[Blocks, ...]
    limits: Limits
    min_cosine: float | None
    """From which on features are alike; None: they are not compared."""
    quality: QualitySpec | None
    out: Path
    hits: Path
    """Where the test images that have a copy are listed."""


@dataclass
class Found:
    """The first match of each row of a block, as far as it was compared; parallel to its rows."""

    block: Int64s
    """-1: none yet."""
    keeper: Int64s
    hamming_bits: Int64s
    """-1: not compared."""
    difference: NDArray[np.float32]
    """NaN: not compared."""
    cosine: NDArray[np.float32]
    """NaN: not compared."""

    @classmethod
    def nothing(cls, rows: int) -> "Found":
        """For so many rows."""
        none, nothing = np.full(rows, -1, np.int64), np.full(rows, np.nan, np.float32)
        return cls(none, none.copy(), none.copy(), nothing, nothing.copy())

    def note(self, rows: Int64s, keeper: Int64s, *, block: int, nearness: Nearness = None) -> None:
        """Enter matches of rows that have none; of several matches of one row the first counts.

        `nearness` are the distances in bits, the differences and the cosines of such pairs.
        """
        fresh = np.flatnonzero(self.block[rows] < 0)
        fresh = fresh[np.unique(rows[fresh], return_index=True)[1]]
        self.block[rows[fresh]] = block
        self.keeper[rows[fresh]] = keeper[fresh]
        if nearness is not None:
            self.hamming_bits[rows[fresh]] = nearness[0][fresh]
            self.difference[rows[fresh]] = nearness[1][fresh]
            self.cosine[rows[fresh]] = nearness[2][fresh]

    def note_pairs(self, pairs: Pairs, keepers: Int64s, rows: Int64s, *, block: int) -> None:
        """As `note`; `keepers` and `rows` are those of the blocks that the pairs count."""
        nearness = pairs.hamming_bits, pairs.difference, pairs.cosine
        self.note(rows[pairs.row], keepers[pairs.keeper], block=block, nearness=nearness)

    def table(self, reason: str, set_place: int) -> pa.Table:
        """As judgements."""
        rows = np.flatnonzero(self.block >= 0)
        bits, difference, cosine = (
            values[rows] for values in (self.hamming_bits, self.difference, self.cosine)
        )
        return pa.table(
            [
                pa.array(rows),
                pa.array([reason] * len(rows), pa.string()),
                pa.array(np.full(len(rows), set_place, np.int32)),
                pa.array(self.block[rows].astype(np.int32)),
                pa.array(self.keeper[rows]),
                pa.array(bits.astype(np.int32), mask=bits < 0),
                pa.array(difference, mask=np.isnan(difference)),
                pa.array(cosine, mask=np.isnan(cosine)),
            ],
            schema=MATCHES,
        )


def judge_block(task: JudgeTask) -> int:
    """Judge one block, unless that was done; returns its rows.

    Raises:
        DiskFullError: If no space is left.
    """
    block = Block(task.blocks, task.number)
    if not task.out.is_file():
        parts, hits = [MATCHES.empty_table()], [_HITS.empty_table()]
        for place, tests in enumerate(task.tests):
            found, hit = _against(block, tests, place, task)
            parts += found
            hits += hit
        if task.quality is not None:
            parts.append(_by_quality(block, task.quality))
        write_table(task.hits, pa.concat_tables(hits))
        write_table(task.out, pa.concat_tables(parts))
    return len(block)


def first_of_each_row(judgements: pa.Table) -> pa.Table:
    """One judgement of each row: exact, near, then alike copies, test splits as named, quality."""
    rows = judgements["row"].to_numpy()
    by_quality = judgements["block"].is_null().to_numpy()
    apart = pc.index_in(judgements["reason"], pa.array(_APART)).fill_null(len(_APART)).to_numpy()
    order = np.lexsort((judgements["test"].to_numpy(), apart, by_quality, rows))
    first = np.unique(rows[order], return_index=True)[1]
    return judgements.take(pa.array(order[first]))


def _against(
    block: Block, tests: Blocks, place: int, task: JudgeTask
) -> tuple[list[pa.Table], list[pa.Table]]:
    """Judgements of the block by one test split, and the test images that have a copy."""
    exact, near, alike = (Found.nothing(len(block)) for _ in _APART)
    hits = []
    for number in range(len(tests)):
        keepers = Block(tests, number)
        hit = _note_exact(exact, keepers, block, number)
        skip = Skip(len(keepers.hashed), len(block.hashed))
        for pairs in near_pairs(keepers.side, block.side, task.limits, skip=skip):
            near.note_pairs(pairs, keepers.hashed, block.hashed, block=number)
            hit[keepers.hashed[pairs.keeper]] = True
        if task.min_cosine is not None:
            hit |= _note_alike(alike, keepers, block, number, min_cosine=task.min_cosine)
        hits.append(_hits(hit, place, number))
    near.block[exact.block >= 0] = -1
    alike.block[(exact.block >= 0) | (near.block >= 0)] = -1
    found = zip(_APART, (exact, near, alike), strict=True)
    return [it.table(reason, place) for reason, it in found], hits


def _note_alike(
    found: Found, keepers: Block, rows: Block, number: int, *, min_cosine: float
) -> Bools:
    from pipeline.data.curation.alike import alike_pairs

    hit: Bools = np.zeros(len(keepers), np.bool_)
    skip = Skip(len(keepers), len(rows))
    for pairs in alike_pairs(keepers, rows, min_cosine, skip=skip):
        found.note_pairs(pairs, np.arange(len(keepers)), np.arange(len(rows)), block=number)
        hit[pairs.keeper] = True
    return hit


def _note_exact(found: Found, keepers: Block, rows: Block, number: int) -> Bools:
    ours, theirs = (it.table["uid"].combine_chunks() for it in (rows, keepers))
    places = pc.index_in(ours, value_set=theirs)
    matched = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
    found.note(matched, places.drop_null().to_numpy().astype(np.int64), block=number)
    hit: Bools = pc.is_in(theirs, value_set=ours).to_numpy(zero_copy_only=False)
    return hit


def _hits(hit: Bools, place: int, number: int) -> pa.Table:
    keeper = np.flatnonzero(hit)
    columns = [np.full(len(keeper), place, np.int32), np.full(len(keeper), number, np.int32)]
    return pa.table([*map(pa.array, columns), pa.array(keeper)], schema=_HITS)


def _by_quality(block: Block, rules: QualitySpec) -> pa.Table:
    """Judgements by the first rule that a row breaks."""
    reason = np.full(len(block), "", dtype="U16")
    for word, broken in _broken(block, rules).items():
        reason[broken & (reason == "")] = word
    bad = np.flatnonzero(reason != "")
    columns = {
        "row": pa.array(bad),
        "reason": pa.array(reason[bad].tolist(), pa.string()),
        "test": pa.array(np.full(len(bad), NO_TEST, np.int32)),
    }
    none = {name: pa.nulls(len(bad), MATCHES.field(name).type) for name in MATCHES.names}
    return pa.table({**none, **columns}, schema=MATCHES)


def _broken(block: Block, rules: QualitySpec) -> dict[str, Bools]:
    """Reason -> the rows that break the rule."""
    sides = block.columns(["orig_width_px", "orig_height_px"], np.arange(len(block)))
    width, height = (sides[name].to_numpy() for name in sides.column_names)
    short, long = np.minimum(width, height), np.maximum(width, height)
    broken: dict[str, Bools] = {}
    if rules.min_side_px is not None:
        broken["too_small"] = short < rules.min_side_px
    if rules.max_aspect_ratio is not None:
        broken["too_long"] = long > rules.max_aspect_ratio * short
    if rules.min_brightness is None and rules.max_brightness is None:
        return broken
    grey = _brightness(block)
    if rules.min_brightness is not None:
        broken["too_dark"] = grey < rules.min_brightness
    if rules.max_brightness is not None:
        broken["too_bright"] = grey > rules.max_brightness
    return broken


def _brightness(block: Block) -> NDArray[np.float64]:
    """Mean grey level of each row; NaN, which breaks no rule, where there is no thumbnail."""
    grey = np.full(len(block), np.nan)
    for start in range(0, len(block.hashed), _AT_ONCE):
        some = np.arange(start, min(start + _AT_ONCE, len(block.hashed)))
        grey[block.hashed[some]] = block.side.thumbnails.take(some).mean(axis=1)
    return grey

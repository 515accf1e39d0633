"""Near copies within one split: an image goes if it repeats one that stands before it and stays.

So every removed image has a copy that is kept, which is its match; long chains of ever less alike
images do not fall together. The blocks are settled one after the other: those before it are
compared with a block side by side, one task each, then one task settles the block itself.

Costs. With B blocks, B (B + 1) / 2 tasks, each about five seconds at full blocks and evenly spread
hashes: 10^6 rows take one core a minute, 10^7 rows an hour, 10^8 rows four days, divided by the
cores (early blocks wait for each other); a tenth of that with `max_hamming_bits: 3`, which still
finds nearly all copies that were encoded again or resized. A task takes about 100 MB.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.curation.blocks import Block, Blocks
from pipeline.data.curation.judging import NO_TEST, Found
from pipeline.data.curation.matching import Bools, Limits, Pairs, Skip, near_pairs
from pipeline.data.staging import BuildTools, Progress, read_table, write_table

REASON = "near_duplicate"


@dataclass(frozen=True)
class Search:
    """What is looked through, and where the pieces lie."""

    blocks: Blocks
    limits: Limits
    judged: Path
    """Folder of the judgements of each block: what is out already is no copy of anything."""
    folder: Path
    """Of the search's own pieces."""

    def settled(self, number: int) -> Path:
        """The near duplicates of a block."""
        return self.folder / f"{number:06d}.arrow"

    def compared(self, number: int, keepers: int) -> Path:
        """What of a block repeats another."""
        return self.folder / f"{number:06d}-{keepers:06d}.arrow"


@dataclass(frozen=True)
class PairTask:
    """Names two blocks of a search, the second before the first."""

    search: Search
    number: int
    keepers: int


def find_near_duplicates(search: Search, tools: BuildTools) -> None:
    """Settle all blocks; what is settled already stays.

    Raises:
        DiskFullError: If no space is left.
        PausedError: If a stop was requested; the next call goes on.
    """
    count = len(search.blocks)
    progress = Progress(tools, "looking for near duplicates", count * (count + 1) // 2)
    for number in range(count):
        tasks = [PairTask(search, number, keepers) for keepers in range(number)]
        for _, images in tools.pool.map(compare_blocks, tasks, label="compare"):
            progress.finished(images)
        for _, images in tools.pool.map(settle_block, [(search, number)], label="settle"):
            progress.finished(images)


def compare_blocks(task: PairTask) -> int:
    """Find what of a block repeats images that stay in an earlier one; returns its rows."""
    search = task.search
    rows = Block(search.blocks, task.number)
    path = search.compared(task.number, task.keepers)
    if not path.is_file():
        keepers = Block(search.blocks, task.keepers)
        skip = Skip(len(keepers.hashed), len(rows.hashed))
        skip.keepers |= _gone(search, task.keepers, keepers)[keepers.hashed]
        skip.rows |= _judged(search, task.number, rows)[rows.hashed]
        found = Found.nothing(len(rows))
        for pairs in near_pairs(keepers.side, rows.side, search.limits, skip=skip):
            found.note_pairs(pairs, keepers, rows, block=task.keepers)
            skip.rows[pairs.row] = True
        write_table(path, found.table(REASON, NO_TEST))
    return len(rows)


def settle_block(task: tuple[Search, int]) -> int:
    """Decide on a block: matches with earlier blocks first, then within; returns its rows."""
    search, number = task
    block = Block(search.blocks, number)
    path = search.settled(number)
    if not path.is_file():
        found = Found.nothing(len(block))
        for keepers in range(number):
            _note_table(found, read_table(search.compared(number, keepers)))
        out = _judged(search, number, block) | (found.block >= 0)
        skip = Skip(len(block.hashed), len(block.hashed), within=True)
        skip.keepers |= out[block.hashed]
        skip.rows |= out[block.hashed]
        for pairs in near_pairs(block.side, block.side, search.limits, skip=skip):
            _note_within(found, pairs, block, number=number, skip=skip)
        write_table(path, found.table(REASON, NO_TEST))
    return len(block)


def _note_within(found: Found, pairs: Pairs, block: Block, *, number: int, skip: Skip) -> None:
    """Go through the keepers in order; one that went as a copy of another keeps nothing."""
    starts = np.flatnonzero(np.diff(pairs.keeper, prepend=-1))
    for members in np.split(np.arange(len(pairs.keeper)), starts[1:]):
        if skip.keepers[pairs.keeper[members[0]]]:
            continue
        fresh = pairs.take(members[~skip.rows[pairs.row[members]]])
        found.note_pairs(fresh, block, block, block=number)
        skip.keepers[fresh.row] = skip.rows[fresh.row] = True


def _note_table(found: Found, matches: pa.Table) -> None:
    names = ("row", "block", "keeper", "hamming_bits", "thumbnail_difference")
    row, block, keeper, bits, difference = (matches[name].to_numpy() for name in names)
    if len(row):
        found.note(row, keeper, block=int(block[0]), nearness=(bits, difference))


def _judged(search: Search, number: int, block: Block) -> Bools:
    """Rows of a block that are out for other reasons."""
    return _mask(search.judged / f"{number:06d}.arrow", len(block))


def _gone(search: Search, number: int, block: Block) -> Bools:
    """Rows of a settled block that do not stay."""
    return _judged(search, number, block) | _mask(search.settled(number), len(block))


def _mask(path: Path, rows: int) -> Bools:
    out = np.zeros(rows, np.bool_)
    out[read_table(path)["row"].to_numpy()] = True
    return out

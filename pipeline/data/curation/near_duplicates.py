"""Copies within one split: an image goes if it repeats one that stands before it and stays.

What repeats another is told by a finder: near copies by hash and thumbnail, or alike features.

So every removed image has a copy that is kept, which is its match; long chains of ever less alike
images do not fall together. The blocks are settled one after the other: those before it are
compared with a block side by side, one task each, then one task settles the block itself.

Costs, of hashes (those of features stand in `.alike`). With B blocks, B (B + 1) / 2 tasks, each
about five seconds at full blocks and evenly spread hashes: 10^6 rows take one core a minute, 10^7
rows an hour, 10^8 rows four days, divided by the cores (early blocks wait for each other); a tenth
of that with `max_hamming_bits: 3`, which still finds nearly all copies that were encoded again or
resized. A task takes about 100 MB.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipeline.data.curation.blocks import Block, Blocks
from pipeline.data.curation.judging import NO_TEST, Found
from pipeline.data.curation.matching import Bools, Int64s, Limits, Pairs, Skip, near_pairs
from pipeline.data.staging import BuildTools, Progress, read_table, write_table


class Finder(Protocol):
    """Tells which rows of two blocks repeat each other; picklable."""

    @property
    def reason(self) -> str:
        """Why such a row goes."""
        ...

    def compared(self, block: Block) -> Int64s:
        """Rows of a block that can be compared; pairs count them from 0."""
        ...

    def pairs(self, keepers: Block, rows: Block, skip: Skip) -> Iterator[Pairs]:
        """Copies in pieces, keepers rising, except those that `skip` rules out when asked."""
        ...


@dataclass(frozen=True)
class NearFinder:
    """Near copies, by hash and thumbnail."""

    limits: Limits
    reason: str = "near_duplicate"

    def compared(self, block: Block) -> Int64s:
        """Those that have a hash."""
        return block.hashed

    def pairs(self, keepers: Block, rows: Block, skip: Skip) -> Iterator[Pairs]:
        """See `near_pairs`."""
        return near_pairs(keepers.side, rows.side, self.limits, skip=skip)


@dataclass(frozen=True)
class AlikeFinder:
    """Images with alike features."""

    min_cosine: float
    reason: str = "alike_duplicate"

    def compared(self, block: Block) -> Int64s:
        """All."""
        return np.arange(len(block))

    def pairs(self, keepers: Block, rows: Block, skip: Skip) -> Iterator[Pairs]:
        """See `alike_pairs`."""
        from pipeline.data.curation.alike import alike_pairs

        return alike_pairs(keepers, rows, self.min_cosine, skip=skip)


@dataclass(frozen=True)
class Search:
    """What is looked through, and where the pieces lie."""

    blocks: Blocks
    finder: Finder
    decided: tuple[Path, ...]
    """Folders of earlier decisions on each block: what is out already is no copy of anything."""
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
    label = f"looking for {search.finder.reason.replace('_', ' ')}s"
    progress = Progress(tools, label, count * (count + 1) // 2)
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
        keepers, finder = Block(search.blocks, task.keepers), search.finder
        kept, looked = finder.compared(keepers), finder.compared(rows)
        skip = Skip(len(kept), len(looked))
        skip.keepers |= _gone(search, task.keepers, keepers)[kept]
        skip.rows |= _decided(search, task.number, rows)[looked]
        found = Found.nothing(len(rows))
        for pairs in finder.pairs(keepers, rows, skip):
            found.note_pairs(pairs, kept, looked, block=task.keepers)
            skip.rows[pairs.row] = True
        write_table(path, found.table(finder.reason, NO_TEST))
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
        out = _decided(search, number, block) | (found.block >= 0)
        looked = search.finder.compared(block)
        skip = Skip(len(looked), len(looked), within=True)
        skip.keepers |= out[looked]
        skip.rows |= out[looked]
        for pairs in search.finder.pairs(block, block, skip):
            _note_within(found, pairs, looked, number=number, skip=skip)
        write_table(path, found.table(search.finder.reason, NO_TEST))
    return len(block)


def _note_within(found: Found, pairs: Pairs, looked: Int64s, *, number: int, skip: Skip) -> None:
    """Go through the keepers in order; one that went as a copy of another keeps nothing."""
    starts = np.flatnonzero(np.diff(pairs.keeper, prepend=-1))
    for members in np.split(np.arange(len(pairs.keeper)), starts[1:]):
        if skip.keepers[pairs.keeper[members[0]]]:
            continue
        fresh = pairs.take(members[~skip.rows[pairs.row[members]]])
        found.note_pairs(fresh, looked, looked, block=number)
        skip.keepers[fresh.row] = skip.rows[fresh.row] = True


def _note_table(found: Found, matches: pa.Table) -> None:
    row, block, keeper = (matches[name].to_numpy() for name in ("row", "block", "keeper"))
    bits = matches["hamming_bits"].fill_null(-1).to_numpy().astype(np.int64)
    difference, cosine = (
        matches[name].to_numpy().astype(np.float32) for name in ("thumbnail_difference", "cosine")
    )
    if len(row):
        found.note(row, keeper, block=int(block[0]), nearness=(bits, difference, cosine))


def _decided(search: Search, number: int, block: Block) -> Bools:
    """Rows of a block that are out for other reasons."""
    out = np.zeros(len(block), np.bool_)
    for folder in search.decided:
        out |= _mask(folder / f"{number:06d}.arrow", len(block))
    return out


def _gone(search: Search, number: int, block: Block) -> Bools:
    """Rows of a settled block that do not stay."""
    return _decided(search, number, block) | _mask(search.settled(number), len(block))


def _mask(path: Path, rows: int) -> Bools:
    out = np.zeros(rows, np.bool_)
    out[read_table(path)["row"].to_numpy()] = True
    return out

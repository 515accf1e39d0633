"""Removes rows of one split: copies of test images, poor images, near copies of each other.

Three rules in this order, each optional: what also stands in the test splits, exactly (same uid),
nearly, or by alike features; what the quality rules refuse; and, of what is left, copies of each
other, first near ones, then alike ones. Test splits
are read and never changed. The result is a new manifest over the same shards and a table of removed
rows, each with its reason and its match (`pipeline.data.shards.tombstones`).

Near copies: perceptual hashes of the image or its mirror at most `max_hamming_bits` apart,
confirmed on the thumbnails. Rows without a hash (sides below 32 px, or hashes off at ingest) are
compared exactly only, and counted. Alike features: those of a model, where a stage has computed
them (`.alike`).

Costs. Tasks work on blocks of about 260,000 rows (`.blocks`), so their memory is bounded: about
100 MB. On disk, 44 bytes for each row while it lasts. The driver holds the removed rows,
300 bytes each, and one bit of each test image that has a copy. Time: for each block, a few seconds
for each 260,000 test images; near copies within the split grow with the square of it
(`.near_duplicates`). What was finished before a stop or a crash is not done again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.curation.blocks import BLOCK_ROWS, Blocks, cut, write_block
from pipeline.data.curation.judging import JudgeTask, judge_block
from pipeline.data.curation.matching import Limits
from pipeline.data.curation.near_duplicates import (
    AlikeFinder,
    NearFinder,
    Search,
    find_near_duplicates,
)
from pipeline.data.curation.removals import REMOVALS, DescribeTask, describe_block
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.shards.tombstones import DerivedSet, reasons, without_rows
from pipeline.data.staging import BuildTools, Progress, read_table
from schemas.curation import FilterSpec
from schemas.errors import DataError
from schemas.report import TestCopiesRow

FILTER_PIECES = ("blocks", "judged", "near", "alike", "removed")
"""All that a filter keeps below its progress folder."""


@dataclass(frozen=True)
class NamedSplit:
    """A split, and what it is called: `STAGE@SPLIT`."""

    name: str
    data: ShardSet
    split: str
    features: Path | None = None
    """A table of the features of its live rows, where features are compared."""


@dataclass(frozen=True)
class FilterResult:
    """A sealed shard set with fewer live rows."""

    derived: DerivedSet
    removals: pa.Table
    """What this filter removed, in storage order: `pipeline.data.curation.removals.REMOVALS`."""
    reasons: dict[str, int]
    """Reason -> rows removed."""
    tests: tuple[TestCopiesRow, ...]
    """In the order of `against`."""
    not_comparable: int
    """Live rows without a hash, which only the exact search can find."""
    other_label: int
    """Near duplicates with another label than the image that stays."""


def filter_split(
    cleaned: NamedSplit,
    against: Sequence[NamedSplit],
    spec: FilterSpec,
    *,
    tools: BuildTools,
    out: Path,
    block_rows: int = BLOCK_ROWS,
) -> FilterResult:
    """Write a shard set without the rows of one split that a spec's rules remove.

    Args:
        cleaned: The one split that may lose rows.
        against: Where the images stand that must not be in it.
        spec: The rules.
        tools: Pool, progress folder, stop signal and voice.
        out: Folder of the new shard set; its shards are links of the old one's.
        block_rows: About so many rows are searched by one task; the result is the same for any.

    Raises:
        DataError: If a split does not exist, or nothing of the data is left.
        PausedError: If a stop was requested; the next call goes on.
        DiskFullError: If no space is left.
    """
    work = _Work(cleaned, tuple(against), spec, tools=tools, block_rows=block_rows)
    work.prepare()
    work.judge()
    for search in work.searches:
        find_near_duplicates(search, tools)
    removals = work.describe()
    if len(removals) == cleaned.data.manifest.splits[cleaned.split].rows:
        raise DataError(f"no image of {cleaned.name} would be left: {reasons(removals)}")
    others = [test.data.digest for test in against]
    return FilterResult(
        derived=without_rows(cleaned.data, removals, out=out, others=others),
        removals=removals,
        reasons=dict(reasons(removals)),
        tests=work.test_copies(),
        not_comparable=work.not_comparable(),
        other_label=pc.sum(removals["other_label"]).as_py() or 0,
    )


class _Work:
    """One filter at work: its blocks, and the pieces in the progress folder."""

    def __init__(
        self,
        cleaned: NamedSplit,
        against: tuple[NamedSplit, ...],
        spec: FilterSpec,
        *,
        tools: BuildTools,
        block_rows: int,
    ) -> None:
        self._spec = spec
        self._tools = tools
        self._against = against
        self._names = (*(test.name for test in against), cleaned.name)
        folder = tools.progress / "blocks"
        self._blocks = _cut(cleaned, folder / "data", block_rows)
        self._tests = tuple(
            _cut(test, folder / f"test-{place}", block_rows) for place, test in enumerate(against)
        )
        self._limits = Limits(
            spec.max_hamming_bits, spec.max_thumbnail_difference, spec.max_relative_difference
        )
        self.searches = self._searches()

    def _searches(self) -> tuple[Search, ...]:
        """For copies within the split, one after the other."""
        if self._spec.near_duplicates is None:
            return ()
        judged, near, alike = (self._piece(name) for name in ("judged", "near", "alike"))
        first = Search(self._blocks, NearFinder(self._limits), (judged,), near)
        if self._spec.min_cosine is None:
            return (first,)
        finder = AlikeFinder(self._spec.min_cosine)
        return first, Search(self._blocks, finder, (judged, near), alike)

    def prepare(self) -> None:
        """Write the blocks."""
        series = (self._blocks, *self._tests)
        tasks = [(blocks, number) for blocks in series for number in range(len(blocks))]
        progress = Progress(self._tools, "reading hashes", len(tasks))
        for _, rows in self._tools.pool.map(write_block, tasks, label="index"):
            progress.finished(rows)

    def judge(self) -> None:
        """Find copies of test images, and what the quality rules refuse."""
        tasks = [self._judge_task(number) for number in range(len(self._blocks))]
        progress = Progress(self._tools, "judging images", len(tasks))
        for _, rows in self._tools.pool.map(judge_block, tasks, label="judge"):
            progress.finished(rows)

    def describe(self) -> pa.Table:
        """All removed rows, in storage order."""
        tasks = [self._describe_task(number) for number in range(len(self._blocks))]
        for _ in self._tools.pool.map(describe_block, tasks, label="describe"):
            pass
        parts = [read_table(task.out) for task in tasks]
        return pa.concat_tables([REMOVALS.empty_table(), *parts])

    def test_copies(self) -> tuple[TestCopiesRow, ...]:
        """What was found of each test split, from the pieces of all blocks."""
        tasks = [self._judge_task(number) for number in range(len(self._blocks))]
        removed = np.zeros(len(self._tests), np.int64)
        for task in tasks:
            sets = read_table(task.out)["test"].to_numpy()
            removed += np.bincount(sets[sets >= 0], minlength=len(removed))
        hits = [read_table(task.hits) for task in tasks]
        unique = pa.concat_tables(hits).group_by(["test", "block", "keeper"]).aggregate([])
        found = np.bincount(unique["test"].to_numpy(), minlength=len(removed))
        return tuple(
            TestCopiesRow(
                test_set=test.name,
                found=int(found[place]),
                images=test.data.manifest.splits[test.split].rows,
                removed=int(removed[place]),
            )
            for place, test in enumerate(self._against)
        )

    def not_comparable(self) -> int:
        """Live rows of the split without a hash."""
        numbers = range(len(self._blocks))
        return sum(read_table(self._blocks.file(n))["phash"].null_count for n in numbers)

    def _judge_task(self, number: int) -> JudgeTask:
        return JudgeTask(
            blocks=self._blocks,
            number=number,
            tests=self._tests,
            limits=self._limits,
            min_cosine=self._spec.min_cosine,
            quality=self._spec.quality,
            out=self._piece("judged") / f"{number:06d}.arrow",
            hits=self._piece("judged") / f"{number:06d}-tests.arrow",
        )

    def _describe_task(self, number: int) -> DescribeTask:
        found = [self._judge_task(number).out]
        found += [search.settled(number) for search in self.searches]
        return DescribeTask(
            blocks=self._blocks,
            number=number,
            found=tuple(found),
            tests=self._tests,
            names=self._names,
            out=self._piece("removed") / f"{number:06d}.arrow",
        )

    def _piece(self, name: str) -> Path:
        return self._tools.progress / name


def _cut(of: NamedSplit, folder: Path, rows: int) -> Blocks:
    return cut(of.data, of.split, folder, rows=rows, features=of.features)

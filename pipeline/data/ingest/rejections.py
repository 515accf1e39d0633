"""Rejections on disk: each piece of work writes its own, sorted; sealing merges them.

Whoever builds holds counts and one example for each reason. Merging holds one batch of each of at
most 64 files; more files than that are merged in rounds, on disk.
"""

import heapq
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.staging import committing, sha256_of
from schemas.records import REJECTIONS

RejectionRow = tuple[str, str, str]
"""Source, reason, message."""

_FILES_AT_ONCE = 64
_ROWS_PER_BATCH = 1024


@dataclass
class Tally:
    """How many files were rejected for which reason, and one of them for each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Rejected files."""
        return sum(self.counts.values())

    def add(self, reason: str, source: str, count: int = 1) -> None:
        """Count rejections; of all examples the one that sorts first is kept."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.examples[reason] = min(source, self.examples.get(reason, source))

    def merge(self, summary: dict[str, Any]) -> None:
        """Add what `summary` of another tally gave."""
        for reason, (count, source) in summary.items():
            self.add(reason, source, count)

    def summary(self) -> dict[str, Any]:
        """Plain data, ready for JSON: reason -> count and example."""
        return {
            reason: [count, self.examples[reason]] for reason, count in sorted(self.counts.items())
        }


def write_rejections(path: Path, rows: Iterable[RejectionRow]) -> dict[str, Any]:
    """Commit the rejections of one piece of work, sorted; returns their summary.

    A piece without any has no file.
    """
    tally = Tally()
    ordered = sorted(rows)
    for source, reason, _ in ordered:
        tally.add(reason, source)
    if ordered:
        _write(path, ordered)
    return tally.summary()


def merge_rejections(files: Sequence[Path], out: Path, *, scratch: Path) -> str:
    """Merge sorted files into one; returns its sha256 in hex.

    Args:
        files: What `write_rejections` wrote; files that are not there have no rejections.
        out: Where the merged table goes.
        scratch: Folder for what is merged in between; nothing is left there.
    """
    runs = [file for file in files if file.is_file()]
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".merge-") as folder:
        numbers = itertools.count()
        while len(runs) > _FILES_AT_ONCE:
            now, runs = runs[:_FILES_AT_ONCE], runs[_FILES_AT_ONCE:]
            runs.append(Path(folder, f"{next(numbers)}.arrow"))
            _write(runs[-1], _merged(now))
        return _write(out, _merged(runs))


def _merged(files: Sequence[Path]) -> Iterator[RejectionRow]:
    return heapq.merge(*[_rows(file) for file in files])


def _rows(file: Path) -> Iterator[RejectionRow]:
    with pa.memory_map(str(file)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            columns = [column.to_pylist() for column in reader.get_batch(number).columns]
            yield from zip(*columns, strict=True)


def _write(path: Path, rows: Iterable[RejectionRow]) -> str:
    with committing(path) as temporary:
        with (
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, REJECTIONS) as writer,
        ):
            left = iter(rows)
            while some := list(itertools.islice(left, _ROWS_PER_BATCH)):
                columns = [pa.array(column, pa.string()) for column in zip(*some, strict=True)]
                writer.write_batch(pa.record_batch(columns, schema=REJECTIONS))
        return sha256_of(temporary)

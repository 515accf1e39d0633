"""The table of shards and that of removed rows, read where they are mapped.

A set may have hundreds of thousands of shards: nothing here makes a Python object for each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.order import Int64s, Removed
from pipeline.data.staging import read_table


class Names(Sequence[str]):
    """File names of shards; stays in the mapped table until a name is asked for."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        """`column` is `name` of the split's part of the shard table."""
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        """One name, or some."""
        if isinstance(index, slice):
            some: list[str] = self.column.take(pa.array(np.arange(len(self))[index])).to_pylist()
            return some
        name: str = self.column[index].as_py()
        return name

    def __iter__(self) -> Iterator[str]:
        for chunk in self.column.chunks:
            yield from (name.as_py() for name in chunk)


@dataclass(frozen=True)
class SplitShards:
    """The shards of one split."""

    rows: Int64s
    """Of each shard in its file, removed ones included."""
    sizes: Int64s
    """Bytes of each shard file."""
    table: "ShardTable"
    runs: list[tuple[int, int]]
    """Where in the table they are: first, and one behind the last."""

    @cached_property
    def mapped(self) -> pa.Table:
        """Their rows of the table, memory-mapped."""
        whole = self.table.mapped
        runs = [whole.slice(first, last - first) for first, last in self.runs]
        return pa.concat_tables(runs) if runs else whole.slice(0, 0)

    @cached_property
    def names(self) -> Names:
        """The file names."""
        return Names(self.mapped["name"])

    def sha256(self, shard: int) -> str:
        """Of a shard file, in hex."""
        digest: str = self.mapped["sha256"][shard].as_py().hex()
        return digest


class ShardTable:
    """The table of shards of a set.

    Opening copies the small columns out of it, 18 bytes for each shard. The table stays mapped only
    once somebody asks for more: the system maps 64 KiB around every byte that is touched.
    """

    def __init__(self, path: Path) -> None:
        """Read the small columns, batch by batch."""
        self._path = path
        self._splits: dict[str, int] = {}
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            count = reader.num_record_batches
            parts = [self._small_columns(reader.get_batch(index)) for index in range(count)]
            del reader
        empty = np.empty(0, np.int16), np.empty(0, np.int64), np.empty(0, np.int64)
        self._split, self._rows, self._sizes = map(np.concatenate, zip(empty, *parts, strict=True))

    def _small_columns(self, batch: pa.RecordBatch) -> tuple[NDArray[np.int16], Int64s, Int64s]:
        """Number of the split, rows and bytes of some shards."""
        splits = batch["split"].dictionary_encode()
        names = splits.dictionary.to_pylist()
        numbers = [self._splits.setdefault(name, len(self._splits)) for name in names]
        split = np.array(numbers, np.int16)[splits.indices.to_numpy()]
        return split, batch["rows"].to_numpy().copy(), batch["bytes"].to_numpy().copy()

    @cached_property
    def mapped(self) -> pa.Table:
        """All of it, memory-mapped."""
        return read_table(self._path)

    def split(self, name: str) -> SplitShards:
        """The shards of one split, in the order of the table: they come in few runs."""
        mine = self._split == self._splits.get(name, -1)
        edges = np.flatnonzero(np.diff(mine.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
        return SplitShards(
            rows=self._rows[mine],
            sizes=self._sizes[mine],
            table=self,
            runs=[(first, last) for first, last in edges.tolist()],
        )


def count_labels(histograms: pa.ChunkedArray, num_classes: int) -> Int64s:
    """Images of each label, over the label histograms of some shards."""
    counts = np.zeros(num_classes, np.int64)
    for chunk in histograms.chunks:
        first, last = chunk.offsets[0].as_py(), chunk.offsets[-1].as_py()
        labels, images = (it.slice(first, last - first) for it in (chunk.keys, chunk.items))
        np.add.at(counts, labels.to_numpy(), images.to_numpy())
    return counts


def find_removed(tombstones: pa.Table | None, split: str, shards: SplitShards) -> Removed:
    """The removed rows of a split, by the places of their shards; sorted by shard and row."""
    if tombstones is None:
        return Removed(np.empty(0, np.int64), np.empty(0, np.int64))
    mine = tombstones.select(["split", "shard", "row"])
    mine = mine.filter(pc.equal(mine["split"], split))
    # Looked up among the few that lost rows: no table of all shards is made.
    touched = pc.unique(mine["shard"])
    here = pc.index_in(shards.names.column, value_set=touched).to_numpy()
    known = np.flatnonzero(~np.isnan(here))
    place_of = np.empty(len(touched), np.int64)
    place_of[here[known].astype(np.int64)] = known
    places = place_of[pc.index_in(mine["shard"], value_set=touched).to_numpy()]
    rows = mine["row"].to_numpy()
    order = np.lexsort((rows, places))
    return Removed(places[order], rows[order])

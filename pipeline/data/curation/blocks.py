"""Blocks: the live rows of a few neighbouring shards, as small files that searches are made of.

A block names each row's place and holds its uid, label and hashes, 44 bytes in all; thumbnails stay
in the shards and are looked up. A search compares two blocks in one task, so its memory does not
depend on the size of a corpus. The cut into blocks does not change what a search finds.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.curation.matching import Int64s, Side
from pipeline.data.shards.shard_set import ShardSet, Split
from pipeline.data.staging import committing, read_table
from schemas.errors import IntegrityError
from schemas.manifest import SHARDS_FOLDER
from schemas.records import RECORD, ROWS_PER_BATCH, THUMBNAIL_PX

BLOCK_ROWS = 1 << 18
"""About so many rows stand in a block."""
_OPEN_SHARDS = 256
_ROWS = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),  # place in the split
        pa.field("row", pa.int64(), nullable=False),  # in the shard's file
        pa.field("label", pa.int32(), nullable=False),
        pa.field("phash", pa.uint64()),
        pa.field("phash_mirror", pa.uint64()),
    ]
)


@dataclass(frozen=True)
class Blocks:
    """Names all blocks of one split; small and picklable."""

    folder: Path
    """Where their files lie, or will."""
    dataset: Path
    """Folder of the shard set."""
    split: str
    bounds: tuple[int, ...]
    """Place of the first shard of each block in the split, and one past the last."""
    features: Path | None = None
    """A table with `uid` and `features` of every live row of the split, in storage order."""

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.bounds) - 1

    def file(self, number: int) -> Path:
        """The file of a block."""
        return self.folder / f"{number:06d}.arrow"


def cut(
    data: ShardSet,
    split: str,
    folder: Path,
    *,
    rows: int = BLOCK_ROWS,
    features: Path | None = None,
) -> Blocks:
    """Cut a split into blocks of about so many rows; `write_block` makes their files."""
    bounds = tuple(_bounds(data.split(split).shard_rows, rows))
    return Blocks(folder, data.folder, split, bounds, features)


def write_block(task: tuple[Blocks, int]) -> int:
    """Make the file of one block, unless it is there; returns its rows.

    Raises:
        DiskFullError: If no space is left.
    """
    blocks, number = task
    path = blocks.file(number)
    if not path.is_file():
        split = ShardSet.open(blocks.dataset).split(blocks.split)
        with (
            committing(path) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, _ROWS) as writer,
        ):
            for shard in range(*blocks.bounds[number : number + 2]):
                writer.write_table(_live_rows(split, shard))
    return len(read_table(path))


def _live_rows(split: Split, shard: int) -> pa.Table:
    rows = split.live_table(shard, ["uid", "label", "phash", "phash_mirror"])
    columns = {name: rows[name] for name in rows.column_names}
    columns["shard"] = pa.array(np.full(len(rows), shard, np.int32))
    columns["row"] = pa.array(split.live_rows(shard))
    return pa.table([columns[name] for name in _ROWS.names], schema=_ROWS)


class Block:
    """The rows of a block, memory-mapped; rows are numbered from 0 within it."""

    def __init__(self, blocks: Blocks, number: int) -> None:
        """Open a block that was written."""
        self.table = read_table(blocks.file(number))
        self._blocks = blocks
        self._number = number

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.table)

    @cached_property
    def hashed(self) -> Int64s:
        """Rows that have a hash."""
        return np.flatnonzero(self.table["phash"].is_valid().to_numpy())

    @cached_property
    def side(self) -> Side:
        """The rows that have a hash, in their order."""
        some = self.table.select(["phash", "phash_mirror"]).take(pa.array(self.hashed))
        return Side(
            some["phash"].to_numpy(),
            some["phash_mirror"].to_numpy(),
            ShardThumbnails(self, self.hashed),
        )

    @cached_property
    def places(self) -> tuple[Int64s, Int64s]:
        """Shard of the split, and row in its file, of each row."""
        return self.table["shard"].to_numpy().astype(np.int64), self.table["row"].to_numpy()

    @cached_property
    def split(self) -> Split:
        """The split that the block is a part of."""
        return ShardSet.open(self._blocks.dataset).split(self._blocks.split)

    def shard_names(self, rows: Int64s) -> pa.ChunkedArray:
        """File name of the shard of each of the rows."""
        return self.split.shard_names.column.take(pa.array(self.places[0][rows]))

    def columns(self, names: list[str], rows: Int64s) -> pa.Table:
        """Columns of the records of some rows; opens the shards that they stand in."""
        order = np.argsort(rows, kind="stable")
        shards, stored = (places[rows[order]] for places in self.places)
        parts = [
            read_table(self.shard_path(int(shard)))
            .select(names)
            .take(pa.array(stored[shards == shard]))
            for shard in np.unique(shards)
        ]
        none = pa.schema([RECORD.field(name) for name in names]).empty_table()
        return pa.concat_tables(parts).take(pa.array(np.argsort(order))) if parts else none

    def features(self, rows: range) -> NDArray[np.float64]:
        """Features of some rows, [len(rows), width].

        Raises:
            IntegrityError: If the table of features is of other images.
        """
        column = self._features["features"].slice(rows.start, len(rows)).combine_chunks()
        values = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float64)
        return values.reshape(len(rows), -1)

    @cached_property
    def _features(self) -> pa.Table:
        assert self._blocks.features is not None, "asked for only where there are some"  # noqa: S101
        before = (len(read_table(self._blocks.file(number))) for number in range(self._number))
        found = read_table(self._blocks.features).slice(sum(before), len(self))
        if not found["uid"].combine_chunks().equals(self.table["uid"].combine_chunks()):
            raise IntegrityError(f"{self._blocks.features} holds features of other images")
        return found

    def shard_path(self, shard: int) -> Path:
        """File of a shard of the split."""
        return self._blocks.dataset / SHARDS_FOLDER / self.split.shard_names[shard]


class ShardThumbnails:
    """Thumbnails of some rows of a block, as views of their shards; fulfils `Thumbnails`."""

    def __init__(self, block: Block, rows: Int64s) -> None:
        """`rows` of the block have thumbnails; here they are numbered from 0."""
        self._block = block
        self._rows = rows
        self._open: OrderedDict[int, _Views] = OrderedDict()

    def take(self, rows: Int64s) -> NDArray[np.uint8]:
        """Pixels [len(rows), 1024]."""
        shards, stored = (places[self._rows[rows]] for places in self._block.places)
        pixels = np.empty((len(rows), THUMBNAIL_PX**2), np.uint8)
        for shard, batch, members in _groups(shards, stored // ROWS_PER_BATCH):
            view = self._views(shard).batch(batch)
            pixels[members] = view[stored[members] % ROWS_PER_BATCH]
        return pixels

    def _views(self, shard: int) -> "_Views":
        views = self._open.pop(shard, None) or _Views(self._block.shard_path(shard))
        self._open[shard] = views
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return views


class _Views:
    """The thumbnails of one shard, batch by batch, without a copy."""

    def __init__(self, path: Path) -> None:
        self._reader: Any = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches: dict[int, NDArray[np.uint8]] = {}

    def batch(self, index: int) -> NDArray[np.uint8]:
        view = self._batches.get(index)
        if view is None:
            pixels = self._reader.get_batch(index)["thumbnail"].buffers()[1]
            view = np.frombuffer(pixels, np.uint8)
            view = view[: len(view) // THUMBNAIL_PX**2 * THUMBNAIL_PX**2]
            view = self._batches[index] = view.reshape(-1, THUMBNAIL_PX**2)
        return view


def _groups(shards: Int64s, batches: Int64s) -> Iterator[tuple[int, int, Int64s]]:
    """Runs of equal (shard, batch), each with the places where it stands."""
    order = np.lexsort((batches, shards))
    changes = (np.diff(shards[order]) != 0) | (np.diff(batches[order]) != 0)
    for members in np.split(order, np.flatnonzero(changes) + 1):
        if len(members):
            yield int(shards[members[0]]), int(batches[members[0]]), members


def _bounds(shard_rows: Int64s, rows: int) -> Iterator[int]:
    """Where blocks of neighbouring shards begin, and where the last one ends."""
    total = 0
    yield 0
    for shard, count in enumerate(shard_rows.tolist()):
        total += count
        if total >= rows or shard + 1 == len(shard_rows):
            yield shard + 1
            total = 0

"""Reads a shard set: its manifest first, shard files memory-mapped as they are asked for.

Opening costs the table of shards (memory-mapped) and the removed rows, never the images. Every
image read is compared with its record's checksum; `verify` compares whole files with their sha256.
"""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.images.codec import checksum
from pipeline.data.order import ORDER_VERSION, Int64s, Removed
from schemas.errors import DataError, IntegrityError
from schemas.experiment import nearest
from schemas.manifest import (
    MANIFEST_FILE,
    SHARD_TABLE_FILE,
    SHARDS_FOLDER,
    TOMBSTONES_FILE,
    ShardSetManifest,
)
from schemas.records import RECORD, RECORD_VERSION, ROWS_PER_BATCH

_OPEN_SHARDS = 32
"""Files that one split keeps mapped; an epoch's window has four."""


@dataclass(frozen=True)
class Row:
    """One stored image."""

    uid: bytes
    image: bytes
    label: int
    height_px: int
    width_px: int
    source: str


class ShardSet:
    """A dataset on disk; see `schemas.manifest`."""

    def __init__(self, folder: Path, manifest: ShardSetManifest, digest: str) -> None:
        """Use `open`."""
        self.folder = folder
        self.manifest = manifest
        self.digest = digest
        """sha256 of the manifest: what the data is, removed rows included."""

    @classmethod
    def open(cls, folder: Path) -> "ShardSet":
        """Read the manifest and check the small tables against it.

        Raises:
            DataError: If there is no manifest, or it is of another version.
            IntegrityError: If a table is not the one that the manifest names.
        """
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise DataError(f"{folder} holds no shard set: {MANIFEST_FILE} is missing")
        text = path.read_bytes()
        manifest = ShardSetManifest.model_validate_json(text)
        if (manifest.record_version, manifest.order_version) != (RECORD_VERSION, ORDER_VERSION):
            raise DataError(
                f"{folder} has record version {manifest.record_version} and order version "
                f"{manifest.order_version}; this program reads {RECORD_VERSION} and "
                f"{ORDER_VERSION}",
                hint="make the stage again with --force",
            )
        _check_sha256(folder / SHARD_TABLE_FILE, manifest.shard_table_sha256)
        if manifest.tombstones is not None:
            _check_sha256(folder / TOMBSTONES_FILE, manifest.tombstones.sha256)
        return cls(folder, manifest, hashlib.sha256(text).hexdigest())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class of each label."""
        return self.manifest.class_names

    @property
    def order_digest(self) -> str:
        """What keys the order: the stored rows, so that removing some leaves the rest in order."""
        return self.manifest.shard_table_sha256

    @property
    def shards_folder(self) -> Path:
        """Where the shard files are."""
        return self.folder / SHARDS_FOLDER

    @cached_property
    def table(self) -> pa.Table:
        """The table of shards, memory-mapped."""
        return _read_table(self.folder / SHARD_TABLE_FILE)

    @cached_property
    def tombstones(self) -> pa.Table | None:
        """The removed rows, or None."""
        if self.manifest.tombstones is None:
            return None
        return _read_table(self.folder / TOMBSTONES_FILE)

    def split(self, name: str) -> "Split":
        """The live rows of one split.

        Raises:
            DataError: If there is no such split.
        """
        if name not in self.manifest.splits:
            splits = sorted(self.manifest.splits)
            near = nearest(name, splits)
            raise DataError(
                f"there is no split {name!r}; the shard set has {', '.join(splits)}"
                + (f" (did you mean {near!r}?)" if near else "")
            )
        mine = pc.equal(self.table["split"], name)
        return Split(self, name, self.table.filter(mine))

    def verify(self) -> None:
        """Read every byte of every shard.

        Raises:
            IntegrityError: If a file is missing or its sha256 is another; names the file.
        """
        for name, sha256 in zip(
            self.table["name"].to_pylist(), self.table["sha256"].to_pylist(), strict=True
        ):
            _check_sha256(self.shards_folder / name, sha256.hex())


class Split:
    """Rows of one split in storage order; row numbers count live rows only."""

    def __init__(self, owner: ShardSet, name: str, shards: pa.Table) -> None:
        """Use `ShardSet.split`; `shards` are the split's rows of the shard table."""
        self.name = name
        self.class_names = owner.class_names
        self.order_digest = owner.order_digest
        self.shard_names: list[str] = shards["name"].to_pylist()
        self.shard_rows: Int64s = shards["rows"].to_numpy().astype(np.int64)
        """Rows of each shard in the file, removed ones included."""
        self.removed = self._find_removed(owner.tombstones)
        self._files = _ShardFiles(owner.shards_folder, self.shard_names, shards["bytes"].to_numpy())
        self._starts: Int64s = np.concatenate([[0], np.cumsum(self.shard_rows)])
        gone = np.sort(self._starts[self.removed.shard] + self.removed.row)
        self._gaps = gone - np.arange(len(gone))
        self.num_rows = int(self._starts[-1]) - len(gone)

    def locate(self, rows: Int64s) -> tuple[Int64s, Int64s]:
        """Shard and row in it of each live row."""
        stored = rows + np.searchsorted(self._gaps, rows, side="right")
        shard = np.searchsorted(self._starts, stored, side="right") - 1
        return shard, stored - self._starts[shard]

    def row(self, index: int) -> Row:
        """One live row.

        Raises:
            IntegrityError: If its bytes are not what was written.
        """
        shard, row = self.locate(np.array([index]))
        return self.read(int(shard[0]), int(row[0]))

    def read(self, shard: int, row: int) -> Row:
        """The row at a place in the files, as `pipeline.data.order` gives it."""
        return self._files.read(shard, row)

    def refetch(self, shard: int) -> None:
        """Forget what is mapped of a shard, so that the next read goes to the file again."""
        self._files.drop(shard)

    def labels(self) -> Int64s:
        """Label of every live row; reads the label columns only."""
        columns = [self._files.labels(shard) for shard in range(len(self.shard_names))]
        every: Int64s = np.concatenate([np.empty(0, np.int64), *columns])
        shard, row = self.locate(np.arange(self.num_rows))
        live: Int64s = every[self._starts[shard] + row]
        return live

    def live_table(self, shard: int, columns: list[str]) -> pa.Table:
        """Some columns of the live rows of a shard."""
        rows = self._files.reader(shard).read_all().select(columns)
        live = np.ones(len(rows), np.bool_)
        live[self.removed.row[self.removed.shard == shard]] = False
        return rows if live.all() else rows.filter(pa.array(live))

    def subset(self, rows: NDArray[Any]) -> "Subset":
        """The split reduced to some live rows, given in ascending order."""
        return Subset(self, np.asarray(rows, np.int64))

    def _find_removed(self, tombstones: pa.Table | None) -> Removed:
        if tombstones is None:
            return Removed(np.empty(0, np.int64), np.empty(0, np.int64))
        mine = tombstones.filter(pc.equal(tombstones["split"], self.name))
        place = {name: index for index, name in enumerate(self.shard_names)}
        shards = [place[name] for name in mine["shard"].to_pylist()]
        return Removed(np.array(shards, np.int64), mine["row"].to_numpy().astype(np.int64))


class Subset:
    """Some rows of a split, with the split's interface."""

    def __init__(self, parent: Split, rows: Int64s) -> None:
        """Use `Split.subset`."""
        if len(rows) and not (np.diff(rows) > 0).all():
            raise ValueError("rows of a subset are given once each, in ascending order")
        self.name = parent.name
        self.class_names = parent.class_names
        self.order_digest = parent.order_digest
        self.removed = Removed(np.empty(0, np.int64), np.empty(0, np.int64))
        self.num_rows = len(rows)
        self._parent = parent
        self._rows = rows
        self._shard, self._row = parent.locate(rows)
        self.shard_rows: Int64s = np.bincount(self._shard, minlength=len(parent.shard_rows))
        self._starts: Int64s = np.concatenate([[0], np.cumsum(self.shard_rows)])

    def locate(self, rows: Int64s) -> tuple[Int64s, Int64s]:
        """Shard and place among the shard's chosen rows, of each row of the subset."""
        return self._shard[rows], rows - self._starts[self._shard[rows]]

    def row(self, index: int) -> Row:
        """One row of the subset."""
        return self._parent.read(int(self._shard[index]), int(self._row[index]))

    def read(self, shard: int, row: int) -> Row:
        """The `row`-th chosen row of a shard."""
        return self.row(int(self._starts[shard]) + row)

    def refetch(self, shard: int) -> None:
        """As `Split.refetch`."""
        self._parent.refetch(shard)

    def labels(self) -> Int64s:
        """Label of every row of the subset."""
        return self._parent.labels()[self._rows]

    def subset(self, rows: NDArray[Any]) -> "Subset":
        """A subset of the subset; `rows` count within this one, in ascending order."""
        return Subset(self._parent, self._rows[np.asarray(rows, np.int64)])


AnySplit = Split | Subset


class _ShardFiles:
    """The shard files of one split: a few are mapped at a time; safe to use from threads."""

    def __init__(self, folder: Path, names: list[str], sizes: NDArray[Any]) -> None:
        self._folder = folder
        self._names = names
        self._sizes = sizes
        self._lock = threading.Lock()
        self._mapped: OrderedDict[int, _MappedShard] = OrderedDict()

    def read(self, shard: int, row: int) -> Row:
        return self._shard(shard).read(row)

    def labels(self, shard: int) -> Int64s:
        return self._shard(shard).labels()

    def reader(self, shard: int) -> Any:
        return self._shard(shard).reader

    def drop(self, shard: int) -> None:
        with self._lock:
            self._mapped.pop(shard, None)

    def _shard(self, shard: int) -> "_MappedShard":
        with self._lock:
            mapped = self._mapped.get(shard)
            if mapped is None:
                path = self._folder / self._names[shard]
                mapped = self._mapped[shard] = _MappedShard(path, int(self._sizes[shard]))
                if len(self._mapped) > _OPEN_SHARDS:
                    self._mapped.popitem(last=False)
            self._mapped.move_to_end(shard)
            return mapped


class _MappedShard:
    """One memory-mapped shard file and the batches that were touched."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        found = path.stat().st_size if path.is_file() else None
        if found != size_bytes:
            have = "is missing" if found is None else f"has {found} bytes"
            raise IntegrityError(f"{path} {have}; {size_bytes} bytes were written")
        try:
            self.reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowException, OSError) as error:
            raise IntegrityError(f"{path} is not what was written: {error}") from error
        self._batches: dict[int, _Columns] = {}

    def read(self, row: int) -> Row:
        columns = self._batch(row // ROWS_PER_BATCH)
        place = row % ROWS_PER_BATCH
        image = columns.image[place]
        if checksum(image) != columns.crc32c[place]:
            raise IntegrityError(f"row {row} of {self._path} is not what was written")
        return Row(
            uid=columns.uid[place],
            image=image,
            label=int(columns.label[place]),
            height_px=int(columns.height_px[place]),
            width_px=int(columns.width_px[place]),
            source=columns.source[place].decode(),
        )

    def labels(self) -> Int64s:
        count = self.reader.num_record_batches
        return np.concatenate([self._batch(index).label for index in range(count)]).astype(np.int64)

    def _batch(self, index: int) -> "_Columns":
        columns = self._batches.get(index)
        if columns is None:
            try:
                columns = _columns(self.reader.get_batch(index))
            except (pa.ArrowException, OSError) as error:
                raise IntegrityError(f"{self._path} is not what was written: {error}") from error
            self._batches[index] = columns
        return columns


class _Blobs:
    """A column of bytes, as a view of the file."""

    def __init__(self, data: pa.Buffer, bounds: NDArray[np.int32]) -> None:
        self._data = memoryview(data)
        self._bounds = bounds

    def __getitem__(self, place: int) -> bytes:
        return self._data[self._bounds[place] : self._bounds[place + 1]].tobytes()


@dataclass(frozen=True)
class _Columns:
    """What rows are made of, as views of one record batch: Arrow's scalars cost more than a CRC."""

    uid: _Blobs
    image: _Blobs
    label: NDArray[np.int32]
    height_px: NDArray[np.int32]
    width_px: NDArray[np.int32]
    crc32c: NDArray[np.uint32]
    source: _Blobs


def _columns(batch: pa.RecordBatch) -> _Columns:
    batch.validate(full=True)  # a damaged offset must not lead outside the file
    if (batch.schema.names, batch.schema.types) != (RECORD.names, RECORD.types):
        raise pa.ArrowInvalid("its columns are not those of a record")
    columns = {field.name: batch[field.name] for field in fields(_Columns)}
    columns["image"] = columns["image"].field("bytes")
    if any(column.null_count for column in columns.values()):
        raise pa.ArrowInvalid("a value is missing")
    return _Columns(**{name: _view(column) for name, column in columns.items()})


def _view(column: pa.Array) -> Any:
    """The column without a copy; a batch that comes from a file starts where its buffers do."""
    if pa.types.is_primitive(column.type):
        return column.to_numpy()
    if pa.types.is_fixed_size_binary(column.type):
        width = column.type.byte_width
        return _Blobs(column.buffers()[1], np.arange(len(column) + 1, dtype=np.int32) * width)
    _, bounds, data = column.buffers()
    return _Blobs(data, np.frombuffer(bounds, np.int32))


def _read_table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _check_sha256(path: Path, expected: str) -> None:
    if not path.is_file():
        raise IntegrityError(f"{path} is missing")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise IntegrityError(f"{path} is not what was written: its sha256 is {found[:12]}...")

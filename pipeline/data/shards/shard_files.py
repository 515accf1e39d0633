"""The shard files of one split: a few are mapped at a time, and every row read is checked.

Two checksums stand in each row: of the image bytes, and of them together with the columns that
readers deliver (`row_checksum`). So a flipped bit in an image, a label or a uid is found when that
row is read, without reading the rest of its shard.
"""

import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.images.codec import checksum, extend_checksum
from pipeline.data.places import Held, Place
from pipeline.data.shards.cache import CacheFullError
from pipeline.data.shards.shard_table import SplitShards
from schemas.errors import DataError, IntegrityError, UnreachableError
from schemas.manifest import SHARDS_FOLDER
from schemas.records import RECORD, ROWS_PER_BATCH

_OPEN_SHARDS = 32
"""Files that one split keeps mapped; an epoch's window has four."""
_PREFETCH_THREADS = 2
_UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""What reading a damaged file raises; ValueError for names that are no UTF-8."""


@dataclass(frozen=True)
class Row:
    """One stored image."""

    uid: bytes
    image: bytes
    label: int
    height_px: int
    width_px: int
    source: str
    encoding: str


@dataclass(frozen=True)
class Facts:
    """What is told of an image by its name."""

    uid: bytes
    label: int
    source: str


def row_checksum(
    crc32c: int, *, uid: bytes, label: int, size_hw: tuple[int, int], encoding: str, source: str
) -> int:
    """CRC-32C of the image bytes (`crc32c`) followed by all else that readers deliver of a row."""
    rest = struct.pack("<16s3i", uid, label, *size_hw) + f"{encoding}\0{source}".encode()
    return extend_checksum(crc32c, rest)


class ShardFiles:
    """The files of one split; safe to use from threads."""

    def __init__(self, place: Place, shards: SplitShards) -> None:
        """Map nothing yet."""
        self._place = place
        self._shards = shards
        self._lock = threading.Lock()
        self._arriving: dict[int, threading.Lock] = {}
        self._mapped: OrderedDict[int, _MappedShard] = OrderedDict()
        self._prefetcher: ThreadPoolExecutor | None = None

    def read(self, shard: int, row: int) -> Row:
        """A row of a shard; raises IntegrityError if it is not what was written."""
        return self._shard(shard).read(row)

    def facts(self, shard: int, row: int) -> "Facts":
        """What a row is, without its image; unchecked."""
        return self._shard(shard).facts(row)

    def find(self, shard: int, uid: bytes) -> list[int]:
        """Rows of a shard that have a uid, unchecked."""
        return self._shard(shard).find(uid)

    def labels(self, shard: int) -> NDArray[np.int64]:
        """The label column of a shard, unchecked."""
        return self._shard(shard).labels()

    def reader(self, shard: int) -> Any:
        """The Arrow file reader of a shard."""
        return self._shard(shard).reader

    def forget(self, shard: int) -> None:
        """Unmap a shard and drop its cached copy, so that the next read goes to the origin."""
        with self._lock:
            self._mapped.pop(shard, None)
        self._place.forget(self._shards.sha256(shard))

    def prefetch(self, shards: Sequence[int]) -> None:
        """Begin to fetch shards that will be read soon; what fails is told when it is read."""
        with self._lock:
            if self._prefetcher is None:
                self._prefetcher = ThreadPoolExecutor(
                    _PREFETCH_THREADS, thread_name_prefix="prefetch"
                )
            missing = [shard for shard in shards if shard not in self._mapped]
        for shard in missing:
            self._prefetcher.submit(self._try_hold, shard)

    def _try_hold(self, shard: int) -> None:
        try:
            self._hold(shard)
        except (DataError, IntegrityError, UnreachableError):
            return

    def _shard(self, shard: int) -> "_MappedShard":
        with self._lock:
            mapped = self._mapped.get(shard)
            if mapped is not None:
                self._mapped.move_to_end(shard)
                return mapped
            arriving = self._arriving.setdefault(shard, threading.Lock())
        # Others go on with what is mapped while this one waits for a store.
        with arriving:
            mapped = self._mapped.get(shard) or self._map(shard)
        with self._lock:
            self._arriving.pop(shard, None)
        return mapped

    def _map(self, shard: int) -> "_MappedShard":
        mapped = _MappedShard(self._hold_or_shrink(shard), int(self._shards.rows[shard]))
        with self._lock:
            self._mapped[shard] = mapped
            if len(self._mapped) > _OPEN_SHARDS:
                self._mapped.popitem(last=False)
        return mapped

    def _hold_or_shrink(self, shard: int) -> Held:
        """The shard's file; where the cache is full of what we have mapped, we let go of some."""
        while True:
            try:
                return self._hold(shard)
            except CacheFullError:
                with self._lock:
                    if not self._mapped:
                        raise
                    self._mapped.popitem(last=False)

    def _hold(self, shard: int) -> Held:
        name = f"{SHARDS_FOLDER}/{self._shards.names[shard]}"
        size_bytes = int(self._shards.sizes[shard])
        return self._place.hold(name, self._shards.sha256(shard), size_bytes=size_bytes)


class _MappedShard:
    """One memory-mapped shard file and the batches that were touched."""

    def __init__(self, held: Held, num_rows: int) -> None:
        self._held = held  # the cache keeps the file as long as this
        self._num_rows = num_rows
        try:
            self.reader = pa.ipc.open_file(pa.memory_map(str(held.path)))
        except _UNREADABLE as error:
            raise self._damaged(str(error)) from error
        if self.reader.num_record_batches != -(-num_rows // ROWS_PER_BATCH):
            raise self._damaged(f"it has {self.reader.num_record_batches} record batches")
        self._batches: dict[int, _Columns] = {}

    def read(self, row: int) -> Row:
        columns = self._batch(row // ROWS_PER_BATCH)
        place = row % ROWS_PER_BATCH
        image = columns.image[place]
        found = checksum(image)
        if found != columns.crc32c[place]:
            raise self._damaged(f"the image of row {row} has another checksum")
        try:
            made = _row(columns, place, image)
        except UnicodeDecodeError as error:
            raise self._damaged(f"row {row}: {error}") from error
        whole = row_checksum(
            found,
            uid=made.uid,
            label=made.label,
            size_hw=(made.height_px, made.width_px),
            encoding=made.encoding,
            source=made.source,
        )
        if whole != columns.row_crc32c[place]:
            raise self._damaged(f"row {row} has another checksum")
        return made

    def facts(self, row: int) -> Facts:
        columns, place = self._batch(row // ROWS_PER_BATCH), row % ROWS_PER_BATCH
        return Facts(
            uid=columns.uid[place],
            label=int(columns.label[place]),
            source=columns.source[place].decode(errors="replace"),
        )

    def find(self, uid: bytes) -> list[int]:
        found = []
        for index in range(self.reader.num_record_batches):
            self._batch(index)  # checks its form
            mine = pc.equal(
                self.reader.get_batch(index)["uid"], pa.scalar(uid, pa.binary(len(uid)))
            )
            rows = np.flatnonzero(mine.to_numpy(zero_copy_only=False))
            found += (index * ROWS_PER_BATCH + rows).tolist()
        return found

    def labels(self) -> NDArray[np.int64]:
        batches = [self._batch(index).label for index in range(self.reader.num_record_batches)]
        return np.concatenate([np.empty(0, np.int32), *batches]).astype(np.int64)

    def _batch(self, index: int) -> "_Columns":
        columns = self._batches.get(index)
        if columns is None:
            rows = min(ROWS_PER_BATCH, self._num_rows - index * ROWS_PER_BATCH)
            try:
                columns = _columns(self.reader.get_batch(index), rows)
            except _UNREADABLE as error:
                raise self._damaged(str(error)) from error
            self._batches[index] = columns
        return columns

    def _damaged(self, how: str) -> IntegrityError:
        return IntegrityError(f"{self._held.path} is not what was written: {how}")


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
    encoding: _Blobs
    crc32c: NDArray[np.uint32]
    row_crc32c: NDArray[np.uint32]
    source: _Blobs


def _row(columns: _Columns, place: int, image: bytes) -> Row:
    return Row(
        uid=columns.uid[place],
        image=image,
        label=int(columns.label[place]),
        height_px=int(columns.height_px[place]),
        width_px=int(columns.width_px[place]),
        source=columns.source[place].decode(),
        encoding=columns.encoding[place].decode(),
    )


def _columns(batch: pa.RecordBatch, num_rows: int) -> _Columns:
    batch.validate(full=True)  # a damaged offset must not lead outside the file
    if (batch.schema.names, batch.schema.types) != (RECORD.names, RECORD.types):
        raise pa.ArrowInvalid("its columns are not those of a record")
    if batch.num_rows != num_rows:
        raise pa.ArrowInvalid(f"a record batch has {batch.num_rows} rows, not {num_rows}")
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

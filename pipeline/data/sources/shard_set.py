"""Our own shard sets as a source: their live rows, with classes, splits and uids as they are.

Tasks list a shard each: its labels and sources alone. What is read is checked by the checksum of
its row.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.data.files import files_of, join, place_of, stamp_of
from pipeline.data.sources.tar import need_file
from pipeline.data.units import Member, Part, RawImage, Unit, cut, refuse_change
from pipeline.ports import RemoteFiles
from schemas.errors import DataError, IntegrityError
from schemas.manifest import (
    MANIFEST_FILE,
    SHARD_TABLE_FILE,
    SHARDS_FOLDER,
    TOMBSTONES_FILE,
    ShardSetManifest,
)
from schemas.sources import ArrowSource

if TYPE_CHECKING:
    import pyarrow as pa

_CHECKED = ["uid", "image", "label", "height_px", "width_px", "encoding", "source", "row_crc32c"]


class ShardSetCorpus:
    """Fulfils `Corpus` for `arrow`."""

    def __init__(self, source: ArrowSource, remote: RemoteFiles | None) -> None:
        """Look at nothing yet."""
        self._place = place_of(source.uri)
        self._files = files_of(source.uri, remote)

    def identity(self) -> Iterator[str]:
        """sha256 of the manifest, which names all else by sha256."""
        yield f"arrow {hashlib.sha256(self._manifest_bytes).hexdigest()}"

    def num_bytes(self) -> int:
        """Bytes of the shards."""
        return self._manifest.num_bytes

    def declared_splits(self) -> tuple[str, ...]:
        """Those of the shard set."""
        return tuple(sorted(self._manifest.splits))

    def check(self) -> None:
        """Read the manifest, and see that its table of shards is the one it names."""
        table = self._files.read(join(self._place, SHARD_TABLE_FILE))
        if hashlib.sha256(table).hexdigest() != self._manifest.shard_table_sha256:
            raise IntegrityError(f"{self._place}/{SHARD_TABLE_FILE} is not what was written")

    def declared_classes(self) -> set[str]:
        """Those of the shard set."""
        return set(self._manifest.class_names)

    def parts(self) -> Iterator[Part]:
        """The shards, each with the rows that were removed from it."""
        table = self._table(SHARD_TABLE_FILE).select(["split", "name", "bytes"])
        removed = self._removed()
        for split, name, size in zip(*(column.to_pylist() for column in table), strict=True):
            path = f"{SHARDS_FOLDER}/{name}"
            status = need_file(self._files, join(self._place, path), "a shard")
            refuse_change(path, listed=str(size), found=str(status.size))
            yield Part(split, path, stamp_of(status), tuple(removed.get((split, name), ())))

    def units(self, part: Part) -> Iterator[Unit]:
        """Slices of the shard's live rows."""
        yield from cut(self._finds(part), part)

    def read(self, unit: Unit) -> Iterator[RawImage]:
        """Row by row; one record batch is held."""
        from schemas.records import ROWS_PER_BATCH

        place = join(self._place, unit.path)
        refuse_change(place, listed=unit.stamp, found=stamp_of(need_file(self._files, place, "it")))
        at, batch = -1, {}
        with self._shard(unit.path, _CHECKED) as reader:
            for member in unit.members:
                number, row = divmod(member.offset, ROWS_PER_BATCH)
                if number != at:
                    at, batch = number, reader.get_batch(number)
                values = {name: batch[name][row].as_py() for name in _CHECKED}
                if not _is_whole(values):
                    raise IntegrityError(f"row {member.offset} of {place} is not what was written")
                data = _as_file(values["image"]["bytes"], values["encoding"])
                uid = values["uid"]
                yield RawImage(member.path, member.split, member.class_name, data, uid)

    def _finds(self, part: Part) -> Iterator[Member]:
        names = self._manifest.class_names
        removed, number = set(part.detail), 0
        with self._shard(part.path, ["label", "source"]) as reader:
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                rows = zip(batch["label"].to_pylist(), batch["source"].to_pylist(), strict=True)
                for label, source in rows:
                    if number not in removed:
                        yield Member(part.split, names[label], source, number, 0)
                    number += 1

    @contextmanager
    def _shard(self, path: str, columns: list[str]) -> Iterator[Any]:
        """A reader that fetches some columns alone."""
        import pyarrow as pa

        place = join(self._place, path)
        try:
            with self._files.open(place) as stream:
                schema = pa.ipc.open_file(stream).schema
                fields = [schema.get_field_index(name) for name in columns]
                options = pa.ipc.IpcReadOptions(included_fields=fields)
                yield pa.ipc.open_file(stream, options=options)
        except pa.ArrowException as error:
            raise IntegrityError(f"{place} is not what was written: {error}") from error

    def _table(self, name: str) -> "pa.Table":
        import pyarrow as pa

        return pa.ipc.open_file(pa.py_buffer(self._files.read(join(self._place, name)))).read_all()

    def _removed(self) -> dict[tuple[str, str], list[int]]:
        """Split and shard -> its tombstoned rows."""
        removed: dict[tuple[str, str], list[int]] = {}
        if self._manifest.tombstones is not None:
            table = self._table(TOMBSTONES_FILE).select(["split", "shard", "row"])
            for split, shard, row in zip(*(column.to_pylist() for column in table), strict=True):
                removed.setdefault((split, shard), []).append(row)
        return removed

    @cached_property
    def _manifest_bytes(self) -> bytes:
        place = join(self._place, MANIFEST_FILE)
        if self._files.status(place) is None:
            raise DataError(
                f"{self._place} holds no {MANIFEST_FILE}; give the folder of a shard set, such as "
                "the folder `dataset` of an artifact",
                where="source.uri",
            )
        return self._files.read(place)

    @cached_property
    def _manifest(self) -> ShardSetManifest:
        try:
            return ShardSetManifest.model_validate_json(self._manifest_bytes)
        except ValueError as error:
            raise IntegrityError(
                f"{join(self._place, MANIFEST_FILE)} is not what was written: {error}"
            ) from error


def _is_whole(values: dict[str, Any]) -> bool:
    """Whether the row is what was written, all that is taken of it included."""
    from pipeline.data.images.codec import checksum
    from pipeline.data.shards.shard_files import row_checksum

    expected = row_checksum(
        checksum(values["image"]["bytes"]),
        uid=values["uid"],
        label=values["label"],
        size_hw=(values["height_px"], values["width_px"]),
        encoding=values["encoding"],
        source=values["source"],
    )
    return bool(expected == values["row_crc32c"])


def _as_file(data: bytes, encoding: str) -> bytes:
    """Stored bytes as a file that any reader knows: pixels stored as they are become PNG."""
    from pipeline.data.images.codec import encode_png, raw_pixels

    return encode_png(raw_pixels(data)) if encoding == "raw" else data

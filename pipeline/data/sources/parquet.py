"""Parquet files with a column of images.

Tasks list a file each and read its label column alone. A row group that is larger than a unit is
read from its beginning by every unit in it, since a row group has no index; at a few thousand rows,
as most writers make them, that costs little.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.data.files import files_of, join, printable, stamp_of
from pipeline.data.sources.labels import MISSING_LABEL, class_name_of, need_column
from pipeline.data.sources.patterns import FileSet
from pipeline.data.sources.tar import need_file
from pipeline.data.units import Member, Part, RawImage, Refused, Unit, cut, refuse_change
from pipeline.ports import RemoteFiles
from schemas.errors import DataError, SpecError
from schemas.sources import ParquetSource

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_LABELS_AT_ONCE = 65_536
_IMAGES_AT_ONCE = 16
_BUFFER_BYTES = 2**20


class ParquetCorpus:
    """Fulfils `Corpus` for `parquet`."""

    def __init__(self, source: ParquetSource, remote: RemoteFiles | None) -> None:
        """Hardly look."""
        self._source = source
        self._files = files_of(source.uri, remote)
        self._tables = FileSet(source.uri, source.splits, suffix=".parquet")

    def identity(self) -> Iterator[str]:
        """Path, size and version of every file."""
        yield "parquet"
        for split, status in self._tables.find(self._files):
            yield f"{split}\0{status.path}\0{status.size}\0{status.version}"

    def num_bytes(self) -> int:
        """Size of all files; images hardly get smaller in them."""
        return sum(status.size for _, status in self._tables.find(self._files))

    def declared_splits(self) -> tuple[str, ...]:
        """Those of the spec, or one."""
        return self._tables.splits

    def check(self) -> None:
        """Look for the columns in the first file."""
        for _, status in self._tables.find(self._files):
            with self._open(status.path):
                return

    def declared_classes(self) -> set[str]:
        """The names in Hugging Face's note, if the first file has one."""
        for _, status in self._tables.find(self._files):
            with self._open(status.path) as table:
                return set(class_label_names(table.schema_arrow, self._source.label_column) or ())
        return set()

    def parts(self) -> Iterator[Part]:
        """The files."""
        for split, status in self._tables.find(self._files):
            yield Part(split, status.path, stamp_of(status))

    def units(self, part: Part) -> Iterator[Unit]:
        """Slices of the row groups."""
        with self._open(part.path) as table:
            first = 0
            for group in range(table.num_row_groups):
                yield from cut(self._finds(part, table, group, first), part, row_group=group)
                first += table.metadata.row_group(group).num_rows

    def read(self, unit: Unit) -> Iterator[RawImage]:
        """Row by row."""
        place = join(self._tables.place, unit.path)
        status = need_file(self._files, place, "a Parquet file")
        refuse_change(place, listed=unit.stamp, found=stamp_of(status))
        members = {member.offset: member for member in unit.members}
        last = max(members, default=-1)
        with self._open(unit.path) as table:
            batches = table.iter_batches(
                _IMAGES_AT_ONCE,
                row_groups=[unit.detail["row_group"]],
                columns=[self._source.image_column],
            )
            row = 0
            for batch in batches:
                for value in batch.column(0):
                    if row in members:
                        yield image_of(value.as_py(), members[row])
                    row += 1
                if row > last:
                    return

    def _finds(
        self, part: Part, table: "pq.ParquetFile", group: int, first: int
    ) -> Iterator[Member | Refused]:
        facts = table.metadata.row_group(group)
        size = facts.total_byte_size // max(1, facts.num_rows)
        column = self._source.label_column
        names = class_label_names(table.schema_arrow, column)
        row = 0
        for batch in table.iter_batches(_LABELS_AT_ONCE, row_groups=[group], columns=[column]):
            for value in batch.column(0).to_pylist():
                path = f"{part.path}#{first + row}"
                label = named_label(value, names, f"{column} of {path}")
                if label is None:
                    yield Refused("", path, f"{column} is empty", MISSING_LABEL)
                else:
                    yield Member(part.split, label, path, row, size)
                row += 1

    @contextmanager
    def _open(self, path: str) -> "Iterator[pq.ParquetFile]":
        """A file, once its columns are known to be right."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        place = join(self._tables.place, path)
        try:
            with self._files.open(place) as stream:
                table = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
                self._check_columns(table.schema_arrow, printable(path))
                yield table
        except pa.ArrowException as error:
            raise DataError(f"{place} cannot be read as Parquet: {error}") from error

    def _check_columns(self, schema: "pa.Schema", path: str) -> None:
        source = self._source
        for field in ("image_column", "label_column"):
            name = getattr(source, field)
            need_column(name, columns=schema.names, place=path, where=f"source.{field}")
        check_image_type(schema.field(source.image_column).type, f"{source.image_column} of {path}")
        check_label_type(schema.field(source.label_column).type, f"{source.label_column} of {path}")


def image_of(value: Any, member: Member) -> RawImage:
    """A value of an image column; it is called as its `path` says, else as the member."""
    data, path = (value["bytes"], value.get("path")) if isinstance(value, dict) else (value, None)
    return RawImage(path or printable(member.path), member.split, member.class_name, data or b"")


def named_label(value: Any, names: list[str] | None, where: str) -> str | None:
    """The class of a value of a label column; negative numbers of named classes mean none.

    Raises:
        DataError: If it is a number that has no name, or no label at all.
    """
    if names is None or not isinstance(value, int):
        return class_name_of(value, where)
    if value < 0:
        return None
    if value >= len(names):
        raise DataError(f"{where} is {value}, but only {len(names)} classes have names")
    return names[value]


def class_label_names(schema: "pa.Schema", column: str) -> list[str] | None:
    """The names that Hugging Face's note in the schema gives to the numbers of a column."""
    note = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(note).get("info", {}).get("features", {}) if note else {}
    feature = features.get(column, {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return [str(name) for name in names] if names else None


def check_image_type(kind: "pa.DataType", where: str) -> None:
    """Refuse a column that holds no encoded images.

    Raises:
        SpecError: If it is neither binary nor a struct with `bytes`.
    """
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise SpecError(
            f"{where} is {kind}; images are expected as binary or struct<bytes: binary, path>",
            where="source.image_column",
        )


def check_label_type(kind: "pa.DataType", where: str) -> None:
    """Refuse lists: several labels for one image.

    Raises:
        SpecError: If the column is one.
    """
    import pyarrow as pa

    if pa.types.is_nested(kind):
        raise SpecError(
            f"{where} is {kind}; several labels for one image are not supported, a label is a text "
            "or a whole number",
            where="source.label_column",
        )

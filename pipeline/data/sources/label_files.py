"""Reads tables of labels row by row: CSV of any delimiter, Parquet, JSON lines.

Memory: one row of text, one batch of Parquet.
"""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pipeline.data.files import files_of, join
from pipeline.data.sources.labels import class_name_of, need_column
from pipeline.ports import RemoteFiles
from schemas.errors import DataError
from schemas.sources import LabelFileSpec

DELIMITERS = ",;\t|"
_ROWS_AT_ONCE = 4_096
_JSON = (".jsonl", ".ndjson", ".json")


class LabelRow(NamedTuple):
    """One image as a table names it."""

    image: str
    """Path below the source's place."""
    label: str | None
    """Class name; None where the table has none."""
    split: str | None
    """None where the table names none."""


def label_rows(spec: LabelFileSpec, place: str, files: RemoteFiles | None) -> Iterator[LabelRow]:
    """The rows of a table, in its order.

    Args:
        spec: What table, and what its columns mean.
        place: What a relative `file` is relative to.
        files: Reads URIs.

    Raises:
        SpecError: If the table lacks a column.
        DataError: If the table cannot be read, or a value is no label.
    """
    table = join(place, spec.file)
    reader = files_of(table, files)
    columns = [spec.image_column, spec.label_column]
    columns += [spec.split_column] if spec.split_column else []
    kind = table.lower()
    rows_of = _csv_rows
    if kind.endswith((".parquet", *_JSON)):
        rows_of = _parquet_rows if kind.endswith(".parquet") else _json_rows
    with _sentences(table), reader.open(table) as stream:
        for number, values in enumerate(rows_of(stream, columns, table), 1):
            yield _row(spec, values, f"row {number} of {table}")


def sniff(header: str, columns: list[str]) -> str:
    """The delimiter of a CSV file: the one with which its header has the columns asked for.

    If none does, the one that is met most often.
    """
    fields = {mark: next(csv.reader([header], delimiter=mark), []) for mark in DELIMITERS}
    fit = [mark for mark in DELIMITERS if set(columns) <= set(map(str.strip, fields[mark]))]
    return fit[0] if fit else max(DELIMITERS, key=lambda mark: len(fields[mark]))


def _row(spec: LabelFileSpec, values: tuple[Any, ...], where: str) -> LabelRow:
    image = class_name_of(values[0], f"{spec.image_column} of {where}")
    if image is None:
        raise DataError(f"{spec.image_column} of {where} is empty; each row names an image")
    label = class_name_of(values[1], f"{spec.label_column} of {where}")
    split = class_name_of(values[2], f"{spec.split_column} of {where}") if values[2:] else None
    return LabelRow(image + spec.image_suffix, label, split)


def _csv_rows(stream: Any, columns: list[str], table: str) -> Iterator[tuple[Any, ...]]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    header = text.readline()
    mark = sniff(header, columns)
    names = [name.strip() for name in next(csv.reader([header], delimiter=mark), [])]
    places = _places(columns, names, table)
    for row in csv.reader(text, delimiter=mark):
        if row:
            yield tuple(row[place] if place < len(row) else None for place in places)


def _parquet_rows(stream: Any, columns: list[str], table: str) -> Iterator[tuple[Any, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(stream)
        _places(columns, file.schema_arrow.names, table)
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    except pa.ArrowException as error:
        raise DataError(f"{table} cannot be read as Parquet: {error}") from error


def _json_rows(stream: Any, columns: list[str], table: str) -> Iterator[tuple[Any, ...]]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise DataError(f"line {number} of {table} is no JSON object; give one for each image")
        if number == 1:
            _places(columns, list(row), table)
        yield tuple(row.get(name) for name in columns)


def _places(columns: list[str], names: list[str], table: str) -> list[int]:
    fields = ("image_column", "label_column", "split_column")
    for field, name in zip(fields, columns, strict=False):
        need_column(name, columns=names, place=table, where=f"source.labels.{field}")
    return [names.index(name) for name in columns]


@contextmanager
def _sentences(table: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{table} is not in UTF-8: {error}; save it in UTF-8") from error
    except (csv.Error, json.JSONDecodeError) as error:
        raise DataError(f"{table} cannot be read as a table: {error}") from error

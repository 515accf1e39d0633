"""Folders whose classes stand in a table."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.sources import fingerprint
from pipeline.data.sources.label_files import DELIMITERS, sniff
from schemas.errors import DataError, SpecError
from schemas.sources import ImageFolderSource
from tests.support.containers import write_csv
from tests.support.corpora import encode, picture
from tests.support.datasets import build_from
from tests.support.sources import names_of, one_unit

ROWS = [("b.jpg", "dog", "train"), ("sub/a.JPG", "cat", "test"), ("c.jpg", "cat", "train")]
HEADER = ("file", "kind", "part")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    (raw / "sub").mkdir(parents=True)
    for number, (name, _, _) in enumerate(ROWS):
        (raw / name).write_bytes(encode(picture(0, number)))
    return raw


def source_of(folder: Path, file: Path | str, **fields: Any) -> ImageFolderSource:
    labels = {"file": str(file), "image_column": "file", "label_column": "kind", **fields}
    return ImageFolderSource.parse({"uri": str(folder), "labels": labels})


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_a_csv_of_any_delimiter_is_read(folder: Path, delimiter: str) -> None:
    write_csv(folder / "labels.csv", [HEADER, *ROWS], delimiter=delimiter)
    source = source_of(folder, "labels.csv", split_column="part")
    assert names_of(source) == [(part, kind, file) for file, kind, part in ROWS]


def test_parquet_json_lines_and_csv_with_a_mark_of_order_give_the_same(folder: Path) -> None:
    columns = dict(zip(HEADER, map(list, zip(*ROWS, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "labels.parquet")
    lines = [json.dumps(dict(zip(HEADER, row, strict=True))) for row in ROWS]
    (folder / "labels.jsonl").write_text("\n".join(lines) + "\n\n")
    text = "\n".join(",".join(row) for row in [HEADER, *ROWS])
    (folder / "labels.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    expected = [("train", kind, file) for file, kind, _ in ROWS]
    for name in ("labels.parquet", "labels.jsonl", "labels.txt"):
        assert names_of(source_of(folder, name)) == expected


@given(
    st.lists(st.text(alphabet="ab cd,;|\t\"'", min_size=1, max_size=6), max_size=3),
    st.sampled_from(DELIMITERS),
)
def test_the_delimiter_is_the_one_that_shows_the_columns(others: list[str], mark: str) -> None:
    import csv
    import io

    sink = io.StringIO()
    csv.writer(sink, delimiter=mark).writerow(["file", *others, "kind"])
    found = sniff(sink.getvalue(), ["file", "kind"])
    header = next(csv.reader([sink.getvalue()], delimiter=found))
    assert {"file", "kind"} <= {name.strip() for name in header}


def test_names_may_lack_their_suffix(folder: Path) -> None:
    write_csv(folder / "labels.csv", [HEADER, ("b", "dog", ""), ("c", "7", "")])
    source = source_of(folder, "labels.csv", image_suffix=".jpg", split_column="part")
    assert names_of(source) == [("train", "dog", "b.jpg"), ("train", "7", "c.jpg")]


def test_rows_without_a_file_or_label_are_rejections_with_their_reasons(
    folder: Path, tmp_path: Path
) -> None:
    odd = [("gone.jpg", "cat", "train"), ("b.jpg", " ", "train"), ("../x.jpg", "cat", "train")]
    write_csv(tmp_path / "labels.csv", [HEADER, *ROWS, *odd])
    source = source_of(folder, tmp_path / "labels.csv")
    refused = {file.path: file.reason for file in one_unit(source).refused}
    assert refused == {
        "gone.jpg": "missing_file",
        "b.jpg": "missing_label",
        "../x.jpg": "missing_file",
    }
    with pytest.raises(DataError, match="3 of 6 files were rejected: 2 missing_file"):
        build_from(source.dump(), tmp_path / "strict")
    manifest = build_from(source.dump(), tmp_path / "set", max_rejected_ratio=0.5).manifest
    assert manifest.rejections == {"missing_file": 2, "missing_label": 1}
    assert manifest.num_rows == 3


def test_splits_come_from_a_column_or_are_drawn_but_not_both(folder: Path, tmp_path: Path) -> None:
    write_csv(folder / "labels.csv", [HEADER, *ROWS])
    source = source_of(folder, "labels.csv", split_column="part").dump()
    manifest = build_from(source, tmp_path / "set").manifest
    assert {name: entry.rows for name, entry in manifest.splits.items()} == {"test": 1, "train": 2}
    with pytest.raises(SpecError, match="the source has test, train; leave split out"):
        build_from(source, tmp_path / "both", split={"test_ratio": 0.5})
    with pytest.raises(ValueError, match=r"give labels\.split_column instead"):
        ImageFolderSource.parse({**source, "splits": {"train": "sub"}})


def test_a_split_with_an_impossible_name_is_refused(folder: Path) -> None:
    write_csv(folder / "labels.csv", [HEADER, ("b.jpg", "dog", "a b")])
    with pytest.raises(DataError, match="is 'a b'; a split's name has letters"):
        names_of(source_of(folder, "labels.csv", split_column="part"))


def test_a_wrong_column_is_named_with_the_nearest(folder: Path) -> None:
    write_csv(folder / "labels.csv", [("file", "kinds"), ("b.jpg", "dog")])
    with pytest.raises(SpecError, match=r"has no column 'kind'.*did you mean 'kinds'") as caught:
        one_unit(source_of(folder, "labels.csv"))
    assert caught.value.where == "source.labels.label_column"


def test_lists_of_labels_and_odd_tables_are_refused_in_sentences(folder: Path) -> None:
    (folder / "labels.jsonl").write_text('{"file": "b.jpg", "kind": ["dog", "cat"]}\n')
    with pytest.raises(DataError, match="several labels for one image are not supported"):
        one_unit(source_of(folder, "labels.jsonl"))
    (folder / "labels.jsonl").write_text("[1, 2]\n")
    with pytest.raises(DataError, match=r"line 1 .* is no JSON object"):
        one_unit(source_of(folder, "labels.jsonl"))
    (folder / "labels.csv").write_bytes(b"file,kind\nb.jpg,k\xe4se\n")
    with pytest.raises(DataError, match="is not in UTF-8"):
        one_unit(source_of(folder, "labels.csv"))
    (folder / "labels.csv").write_text("file,kind\n")
    with pytest.raises(DataError, match="names no image"):
        one_unit(source_of(folder, "labels.csv"))
    with pytest.raises(DataError, match="give the path of the label file"):
        one_unit(source_of(folder, "nowhere.csv"))


def test_the_table_and_the_files_are_both_in_the_fingerprint(folder: Path) -> None:
    table = write_csv(folder.parent / "labels.csv", [HEADER, *ROWS])
    source = source_of(folder, table)
    first = fingerprint(source)
    write_csv(table, [HEADER, *ROWS[:2]])
    second = fingerprint(source)
    (folder / "c.jpg").write_bytes(b"other")
    assert len({first, second, fingerprint(source)}) == 3

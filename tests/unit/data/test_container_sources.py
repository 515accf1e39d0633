"""WebDataset shards, Parquet, `datasets` and our own shard sets as sources."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.sources import corpus_of, fingerprint, source_bytes
from pipeline.data.sources.patterns import expand_braces
from schemas.errors import DataError, IntegrityError, SpecError
from schemas.sources import ArrowSource, HfSource, ParquetSource, WebDatasetSource
from tests.support.containers import add_member, images_below, write_parquet, write_shards
from tests.support.corpora import CLASSES, encode, picture, write_folder
from tests.support.datasets import build_from
from tests.support.sources import all_units, names_of, one_unit, read_all

JPEG = encode(picture(0, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("containers") / "raw", per_class=6)


def write_tar_of(path: Path, **members: bytes) -> Path:
    """Members by name; `__` stands for a dot."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            add_member(tar, name.replace("__", "."), data)
    return path


@pytest.mark.parametrize(
    ("pattern", "shards"),
    [
        ("", 4),
        ("/*.tar", 4),
        ("/00000?.tar", 4),
        ("/{000001..000002}.tar", 2),
        ("/00000{0,3}.tar", 2),
        ("/000002.tar", 1),
        ("/**/*.tar", 4),
    ],
)
def test_shards_are_found_by_folder_file_and_pattern(
    folder: Path, tmp_path: Path, pattern: str, shards: int
) -> None:
    write_shards(tmp_path / "wds", folder)
    source = WebDatasetSource(uri=f"{tmp_path / 'wds'}{pattern}")
    assert len({raw.source.split(".tar")[0] for raw in read_all(source)}) == shards
    assert source_bytes(source) >= sum(len(raw.data) for raw in read_all(source))


def test_shards_of_several_splits_are_lists_and_patterns(folder: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "wds", folder)
    splits = {"train": ["000000.tar", "00000{1,2}.tar"], "test": "*3.tar"}
    source = WebDatasetSource.parse({"uri": str(tmp_path / "wds"), "splits": splits})
    found = names_of(source)
    assert {(split, name[:6]) for split, _, name in found} == {
        ("test", "000003"),
        ("train", "000000"),
        ("train", "000001"),
        ("train", "000002"),
    }
    overlap = {"train": "*.tar", "test": "000003.tar"}
    with pytest.raises(SpecError, match=r"000003\.tar is in two splits"):
        one_unit(WebDatasetSource.parse({"uri": str(tmp_path / "wds"), "splits": overlap}))


def test_shards_that_are_not_there_are_named(folder: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "wds", folder)
    for pattern, said in {
        "x*.tar": "matches no file",
        "{000000..000030}.tar": "27 of the files named do not exist, 000004.tar among them",
        "nothing.tar": "cannot be listed|does not exist|holds no",
    }.items():
        with pytest.raises(DataError, match=said):
            fingerprint(WebDatasetSource(uri=f"{tmp_path / 'wds'}/{pattern}"))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 4))
def test_braces_count_with_their_zeros(first: int, more: int, width: int) -> None:
    found = list(expand_braces(f"a{{{first:0{width}d}..{first + more}}}.{{x,y}}"))
    numbers = [f"{number:0{width}d}" for number in range(first, first + more + 1)]
    assert found == [f"a{number}.{end}" for number in numbers for end in "xy"]


def test_samples_that_lack_something_are_rejections(tmp_path: Path) -> None:
    shard = write_tar_of(
        tmp_path / "a.tar",
        one__JPG=JPEG,
        one__cls=b" 3\n",
        two__jpg=JPEG,
        three__cls=b"1",
        four__jpg=JPEG,
        four__txt=b"a photo",
    )
    source = WebDatasetSource(uri=str(shard))
    assert names_of(source) == [("train", "3", "a.tar/one.JPG")]
    assert [(file.path, file.reason) for file in one_unit(source).refused] == [
        ("a.tar/two.jpg", "missing_label"),
        ("a.tar/three", "not_image"),
        ("a.tar/four.jpg", "missing_label"),
    ]
    assert one_unit(source).refused[2].problem == "the sample has no class in .cls; it has txt"


def test_a_sample_with_several_images_needs_the_one_meant(tmp_path: Path) -> None:
    left, right = encode(picture(0, 2)), encode(picture(0, 3), "PNG")
    shard = write_tar_of(
        tmp_path / "a.tar", s__jpg=left, s__png=right, s__mask__png=JPEG, s__cls=b"1"
    )
    with pytest.raises(SpecError, match=r"several images: jpg, png; say which"):
        one_unit(WebDatasetSource(uri=str(shard)))
    (raw,) = read_all(WebDatasetSource(uri=str(shard), image=".png"))
    assert raw.data == right
    (raw,) = read_all(WebDatasetSource(uri=str(shard), image="mask.png"))
    assert raw.data == JPEG


def test_a_label_in_json_is_a_field_and_no_list(tmp_path: Path) -> None:
    shard = write_tar_of(tmp_path / "a.tar", s__jpg=JPEG, s__json=json.dumps({"y": 7}).encode())
    source = WebDatasetSource(uri=str(shard), label="json", label_field="y")
    assert names_of(source)[0][1] == "7"
    assert one_unit(source.revise(label_field="z")).refused[0].reason == "missing_label"
    write_tar_of(shard, s__jpg=JPEG, s__json=b'{"y": [1, 2]}')
    with pytest.raises(DataError, match="several labels for one image"):
        one_unit(source)
    write_tar_of(shard, s__jpg=JPEG, s__json=b"{")
    with pytest.raises(DataError, match="is no JSON"):
        one_unit(source)


def test_a_compressed_shard_is_told_to_be_decompressed(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.add(folder)
    with pytest.raises(DataError, match="it is compressed with gzip"):
        one_unit(WebDatasetSource(uri=str(tmp_path)))


def test_a_shard_that_changes_after_listing_stops_the_build(folder: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "wds", folder)
    source = WebDatasetSource(uri=str(tmp_path / "wds"))
    unit = all_units(source)[0]
    write_tar_of(tmp_path / "wds" / "000000.tar", s__jpg=JPEG, s__cls=b"1")
    with pytest.raises(DataError, match="let the corpus rest"):
        list(corpus_of(source).read(unit))


def test_parquet_rows_come_group_by_group(folder: Path, tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "a.parquet", folder, rows_per_group=5)
    source = ParquetSource(uri=str(table))
    assert [len(unit.members) for unit in all_units(source)] == [5, 5, 5, 3]
    expected = [(name, path, data) for name, path, data in images_below(folder)]
    assert [(raw.class_name, raw.source, raw.data) for raw in read_all(source)] == expected


def test_parquet_columns_may_be_plain_bytes_and_named_numbers(folder: Path, tmp_path: Path) -> None:
    images = [data for _, _, data in images_below(folder)][:4]
    table = pa.table({"pixels": images, "kind": [1, -1, 0, None]})
    note = {"info": {"features": {"kind": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
    pq.write_table(table, tmp_path / "a.parquet")
    source = ParquetSource(uri=str(tmp_path), image_column="pixels", label_column="kind")
    assert names_of(source) == [
        ("train", "dog", "a.parquet#0"),
        ("train", "cat", "a.parquet#2"),
    ]
    refused = one_unit(source).refused
    assert [(file.path, file.reason) for file in refused] == [
        ("a.parquet#1", "missing_label"),
        ("a.parquet#3", "missing_label"),
    ]
    assert corpus_of(source).declared_classes() == {"cat", "dog"}


def test_wrong_parquet_columns_are_named(folder: Path, tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "a.parquet", folder, labels=[[1]] * 18, score=[0.5] * 18)
    for fields, said in (
        ({"label_column": "labl"}, "did you mean 'label'"),
        ({"image_column": "picture"}, "it has image, label, labels, score"),
        ({"image_column": "label"}, "images are expected as binary or struct"),
        ({"label_column": "labels"}, "several labels for one image"),
    ):
        with pytest.raises(SpecError, match=said):
            corpus_of(ParquetSource.parse({"uri": str(table), **fields})).check()
    with pytest.raises(DataError, match=r"score of a.parquet#0 holds 0\.5"):
        one_unit(ParquetSource(uri=str(table), label_column="score"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        one_unit(ParquetSource(uri=str(tmp_path / "b.parquet")))


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`save_to_disk` of two splits with named classes; one row has no class."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    rows = [
        {"image": {"bytes": data, "path": path}, "label": CLASSES.index(name)}
        for name, path, data in images_below(folder)
    ]
    both = {
        "train": datasets.Dataset.from_list(rows[:9] + rows[12:], features=features).shuffle(3),
        "validation": datasets.Dataset.from_list(rows[9:12], features=features),
    }
    where = tmp_path_factory.mktemp("hf") / "saved"
    datasets.DatasetDict(both).save_to_disk(str(where))
    return where


def test_a_saved_data_set_keeps_its_splits_and_class_names(
    saved: Path, folder: Path, tmp_path: Path
) -> None:
    found = read_all(HfSource(uri=str(saved)))
    assert [raw.split for raw in found] == ["train"] * 15 + ["validation"] * 3
    known = {data: name for name, _, data in images_below(folder)}
    assert all(known[raw.data] == raw.class_name for raw in found)
    assert found[-1].source.endswith(".jpg")
    manifest = build_from({"type": "hf", "uri": str(saved)}, tmp_path).manifest
    assert {name: entry.rows for name, entry in manifest.splits.items()} == {
        "train": 15,
        "validation": 3,
    }
    test = HfSource(uri=str(saved), splits={"test": "validation"})
    assert {split for split, _, _ in names_of(test)} == {"test"}


def test_a_local_folder_that_datasets_can_load_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000.parquet", folder)
    source = HfSource(uri=str(tmp_path / "data"))
    found = [(raw.class_name, raw.source, raw.data) for raw in read_all(source)]
    assert found == images_below(folder)


def test_mistakes_with_data_sets_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="needs a revision"):
        fingerprint(HfSource(uri="someone/pets"))
    with pytest.raises(DataError, match="no folder here, and no OWNER/NAME"):
        fingerprint(HfSource(uri=str(tmp_path / "no" / "where")))
    with pytest.raises(ValueError, match="revision"):
        HfSource(uri="someone/pets", revision="main")
    revision = "0" * 40
    assert fingerprint(HfSource(uri="a/b", revision=revision)) == fingerprint(
        HfSource(uri="mirror/b", revision=revision)
    )
    with pytest.raises(SpecError, match="no split 'valid'; it has train, validation"):
        one_unit(HfSource(uri=str(saved), splits={"test": "valid"}))
    with pytest.raises(SpecError, match=r"has no column 'labels'.*did you mean 'label'"):
        one_unit(HfSource(uri=str(saved), label_column="labels"))


def test_a_missing_library_is_named_with_its_extra(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DataError, match="which is not installed") as caught:
        corpus_of(HfSource(uri=str(saved))).check()
    assert caught.value.hint == "pip install 'vitrail[hf]'"


def test_a_shard_set_is_ingested_with_its_uids_splits_and_names(
    folder: Path, tmp_path: Path
) -> None:
    first = build_from({"type": "image_folder", "uri": str(folder)}, tmp_path / "first")
    source = ArrowSource(uri=str(tmp_path / "first" / "out"))
    again: dict[str, Any] = {"image": {"max_side_px": 20}, "select": {"classes": ["wave"]}}
    build_from(source.dump(), tmp_path / "again", **again)
    old = ShardSet.open(tmp_path / "first" / "out").split("train")
    new = ShardSet.open(tmp_path / "again" / "out").split("train")
    wave = first.manifest.class_names.index("wave")
    kept = [row for row in map(old.row, range(old.num_rows)) if row.label == wave]
    assert [(row.uid, row.source) for row in map(new.row, range(new.num_rows))] == [
        (row.uid, row.source) for row in kept
    ]
    assert max(new.row(0).width_px, new.row(0).height_px) == 20
    assert fingerprint(source) != fingerprint(ArrowSource(uri=str(tmp_path / "again" / "out")))


def test_a_folder_without_a_manifest_or_with_a_damaged_shard_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        fingerprint(ArrowSource(uri=str(folder)))
    build_from({"type": "image_folder", "uri": str(folder)}, tmp_path)
    source = ArrowSource(uri=str(tmp_path / "out"))
    (shard,) = (tmp_path / "out" / "shards").iterdir()
    place = shard.read_bytes().index(read_all(source)[0].data) + 50
    with shard.open("r+b") as file:
        file.seek(place)
        file.write(b"damage")
    with pytest.raises(IntegrityError, match=r"row 0 of .* is not what was written"):
        read_all(source)


def test_a_shard_set_of_raw_pixels_is_ingested_again(folder: Path, tmp_path: Path) -> None:
    raw = {"image": {"encoding": "raw", "max_side_px": 16}}
    build_from({"type": "image_folder", "uri": str(folder)}, tmp_path / "first", **raw)
    source = {"type": "arrow", "uri": str(tmp_path / "first" / "out")}
    build_from(source, tmp_path / "again", **raw)
    first, again = (
        ShardSet.open(tmp_path / name / "out").split("train") for name in ("first", "again")
    )
    assert [again.row(index) for index in range(again.num_rows)] == [
        first.row(index) for index in range(first.num_rows)
    ]

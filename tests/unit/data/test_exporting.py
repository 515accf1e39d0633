import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import DatasetDict, load_dataset, load_from_disk

from pipeline.data.images.decode import decode
from pipeline.data.shards.exporting import FORMS, export, folder_name
from pipeline.data.shards.shard_set import ShardSet, Split
from pipeline.data.staging import sha256_of, write_table
from schemas.errors import IntegrityError, UsageError
from schemas.manifest import MANIFEST_FILE, TOMBSTONES_FILE, TombstoneEntry
from schemas.records import TOMBSTONES
from tests.support.datasets import small_set


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return small_set(tmp_path_factory.mktemp("set"), per_class=5)


def written(data: ShardSet, form: str, out: Path) -> Path:
    said: list[str] = []
    splits = [data.split(name) for name in sorted(data.manifest.splits)]
    assert export(splits, form, out, say=said.append) == 30
    assert said == ["writing 15 images of test", "writing 15 images of train"]
    assert sorted(path.name for path in out.parent.iterdir() if out.name in path.name) == [out.name]
    return out


def expected(split: Split) -> dict[str, tuple[int, str]]:
    rows = [split.row(index) for index in range(split.num_rows)]
    return {row.uid.hex(): (row.label, hashlib.sha256(row.image).hexdigest()) for row in rows}


def of_table(table: pa.Table) -> dict[str, tuple[int, str]]:
    return {
        row["uid"]: (row["label"], hashlib.sha256(row["image"]["bytes"]).hexdigest())
        for row in table.to_pylist()
    }


def test_a_datasets_folder_loads_with_pictures_and_class_names(
    data: ShardSet, tmp_path: Path
) -> None:
    loaded = load_from_disk(str(written(data, "datasets", tmp_path / "out")))
    assert isinstance(loaded, DatasetDict)
    for name in ("train", "test"):
        split = data.split(name)
        assert loaded[name].features["label"].names == list(data.class_names)
        assert of_table(loaded[name].data.table) == expected(split)
        shown = np.asarray(loaded[name][3]["image"])
        np.testing.assert_array_equal(shown, decode(split.row(3).image))


def test_parquet_is_read_by_pyarrow_and_by_datasets(data: ShardSet, tmp_path: Path) -> None:
    out = written(data, "parquet", tmp_path / "out")
    assert of_table(pq.read_table(out / "train-00000.parquet")) == expected(data.split("train"))
    files = {"train": str(out / "train-*.parquet")}
    loaded = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.features["label"].names == list(data.class_names)
    assert np.asarray(loaded[0]["image"]).shape == (48, 64, 3)


def test_webdataset_tars_are_read_by_tarfile_and_by_datasets(
    data: ShardSet, tmp_path: Path
) -> None:
    out = written(data, "webdataset", tmp_path / "out")
    with tarfile.open(out / "train-000000.tar") as tar:
        parts = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    whole = expected(data.split("train"))
    assert len(parts) == 3 * len(whole)
    for uid, (label, sha256) in whole.items():
        assert hashlib.sha256(parts[f"{uid}.jpg"]).hexdigest() == sha256
        assert int(parts[f"{uid}.cls"]) == label
        assert json.loads(parts[f"{uid}.json"])["class"] == data.class_names[label]
    files = {"train": str(out / "train-*.tar")}
    loaded = load_dataset("webdataset", data_files=files, cache_dir=str(tmp_path / "cache"))
    first = loaded["train"][0]
    assert np.asarray(first["jpg"]).shape == (48, 64, 3)
    assert first["cls"] == whole[first["__key__"].rsplit("/", 1)[-1]][0]


def test_an_image_folder_has_a_folder_for_each_class(data: ShardSet, tmp_path: Path) -> None:
    out = written(data, "image_folder", tmp_path / "out")
    for name in ("train", "test"):
        found = {
            path.stem: (
                data.class_names.index(path.parent.name),
                hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            for path in (out / name).glob("*/*")
        }
        assert found == expected(data.split(name))


def test_class_names_that_are_no_file_names_stay_apart() -> None:
    names = ["a/b", "a%2Fb", "..", ".", "", "%", "cat dog", "Käfer", ".hidden", "a\0b"]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert not [name for name in folders if "/" in name or "\0" in name or name.startswith(".")]


def test_removed_rows_are_left_out(data: ShardSet, tmp_path: Path) -> None:
    split = data.split("train")
    row = split.row(4)
    shard, place = split.locate(np.array([4]))
    entry = {
        **dict.fromkeys(TOMBSTONES.names, ""),
        "uid": row.uid,
        "split": "train",
        "shard": split.shard_names[int(shard[0])],
        "row": int(place[0]),
        "matched_uid": bytes(16),
        "hamming_bits": None,
        "cosine": None,
        "thumbnail_difference": None,
    }
    clean = tmp_path / "clean"
    clean.mkdir()
    for path in data.folder.iterdir():
        (clean / path.name).symlink_to(path)
    (clean / MANIFEST_FILE).unlink()
    write_table(clean / TOMBSTONES_FILE, pa.Table.from_pylist([entry], schema=TOMBSTONES))
    sha256 = sha256_of(clean / TOMBSTONES_FILE)
    manifest = data.manifest.revise(tombstones=TombstoneEntry(sha256=sha256, rows=1))
    (clean / MANIFEST_FILE).write_text(json.dumps(manifest.dump()))
    cleaned = ShardSet.open(clean).split("train")
    export([cleaned], "image_folder", tmp_path / "out", say=lambda _: None)
    left = {path.stem for path in (tmp_path / "out" / "train").glob("*/*")}
    assert left == set(expected(split)) - {row.uid.hex()}


def test_what_stands_at_the_place_stays(data: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists and stays as it is"):
        export([data.split("test")], "parquet", tmp_path, say=lambda _: None)
    with pytest.raises(UsageError, match=rf"'csv'; the forms are {', '.join(FORMS)}"):
        export([data.split("test")], "csv", tmp_path / "out", say=lambda _: None)


def test_a_damaged_row_is_never_exported(tmp_path: Path) -> None:
    data = small_set(tmp_path / "set", per_class=4)
    split = data.split("train")
    path = data.shards_folder / split.shard_names[0]
    content = bytearray(path.read_bytes())
    content[content.index(split.row(0).image) + 40] ^= 1
    path.write_bytes(content)
    damaged = ShardSet.open(data.folder).split("train")
    for form in FORMS:
        with pytest.raises(IntegrityError, match="not what was written"):
            export([damaged], form, tmp_path / form, say=lambda _: None)
        assert not (tmp_path / form).exists()

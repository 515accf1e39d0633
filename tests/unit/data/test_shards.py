from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_dataset

from pipeline.data.shards.shard_set import Row, ShardSet
from pipeline.data.staging import write_arrow
from schemas.errors import DataError, IntegrityError
from schemas.manifest import MANIFEST_FILE, SHARD_TABLE_FILE
from schemas.records import RECORD, ROWS_PER_BATCH
from tests.support.corpora import encode, picture
from tests.support.datasets import build, ingest_spec, small_set


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return small_set(tmp_path_factory.mktemp("shards"))


def shard_paths(data: ShardSet, split: str = "train") -> list[Path]:
    return [data.shards_folder / name for name in data.split(split).shard_names]


def test_a_split_has_the_rows_that_the_manifest_promises(shared: ShardSet) -> None:
    split = shared.split("train")
    assert split.num_rows == shared.manifest.splits["train"].rows == 36
    labels = [split.row(index).label for index in range(split.num_rows)]
    assert split.labels().tolist() == labels
    assert sorted(labels) == [0] * 12 + [1] * 12 + [2] * 12


def test_a_missing_split_is_named_with_those_there_are(shared: ShardSet) -> None:
    with pytest.raises(DataError, match=r"'tran'; the shard set has test, train .*'train'"):
        shared.split("tran")


def test_a_subset_is_a_split_of_the_chosen_rows(shared: ShardSet) -> None:
    split = shared.split("train")
    rows = np.array([0, 3, 4, 17, 35])
    subset = split.subset(rows)
    assert subset.num_rows == 5
    assert [subset.row(i).uid for i in range(5)] == [split.row(int(i)).uid for i in rows]
    assert subset.labels().tolist() == split.labels()[rows].tolist()
    shards, places = subset.locate(np.arange(5))
    found = [subset.read(int(s), int(p)).uid for s, p in zip(shards, places, strict=True)]
    assert found == [subset.row(i).uid for i in range(5)]
    assert subset.subset(np.array([1, 4])).row(1).uid == split.row(35).uid


def test_rows_of_a_subset_are_given_once_in_order(shared: ShardSet) -> None:
    with pytest.raises(ValueError, match="ascending"):
        shared.split("train").subset(np.array([1, 1]))


def test_stock_pyarrow_reads_a_shard(shared: ShardSet) -> None:
    for path in shard_paths(shared):
        table = pa.ipc.open_file(str(path)).read_all()
        assert (table.schema.names, table.schema.types) == (RECORD.names, RECORD.types)
        assert max(batch.num_rows for batch in table.to_batches()) <= ROWS_PER_BATCH


def test_hugging_face_datasets_shows_the_pictures(shared: ShardSet, tmp_path: Path) -> None:
    files = [str(path) for path in shard_paths(shared)]
    found = load_dataset(
        "arrow", data_files={"train": files}, cache_dir=str(tmp_path), split="train"
    )
    assert found.num_rows == 36
    assert np.asarray(found[0]["image"]).shape == (48, 64, 3)


def test_verify_accepts_what_was_written(shared: ShardSet) -> None:
    shared.verify()


def test_a_flipped_byte_of_an_image_is_found_when_its_row_is_read(tmp_path: Path) -> None:
    data = small_set(tmp_path, shard_bytes=10**6)
    split = data.split("train")
    image = split.row(7).image
    path = shard_paths(data)[0]
    content = bytearray(path.read_bytes())
    content[content.index(image) + len(image) // 2] ^= 1
    path.write_bytes(content)
    reopened = ShardSet.open(data.folder)
    with pytest.raises(IntegrityError, match=rf"{path.name} .* image of row 7"):
        reopened.split("train").row(7)
    assert reopened.split("train").row(6).image == split.row(6).image
    with pytest.raises(IntegrityError, match=path.name):
        reopened.verify()


def test_a_shard_of_another_size_is_refused(tmp_path: Path) -> None:
    data = small_set(tmp_path)
    path = shard_paths(data)[0]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(IntegrityError, match="bytes were written"):
        data.split("train").row(0)
    path.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        data.split("train").row(0)


def test_damaged_structure_is_an_integrity_error_and_no_crash(tmp_path: Path) -> None:
    data = small_set(tmp_path, shard_bytes=10**6)
    path = shard_paths(data)[0]
    whole = path.read_bytes()
    rng = np.random.Generator(np.random.PCG64(1))
    for place in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :])
        split = ShardSet.open(data.folder).split("train")
        for row in range(split.num_rows):
            try:
                split.row(row)
            except IntegrityError:
                continue


def test_a_changed_table_or_missing_manifest_is_refused(tmp_path: Path) -> None:
    data = small_set(tmp_path)
    table = data.folder / SHARD_TABLE_FILE
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="is not what was written"):
        ShardSet.open(data.folder)
    (data.folder / MANIFEST_FILE).unlink()
    with pytest.raises(DataError, match="holds no shard set"):
        ShardSet.open(data.folder)


def test_rows_of_many_batches_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "dots"
    folder.mkdir(parents=True)
    for index in range(2 * ROWS_PER_BATCH + 9):
        (folder / f"{index}.png").write_bytes(encode(picture(0, index, height=2, width=2), "PNG"))
    build(ingest_spec(tmp_path / "raw", image={"encoding": "png"}), tmp_path)
    split = ShardSet.open(tmp_path / "out").split("train")
    rows = [split.row(index) for index in range(split.num_rows)]
    assert len({row.uid for row in rows}) == len(rows)
    stored = [row for path in shard_paths(ShardSet.open(tmp_path / "out")) for row in plain(path)]
    assert [asdict(row) for row in rows] == stored


def plain(path: Path) -> list[dict[str, Any]]:
    """Rows as stock pyarrow reads them."""
    table = pa.ipc.open_file(str(path)).read_all()
    rows = table.select([field.name for field in fields(Row)]).to_pylist()
    return [{**row, "image": row["image"]["bytes"]} for row in rows]


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    data = small_set(tmp_path)
    path = shard_paths(data)[0]
    table = pa.ipc.open_file(str(path)).read_all()
    place = table.schema.get_field_index("label")
    label = table["label"].combine_chunks().view(pa.float32())
    write_arrow(
        path,
        table.set_column(place, pa.field("label", pa.float32(), nullable=False), label),
        rows_per_batch=ROWS_PER_BATCH,
    )
    with pytest.raises(IntegrityError, match=rf"{path.name} is not .*columns are not those"):
        data.split("train").row(0)

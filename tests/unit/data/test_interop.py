"""Shards are plain Arrow files: four readers that know nothing of Vitrail open them."""

import hashlib
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from datasets import load_dataset

from pipeline.data.images.decode import decode
from pipeline.data.shards.shard_set import ShardSet, Split
from schemas.records import RECORD, ROWS_PER_BATCH
from tests.support.datasets import small_set

Known = dict[str, tuple[int, str]]
"""Uid in hex -> label, sha256 of the image."""


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return small_set(tmp_path_factory.mktemp("shards")).split("train")


@pytest.fixture(scope="module")
def files(split: Split) -> list[str]:
    folder = split_folder(split)
    return [str(folder / name) for name in split.shard_names]


def split_folder(split: Split) -> Path:
    owner: ShardSet = split._owner
    return owner.shards_folder


def known(split: Split) -> Known:
    rows = [split.row(index) for index in range(split.num_rows)]
    return {row.uid.hex(): (row.label, hashlib.sha256(row.image).hexdigest()) for row in rows}


def test_pyarrow_reads_every_shard(split: Split, files: list[str]) -> None:
    found: Known = {}
    for file in files:
        table = pa.ipc.open_file(file).read_all()
        assert (table.schema.names, table.schema.types) == (RECORD.names, RECORD.types)
        assert max(batch.num_rows for batch in table.to_batches()) <= ROWS_PER_BATCH
        found |= {
            row["uid"].hex(): (row["label"], hashlib.sha256(row["image"]["bytes"]).hexdigest())
            for row in table.to_pylist()
        }
    assert found == known(split)


def test_polars_reads_every_shard(split: Split, files: list[str]) -> None:
    frame = pl.concat([pl.read_ipc(file) for file in files])
    found = {
        row["uid"].hex(): (row["label"], hashlib.sha256(row["image"]["bytes"]).hexdigest())
        for row in frame.select("uid", "label", "image").iter_rows(named=True)
    }
    assert found == known(split)


def test_duckdb_asks_a_shard_through_pyarrow(split: Split, files: list[str]) -> None:
    shards = pa.concat_tables([pa.ipc.open_file(file).read_all() for file in files])
    with duckdb.connect() as connection:
        connection.register("shards", shards)
        rows = connection.execute("select hex(uid), label, sha256(image.bytes) from shards")
        found = {uid.lower(): (label, sha256) for uid, label, sha256 in rows.fetchall()}
    assert found == known(split)


def test_hugging_face_datasets_shows_the_pictures(
    split: Split, files: list[str], tmp_path: Path
) -> None:
    shown = load_dataset(
        "arrow", data_files={"train": files}, cache_dir=str(tmp_path), split="train"
    )
    assert shown.num_rows == split.num_rows
    for index in (0, 17, 35):
        picture = shown[index]["image"]
        assert type(picture).__module__.startswith("PIL.")
        np.testing.assert_array_equal(np.asarray(picture), decode(split.row(index).image))


def test_mapped_buffers_are_aligned_as_far_as_pyarrow_lets_us(files: list[str]) -> None:
    """Its writer aligns to 8 bytes; the option for 64 is not exposed to Python."""
    for file in files:
        mapped = pa.memory_map(file).read_buffer()
        batch = pa.ipc.open_file(mapped).get_batch(0)
        buffers = [buffer for column in batch.columns for buffer in column.buffers() if buffer]
        assert {(buffer.address - mapped.address) % 8 for buffer in buffers} == {0}

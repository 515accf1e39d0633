from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.shards.shard_table import ShardTable, count_labels, find_removed
from pipeline.data.staging import write_table
from schemas.records import SHARD_TABLE, TOMBSTONES

SPLITS = ["test", "train", "train", "test", "train", "val"]
"""As after an append: the splits of the old set, then those of the new images."""


@pytest.fixture(params=[1, 2, 100])
def table(tmp_path: Path, request: pytest.FixtureRequest) -> ShardTable:
    rows = [
        {
            "name": f"{number}.arrow",
            "split": split,
            "rows": 10 + number,
            "bytes": 100 + number,
            "sha256": bytes([number]) * 32,
            "label_histogram": [(number % 2, 10), (7, number)],
        }
        for number, split in enumerate(SPLITS)
    ]
    path = tmp_path / "shards.arrow"
    write_table(path, pa.Table.from_pylist(rows, schema=SHARD_TABLE), rows_per_batch=request.param)
    return ShardTable(path)


@pytest.mark.parametrize("split", ["test", "train", "val", "other"])
def test_a_split_has_its_shards_in_the_order_of_the_table(table: ShardTable, split: str) -> None:
    mine = [number for number, name in enumerate(SPLITS) if name == split]
    found = table.split(split)
    assert found.rows.tolist() == [10 + number for number in mine]
    assert found.sizes.tolist() == [100 + number for number in mine]
    assert list(found.names) == found.names[:] == [f"{number}.arrow" for number in mine]
    assert [found.sha256(place) for place in range(len(mine))] == [
        f"{number:02x}" * 32 for number in mine
    ]
    assert len(found.names) == len(mine)


def test_labels_are_counted_over_a_part_of_the_table(table: ShardTable) -> None:
    counts = count_labels(table.split("train").mapped["label_histogram"], 8)
    assert counts.tolist() == [20, 10, 0, 0, 0, 0, 0, 1 + 2 + 4]


def test_removed_rows_are_found_by_shard_and_sorted(table: ShardTable) -> None:
    gone = [("train", 4, 3), ("test", 0, 1), ("train", 1, 9), ("train", 4, 0)]
    rows = [
        {
            **dict.fromkeys(TOMBSTONES.names, ""),
            "uid": bytes(16),
            "split": split,
            "shard": f"{shard}.arrow",
            "row": row,
            "matched_uid": bytes(16),
            "hamming_bits": None,
            "thumbnail_difference": None,
            "cosine": None,
        }
        for split, shard, row in gone
    ]
    tombstones = pa.Table.from_pylist(rows, schema=TOMBSTONES)
    removed = find_removed(tombstones, "train", table.split("train"))
    assert list(zip(removed.shard.tolist(), removed.row.tolist(), strict=True)) == [
        (0, 9),
        (2, 0),
        (2, 3),
    ]
    assert find_removed(tombstones, "val", table.split("val")).shard.tolist() == []
    assert find_removed(None, "train", table.split("train")).row.dtype == np.int64

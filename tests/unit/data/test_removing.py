from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.serial_pool import NeverStop, SerialPool
from pipeline.data.curation.removing import Found, remove_images
from pipeline.data.order import EpochOrder
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BuildTools, sha256_of
from schemas.curation import RemoveSpec
from schemas.errors import DataError
from tests.support.datasets import small_set, uids


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return small_set(tmp_path_factory.mktemp("set"), per_class=8)


def remove(data: ShardSet, where: Path, **fields: object) -> Found:
    spec = RemoveSpec.parse({"data": "corpus", **fields})
    where.mkdir(parents=True, exist_ok=True)
    tools = BuildTools(SerialPool(), where / "progress", NeverStop(), [].append)
    return remove_images(data, spec, tools=tools, out=where / "out")[1]


def test_named_images_go_from_every_split_and_nothing_else_changes(
    data: ShardSet, tmp_path: Path
) -> None:
    uid = data.split("test").row(3).uid
    sources = ["train/wave/002.jpg", "test/circle/005.jpg"]
    removed = remove(data, tmp_path, uids=[uid.hex()], sources=sources, note="request 17")
    assert set(removed.rows["reason"].to_pylist()) == {"taken_out"}
    assert set(removed.rows["note"].to_pylist()) == {"request 17"}
    after = ShardSet.open(tmp_path / "out")
    for name in ("train", "test"):
        split = data.split(name)
        rows = [split.row(index) for index in range(split.num_rows)]
        kept = [row.uid for row in rows if row.uid != uid and row.source not in sources]
        assert uids(after.split(name)) == kept
        assert after.manifest.splits[name].rows == len(kept)
    assert after.order_digest == data.order_digest
    assert after.manifest.parents == (data.digest,)
    for name in data.table["name"].to_pylist():
        assert sha256_of(after.shards_folder / name) == Path(name).stem
    after.verify()


@settings(
    deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn=st.sets(st.integers(0, 23), min_size=1, max_size=20), seed=st.integers(0, 9))
def test_removing_rows_never_reorders_the_others(
    data: ShardSet, tmp_path_factory: pytest.TempPathFactory, drawn: set[int], seed: int
) -> None:
    where = tmp_path_factory.mktemp("removed")
    split = data.split("train")
    gone = [split.row(index).uid for index in drawn]
    remove(data, where, uids=[uid.hex() for uid in gone])

    def epoch(some: ShardSet) -> list[bytes]:
        split = some.split("train")
        order = EpochOrder(
            split.shard_rows, digest=split.order_digest, seed=seed, epoch=1, removed=split.removed
        )
        places = zip(*order.locate(np.arange(order.num_rows)), strict=True)
        return [split.read(int(shard), int(row)).uid for shard, row in places]

    after = ShardSet.open(where / "out")
    assert epoch(after) == [uid for uid in epoch(data) if uid not in gone]


def test_a_second_removal_adds_to_the_first(data: ShardSet, tmp_path: Path) -> None:
    first, second = (data.split("train").row(index).uid.hex() for index in (0, 1))
    remove(data, tmp_path / "a", uids=[first])
    half = ShardSet.open(tmp_path / "a" / "out")
    removed = remove(half, tmp_path / "b", uids=[first, second], note="more")
    assert (len(removed.rows), removed.before, removed.missing) == (1, 1, ())
    table = ShardSet.open(tmp_path / "b" / "out").tombstones
    assert table is not None
    notes = dict(zip(table["uid"].to_pylist(), table["note"].to_pylist(), strict=True))
    assert notes == {bytes.fromhex(first): None, bytes.fromhex(second): "more"}


def test_names_that_are_not_in_the_set_are_told(data: ShardSet, tmp_path: Path) -> None:
    uid = data.split("train").row(0).uid.hex()
    names = {"uids": [uid, "0" * 32], "sources": ["train/wave/nothing.jpg"]}
    with pytest.raises(DataError, match="2 of the named images are not in the set: 0000"):
        remove(data, tmp_path / "a", **names)
    removed = remove(data, tmp_path / "b", allow_missing=True, **names)
    assert removed.missing == ("0" * 32, "train/wave/nothing.jpg")
    assert len(removed.rows) == 1


def test_a_split_cannot_be_emptied(data: ShardSet, tmp_path: Path) -> None:
    every = [uid.hex() for uid in uids(data.split("test"))]
    with pytest.raises(DataError, match="no image would be left in the split 'test'"):
        remove(data, tmp_path, uids=every)


@pytest.mark.parametrize("fields", [{}, {"uids": ["xyz"]}, {"uids": ["A" * 32]}])
def test_a_removal_names_images_by_whole_uids(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"names no image|is no uid"):
        RemoveSpec.parse({"data": "corpus", **fields})

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.filter import FilterResult, TestSplit, decontaminate
from pipeline.data.images.render import resize
from pipeline.data.loader import eval_batches
from pipeline.data.matching import _candidates
from pipeline.data.order import EpochOrder
from pipeline.data.shards import ShardSet
from pipeline.data.staging import BuildTools, sha256_of
from pipeline.ports import TaskPool
from schemas.data import FilterSpec
from schemas.errors import DataError, IntegrityError
from schemas.manifest import TOMBSTONES_FILE
from schemas.records import TOMBSTONES
from tests.support.corpora import encode, picture, write_folder
from tests.support.datasets import build, ingest_spec
from tests.support.pools import ChaosPool, NoStop, SerialPool

SPEC = FilterSpec(data="up", against=("down@test",))
EXACT = {f"circle/planted{n}.jpg": f"test/circle/{n:03d}.jpg" for n in range(3)}
NEAR = {
    "wave/smaller.jpg": "test/wave/000.jpg",
    "wave/coarser.jpg": "test/wave/001.jpg",
    "wave/mirrored.png": "test/wave/002.jpg",
}


def plant(up: Path, down: Path) -> None:
    """Three exact and three re-encoded copies of downstream test images."""
    for copy, original in EXACT.items():
        shutil.copy(down / original, up / copy)
    pixels = [picture(2, 10_000 + 1_000 + number) for number in range(3)]
    smaller = resize(pixels[0], (0, 0, 64, 48), (36, 48))
    (up / "wave" / "smaller.jpg").write_bytes(encode(smaller, quality=80))
    (up / "wave" / "coarser.jpg").write_bytes(encode(pixels[1], quality=40))
    (up / "wave" / "mirrored.png").write_bytes(encode(pixels[2][:, ::-1], "PNG"))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, ShardSet]:
    """An upstream set with planted copies, and a downstream set."""
    root = tmp_path_factory.mktemp("filter")
    up = write_folder(root / "up" / "raw", per_class=20, seed=5)
    down = write_folder(root / "down" / "raw", per_class=8, splits=("train", "test"), seed=1)
    plant(up, down)
    build(ingest_spec(up, shard_bytes=20_000), root / "up")
    build(ingest_spec(down, splits={"train": "train", "test": "test"}), root / "down")
    return ShardSet.open(root / "up" / "out"), ShardSet.open(root / "down" / "out")


def clean(
    sets: tuple[ShardSet, ShardSet],
    where: Path,
    *,
    spec: FilterSpec = SPEC,
    pool: TaskPool | None = None,
) -> FilterResult:
    up, down = sets
    tools = BuildTools(pool or SerialPool(), where / "progress", NoStop(), [].append)
    against = [TestSplit("down@test", down, "test")]
    return decontaminate((up, "train"), against, spec, tools=tools, out=where / "out")


def test_every_planted_copy_is_removed_and_listed_with_its_match(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    result = clean(sets, tmp_path)
    assert result.counts == {"removed": 6, "exact": 3, "near": 3, "not_comparable": 0}
    found = {removal.source: removal.matched_source for removal in result.removals}
    assert found == EXACT | NEAR
    table = ShardSet.open(tmp_path / "out").tombstones
    assert table is not None
    assert table.schema.equals(TOMBSTONES)
    rows = table.to_pylist()
    assert [row["uid"] for row in rows] == sorted(row["uid"] for row in rows)
    reasons = {row["source"]: row["reason"] for row in rows}
    assert reasons == dict.fromkeys(EXACT, "exact_copy") | dict.fromkeys(NEAR, "near_copy")
    assert {row["matched_set"] for row in rows} == {"down@test"}
    for row in rows:
        is_near = row["reason"] == "near_copy"
        assert (row["hamming_bits"] is not None) == is_near
        assert (row["thumbnail_difference"] is not None) == is_near


def test_the_cleaned_set_reads_without_the_removed_rows(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    result = clean(sets, tmp_path)
    before, after = sets[0].split("train"), ShardSet.open(tmp_path / "out").split("train")
    assert after.num_rows == before.num_rows - 6 == result.manifest.splits["train"].rows
    removed = {removal.uid for removal in result.removals}
    kept = [uid for uid in map(uid_of(before), range(before.num_rows)) if uid not in removed]
    assert list(map(uid_of(after), range(after.num_rows))) == kept
    assert len(after.labels()) == after.num_rows
    batches = eval_batches(after, image_px=(8, 8), batch_samples=50, threads=1)
    assert [uid.tobytes() for batch in batches for uid in batch.uid_B] == kept


def uid_of(split):  # type: ignore[no-untyped-def]
    return lambda index: split.row(index).uid


def test_the_remaining_rows_keep_their_training_order(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    result = clean(sets, tmp_path)
    removed = {removal.uid for removal in result.removals}

    def epoch(data: ShardSet) -> list[bytes]:
        split = data.split("train")
        order = EpochOrder(
            split.shard_rows, digest=split.order_digest, seed=1, epoch=3, removed=split.removed
        )
        places = zip(*order.locate(np.arange(order.num_rows)), strict=True)
        return [split.read(int(shard), int(row)).uid for shard, row in places]

    whole = epoch(sets[0])
    assert epoch(ShardSet.open(tmp_path / "out")) == [uid for uid in whole if uid not in removed]


def test_the_result_does_not_depend_on_the_pool(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    first = clean(sets, tmp_path / "a").digest
    second = clean(sets, tmp_path / "b", pool=ChaosPool(workers=3, seed=1)).digest
    assert first == second != sets[0].digest


def test_a_filter_of_a_filter_adds_to_what_is_removed(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    exactly = FilterSpec(data="up", against=("down@test",), max_thumbnail_difference=0.0)
    first = clean(sets, tmp_path / "first", spec=exactly)
    assert (first.counts["exact"], first.counts["near"]) == (3, 0)
    parent = ShardSet.open(tmp_path / "first" / "out")
    second = clean((parent, sets[1]), tmp_path / "second")
    assert (second.counts["exact"], second.counts["near"]) == (0, 3)
    data = ShardSet.open(tmp_path / "second" / "out")
    assert data.manifest.tombstones is not None
    assert data.manifest.tombstones.rows == 6
    assert data.manifest.parents == (parent.digest, sets[1].digest)
    assert data.order_digest == sets[0].order_digest
    data.verify()


def test_no_image_is_written_again(sets: tuple[ShardSet, ShardSet], tmp_path: Path) -> None:
    result = clean(sets, tmp_path)
    out = tmp_path / "out"
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == set(result.known_sha256)
    shards = [path for path in files if path.startswith("shards/")]
    assert shards
    for path in shards:
        assert (out / path).samefile(sets[0].folder / path)
        assert sha256_of(out / path) == result.known_sha256[path]


def test_a_filtered_set_outlives_the_folder_of_its_parent(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    parent = ShardSet.open(shutil.copytree(sets[0].folder, tmp_path / "parent"))
    clean((parent, sets[1]), tmp_path)
    shutil.rmtree(parent.folder)
    data = ShardSet.open(tmp_path / "out")
    data.verify()
    assert data.split("train").row(0).image


def test_changed_tombstones_are_refused(sets: tuple[ShardSet, ShardSet], tmp_path: Path) -> None:
    clean(sets, tmp_path)
    path = tmp_path / "out" / TOMBSTONES_FILE
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(IntegrityError, match=TOMBSTONES_FILE):
        ShardSet.open(tmp_path / "out")


def test_removing_everything_is_refused(sets: tuple[ShardSet, ShardSet], tmp_path: Path) -> None:
    down = sets[1]
    tools = BuildTools(SerialPool(), tmp_path / "progress", NoStop(), [].append)
    with pytest.raises(DataError, match="every image of the split 'test' also stands in"):
        decontaminate(
            (down, "test"),
            [TestSplit("down@test", down, "test")],
            SPEC,
            tools=tools,
            out=tmp_path / "out",
        )


def test_images_without_a_hash_are_compared_exactly(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=6, splits=("train", "test"))
    shutil.copy(folder / "test" / "wave" / "001.jpg", folder / "train" / "wave" / "copy.jpg")
    splits = {"train": "train", "test": "test"}
    build(ingest_spec(folder, splits=splits, near_duplicates=False), tmp_path)
    data = ShardSet.open(tmp_path / "out")
    result = clean((data, data), tmp_path / "clean")
    assert result.counts == {"removed": 1, "exact": 1, "near": 0, "not_comparable": 19}
    assert result.manifest.splits["test"] == data.manifest.splits["test"]


HASHES = st.integers(0, 2**64 - 1)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(HASHES, min_size=1, max_size=8),
    st.lists(HASHES, min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 7), st.sets(st.integers(0, 63), max_size=8)), max_size=8),
    st.integers(0, 7),
)
def test_the_search_by_bands_finds_exactly_the_near_pairs(
    own: list[int], wanted: list[int], flips: list[tuple[int, set[int]]], max_bits: int
) -> None:
    for place, bits in flips:
        wanted.append(own[place % len(own)] ^ sum(1 << bit for bit in bits))
    expected = {
        (i, j, (a ^ b).bit_count())
        for i, a in enumerate(own)
        for j, b in enumerate(wanted)
        if (a ^ b).bit_count() <= max_bits
    }
    found = list(_candidates(np.array(own, np.uint64), np.array(wanted, np.uint64), max_bits))
    assert set(found) == expected
    assert len(found) == len(expected), "each pair once"


def test_tombstones_open_with_stock_pyarrow(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    clean(sets, tmp_path)
    table = pa.ipc.open_file(str(tmp_path / "out" / TOMBSTONES_FILE)).read_all()
    assert table.num_rows == 6

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from infra.serial_pool import NeverStop, SerialPool
from pipeline.data.curation.filter import FilterResult, NamedSplit, filter_split
from pipeline.data.order import EpochOrder
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BuildTools, sha256_of
from pipeline.ports import TaskPool
from schemas.curation import FilterSpec, QualitySpec
from schemas.errors import DataError, IntegrityError, PausedError
from schemas.manifest import REMOVAL_REASONS, TOMBSTONES_FILE
from schemas.records import TOMBSTONES
from schemas.report import TestCopiesRow
from tests.support.corpora import encode, picture, write_folder
from tests.support.datasets import build, ingest_spec, uids
from tests.support.pools import ChaosPool, DyingPool, KilledError, StopAfter

SPEC = FilterSpec(data="up", against=("down@test",))
EXACT = {f"circle/planted{n}.jpg": f"test/circle/{n:03d}.jpg" for n in range(3)}
NEAR = {
    "wave/smaller.jpg": "test/wave/000.jpg",
    "wave/coarser.jpg": "test/wave/001.jpg",
    "wave/mirrored.png": "test/wave/002.jpg",
}
PLANTED = {"exact_copy": 3, "near_copy": 3}


def shrunk(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((48, 36), Image.Resampling.BILINEAR))


def plant(up: Path, down: Path) -> None:
    """Three exact and three re-encoded copies of downstream test images, four twins of upstream."""
    for number in range(4):
        twin = encode(picture(0, 50_000 + number), quality=60)
        (up / "circle" / f"twin{number}.jpg").write_bytes(twin)
    for copy, original in EXACT.items():
        shutil.copy(down / original, up / copy)
    pixels = [picture(2, 10_000 + 1_000 + number) for number in range(3)]
    (up / "wave" / "smaller.jpg").write_bytes(encode(shrunk(pixels[0]), quality=80))
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
    block_rows: int = 1000,
) -> FilterResult:
    up, down = sets
    tools = BuildTools(pool or SerialPool(), where / "progress", NeverStop(), [].append)
    against = [NamedSplit("down@test", down, "test")] if spec.against else []
    cleaned = NamedSplit("up@train", up, "train")
    return filter_split(
        cleaned, against, spec, tools=tools, out=where / "out", block_rows=block_rows
    )


def matches(result: FilterResult) -> dict[str, str]:
    columns = result.removals.select(["source", "matched_source"]).to_pydict()
    return dict(zip(columns["source"], columns["matched_source"], strict=True))


def test_every_planted_copy_is_removed_and_listed_with_its_match(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    result = clean(sets, tmp_path)
    assert (result.reasons, result.not_comparable) == (PLANTED, 0)
    row = TestCopiesRow(test_set="down@test", found=6, images=24, removed=6)
    assert result.tests == (row,)
    assert matches(result) == EXACT | NEAR
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
        read = sets[1].split("test")
        matched = {read.row(index).uid: read.row(index) for index in range(read.num_rows)}
        assert matched[row["matched_uid"]].source == row["matched_source"]


def test_the_cleaned_set_reads_without_the_removed_rows(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    result = clean(sets, tmp_path)
    before, after = sets[0].split("train"), ShardSet.open(tmp_path / "out").split("train")
    assert after.num_rows == before.num_rows - 6 == result.derived.manifest.splits["train"].rows
    removed = set(result.removals["uid"].to_pylist())
    assert uids(after) == [uid for uid in uids(before) if uid not in removed]
    assert len(after.labels()) == after.num_rows


def test_the_remaining_rows_keep_their_training_order(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    result = clean(sets, tmp_path)
    removed = set(result.removals["uid"].to_pylist())

    def epoch(data: ShardSet) -> list[bytes]:
        split = data.split("train")
        order = EpochOrder(
            split.shard_rows, digest=split.order_digest, seed=1, epoch=3, removed=split.removed
        )
        places = zip(*order.locate(np.arange(order.num_rows)), strict=True)
        return [split.read(int(shard), int(row)).uid for shard, row in places]

    whole = epoch(sets[0])
    assert epoch(ShardSet.open(tmp_path / "out")) == [uid for uid in whole if uid not in removed]


ALL_RULES = FilterSpec(
    data="up",
    against=("down@test",),
    near_duplicates="keep_first",
    quality=QualitySpec(max_brightness=150.0),
)
"""Rows go for each reason: two kinds of copies, twins, and what is bright."""


def test_the_result_depends_neither_on_the_pool_nor_on_the_blocks(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    first = clean(sets, tmp_path / "a", spec=ALL_RULES)
    assert len(first.reasons) == 4
    for name, rows in (("b", 1), ("c", 25)):
        pool = ChaosPool(workers=3, seed=rows)
        again = clean(sets, tmp_path / name, spec=ALL_RULES, pool=pool, block_rows=rows)
        assert again.derived.digest == first.derived.digest
        assert again.tests == first.tests
    assert first.derived.digest != sets[0].digest


@pytest.mark.parametrize("survives", [0, 3, 8, 14])
def test_a_filter_that_was_killed_goes_on(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path, survives: int
) -> None:
    with pytest.raises(KilledError):
        clean(sets, tmp_path, spec=ALL_RULES, pool=DyingPool(survives), block_rows=25)
    digest = clean(sets, tmp_path, spec=ALL_RULES, block_rows=25).derived.digest
    assert digest == clean(sets, tmp_path / "whole", spec=ALL_RULES).derived.digest


def test_a_filter_can_be_stopped(sets: tuple[ShardSet, ShardSet], tmp_path: Path) -> None:
    up, down = sets
    tools = BuildTools(SerialPool(), tmp_path / "progress", StopAfter(1), [].append)
    with pytest.raises(PausedError, match="run again"):
        filter_split(
            NamedSplit("up@train", up, "train"),
            [NamedSplit("down@test", down, "test")],
            SPEC,
            tools=tools,
            out=tmp_path / "out",
            block_rows=10,
        )


def test_a_filter_of_a_filter_adds_to_what_is_removed(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    exactly = SPEC.revise(max_thumbnail_difference=0.0)
    assert clean(sets, tmp_path / "first", spec=exactly).reasons == {"exact_copy": 3}
    parent = ShardSet.open(tmp_path / "first" / "out")
    assert clean((parent, sets[1]), tmp_path / "second").reasons == {"near_copy": 3}
    data = ShardSet.open(tmp_path / "second" / "out")
    assert data.manifest.tombstones is not None
    assert data.manifest.tombstones.rows == 6
    assert data.manifest.parents == (parent.digest, sets[1].digest)
    assert data.order_digest == sets[0].order_digest
    data.verify()


def test_no_image_is_written_again(sets: tuple[ShardSet, ShardSet], tmp_path: Path) -> None:
    known = clean(sets, tmp_path).derived.known_sha256
    out = tmp_path / "out"
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == set(known)
    shards = [path for path in files if path.startswith("shards/")]
    assert shards
    for path in shards:
        assert (out / path).samefile(sets[0].folder / path)
        assert sha256_of(out / path) == known[path]


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
    test = NamedSplit("down@test", sets[1], "test")
    tools = BuildTools(SerialPool(), tmp_path / "progress", NeverStop(), [].append)
    with pytest.raises(DataError, match="no image of down@test would be left"):
        filter_split(test, [test], SPEC, tools=tools, out=tmp_path / "out")


def test_images_without_a_hash_are_compared_exactly(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=6, splits=("train", "test"))
    shutil.copy(folder / "test" / "wave" / "001.jpg", folder / "train" / "wave" / "copy.jpg")
    splits = {"train": "train", "test": "test"}
    build(ingest_spec(folder, splits=splits, near_duplicates=False), tmp_path)
    data = ShardSet.open(tmp_path / "out")
    spec = SPEC.revise(near_duplicates="keep_first", quality=QualitySpec(min_brightness=255.0))
    result = clean((data, data), tmp_path / "clean", spec=spec)
    assert (result.reasons, result.not_comparable) == ({"exact_copy": 1}, 19)
    assert result.derived.manifest.splits["test"] == data.manifest.splits["test"]


def test_tombstones_open_with_stock_pyarrow(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    clean(sets, tmp_path)
    table = pa.ipc.open_file(str(tmp_path / "out" / TOMBSTONES_FILE)).read_all()
    assert table.num_rows == 6


def twins(tmp_path: Path) -> ShardSet:
    """Near copies of `wave/000.jpg` under two classes, and pictures that are all different."""
    folder = write_folder(tmp_path / "raw", per_class=6)
    pixels = picture(2, 0)
    (folder / "wave" / "again.jpg").write_bytes(encode(pixels, quality=50))
    (folder / "wave" / "small.png").write_bytes(encode(shrunk(pixels), "PNG"))
    (folder / "circle" / "mirror.png").write_bytes(encode(pixels[:, ::-1], "PNG"))
    build(ingest_spec(folder, shard_bytes=20_000), tmp_path)
    return ShardSet.open(tmp_path / "out")


def test_of_near_duplicates_the_first_stays(tmp_path: Path) -> None:
    data = twins(tmp_path)
    family = {"wave/000.jpg", "wave/again.jpg", "wave/small.png", "circle/mirror.png"}
    split = data.split("train")
    order = [split.row(index).source for index in range(split.num_rows)]
    kept, *gone = (source for source in order if source in family)
    result = clean((data, data), tmp_path, spec=FilterSpec(data="up", near_duplicates="keep_first"))
    assert matches(result) == dict.fromkeys(gone, kept)
    assert result.reasons == {"near_duplicate": 3}
    assert set(result.removals["matched_set"].to_pylist()) == {"up@train"}
    assert result.other_label == (3 if kept == "circle/mirror.png" else 1)
    after = ShardSet.open(tmp_path / "out").split("train")
    assert [after.row(index).source for index in range(after.num_rows)] == [
        source for source in order if source not in gone
    ]


def test_what_is_out_for_another_reason_keeps_nothing_out(tmp_path: Path) -> None:
    """One of four near copies is too small: it goes for that, and no other goes because of it."""
    data = twins(tmp_path)
    spec = FilterSpec(data="up", near_duplicates="keep_first", quality=QualitySpec(min_side_px=40))
    result = clean((data, data), tmp_path, spec=spec)
    assert result.reasons == {"near_duplicate": 2, "too_small": 1}
    small = result.removals.filter(pc.equal(result.removals["reason"], "too_small"))
    assert small["source"].to_pylist() == ["wave/small.png"]
    assert "wave/small.png" not in matches(result).values()


def test_quality_rules_judge_sides_and_brightness(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=3)
    odd = {
        "too_small": np.full((20, 20, 3), 128, np.uint8),
        "too_long": np.full((40, 400, 3), 128, np.uint8),
        "too_dark": np.full((64, 64, 3), 3, np.uint8),
        "too_bright": np.full((64, 64, 3), 250, np.uint8),
    }
    for name, pixels in odd.items():
        (folder / "wave" / f"{name}.png").write_bytes(encode(pixels, "PNG"))
    build(ingest_spec(folder), tmp_path)
    data = ShardSet.open(tmp_path / "out")
    rules = QualitySpec(
        min_side_px=32, max_aspect_ratio=4.0, min_brightness=20.0, max_brightness=235.0
    )
    result = clean((data, data), tmp_path, spec=FilterSpec(data="up", quality=rules))
    found = result.removals.select(["source", "reason"]).to_pylist()
    assert {row["source"]: row["reason"] for row in found} == {
        f"wave/{name}.png": name for name in odd
    }
    assert set(odd) < set(REMOVAL_REASONS)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "without a rule"),
        ({"quality": {}}, "quality asks nothing"),
        ({"quality": {"min_brightness": 9.0, "max_brightness": 3.0}}, "is above max_brightness"),
    ],
)
def test_rules_that_say_nothing_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FilterSpec.parse({"data": "up", **fields})

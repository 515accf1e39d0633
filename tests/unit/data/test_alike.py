"""The tier of `filter` that compares features: against all pairs, one by one."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from infra.serial_pool import NeverStop, SerialPool
from pipeline.data.curation import alike
from pipeline.data.curation.filter import FilterResult, NamedSplit, filter_split
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BuildTools, write_table
from pipeline.ports import TaskPool
from schemas.curation import FilterSpec, QualitySpec
from schemas.errors import IntegrityError
from tests.support.corpora import write_folder
from tests.support.datasets import build, ingest_spec
from tests.support.pools import ChaosPool

MIN_COSINE = 0.9
FIELDS = {"features": ("f",), "min_cosine": MIN_COSINE}
WITHIN = FilterSpec(data="up", near_duplicates="keep_first", **FIELDS)
AGAINST = FilterSpec(data="up", against=("down@train",), **FIELDS)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, ShardSet]:
    """120 images in several shards, and 30 others; none looks like another."""
    root = tmp_path_factory.mktemp("alike")
    for name, per_class, seed in (("up", 40, 5), ("down", 10, 1)):
        raw = write_folder(root / name / "raw", per_class=per_class, seed=seed)
        build(ingest_spec(raw, shard_bytes=20_000), root / name)
    return ShardSet.open(root / "up" / "out"), ShardSet.open(root / "down" / "out")


def named(data: ShardSet, where: Path, name: str, vectors: np.ndarray) -> NamedSplit:
    """The split `train`, with these features of its rows."""
    split = data.split("train")
    uids = [split.row(index).uid for index in range(split.num_rows)]
    columns = {
        "uid": pa.array(uids, pa.binary(16)),
        "features": pa.array(list(vectors), pa.list_(pa.float32(), vectors.shape[1])),
    }
    path = where / f"{name}.arrow"
    write_table(path, pa.table(columns), rows_per_batch=7)
    return NamedSplit(f"{name}@train", data, "train", path)


def clusters(count: int, seed: int) -> np.ndarray:
    """Vectors in twelve loose clusters, so that chains of alike ones occur."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(12, 6))
    return (centres[rng.integers(0, 12, count)] + 0.35 * rng.normal(size=(count, 6))).astype("f4")


def run(
    cleaned: NamedSplit,
    against: list[NamedSplit],
    spec: FilterSpec,
    where: Path,
    *,
    block_rows: int = 1000,
    pool: TaskPool | None = None,
) -> FilterResult:
    tools = BuildTools(pool or SerialPool(), where / "progress", NeverStop(), [].append)
    return filter_split(
        cleaned, against, spec, tools=tools, out=where / "out", block_rows=block_rows
    )


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first, second = first.astype(float), second.astype(float)
    lengths = np.outer(np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1))
    return first @ second.T / lengths


def greedy(vectors: np.ndarray) -> dict[int, int]:
    """Row that goes -> the one that stays instead, one image after the other."""
    like, gone = cosines(vectors, vectors) >= MIN_COSINE, {}
    for row in range(len(vectors)):
        keepers = [it for it in range(row) if it not in gone and like[it, row]]
        if keepers:
            gone[row] = keepers[0]
    return gone


@pytest.mark.parametrize("block_rows", [1000, 35])
@pytest.mark.parametrize("pieces", [(1024, 8192), (4, 8)])
def test_a_greedy_set_is_kept_for_any_cut(
    block_rows: int,
    pieces: tuple[int, int],
    sets: tuple[ShardSet, ShardSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alike, "_KEEPERS_AT_ONCE", pieces[0])
    monkeypatch.setattr(alike, "_ROWS_AT_ONCE", pieces[1])
    vectors = clusters(120, 1)
    up = named(sets[0], tmp_path, "up", vectors)
    result = run(up, [], WITHIN, tmp_path, block_rows=block_rows, pool=ChaosPool(workers=3, seed=5))
    expected = greedy(vectors)
    split = sets[0].split("train")
    uids = [split.row(index).uid for index in range(120)]
    found = dict(
        zip(
            result.removals["uid"].to_pylist(),
            result.removals["matched_uid"].to_pylist(),
            strict=True,
        )
    )
    assert found == {uids[row]: uids[keeper] for row, keeper in expected.items()}
    assert result.reasons == {"alike_duplicate": len(expected)}
    assert 60 < len(expected) < 115
    for row in result.removals.to_pylist():
        pair = vectors[[uids.index(row["uid"]), uids.index(row["matched_uid"])]]
        assert row["cosine"] == pytest.approx(cosines(pair[:1], pair[1:])[0, 0], abs=1e-6)
        assert row["hamming_bits"] is row["thumbnail_difference"] is None


@pytest.mark.parametrize("block_rows", [1000, 12])
def test_images_alike_to_test_images_go(
    block_rows: int, sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    vectors, tests = clusters(120, 1), clusters(30, 2)
    up = named(sets[0], tmp_path, "up", vectors)
    down = named(sets[1], tmp_path, "down", tests)
    result = run(up, [down], AGAINST, tmp_path, block_rows=block_rows)
    like = cosines(vectors, tests) >= MIN_COSINE
    assert result.reasons == {"alike_copy": int(like.any(axis=1).sum())}
    (row,) = result.tests
    assert (row.found, row.removed) == (like.any(axis=0).sum(), like.any(axis=1).sum())
    assert 0 < row.found < 30


def test_earlier_rules_come_first(sets: tuple[ShardSet, ShardSet], tmp_path: Path) -> None:
    """What is too bright is no copy, and nothing is a copy of it."""
    up = named(sets[0], tmp_path, "up", np.ones((120, 2)))
    spec = WITHIN.revise(quality=QualitySpec(min_side_px=40, max_brightness=130.0))
    result = run(up, [], spec, tmp_path / "b", block_rows=50)
    bright = result.reasons["too_bright"]
    assert result.reasons == {"alike_duplicate": 119 - bright, "too_bright": bright}
    (keeper,) = set(
        result.removals.filter(pc.equal(result.removals["reason"], "alike_duplicate"))[
            "matched_uid"
        ].to_pylist()
    )
    assert keeper not in result.removals["uid"].to_pylist()


def test_features_of_other_images_are_refused(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    up = named(sets[0], tmp_path, "up", clusters(120, 1))
    table = pa.ipc.open_file(str(up.features)).read_all()
    write_table(up.features, table.take(pa.array(np.arange(120)[::-1])))
    with pytest.raises(IntegrityError, match="features of other images"):
        run(up, [], WITHIN, tmp_path)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"against": ["a"], "features": ["f"]}, "belong together"),
        ({"against": ["a"], "min_cosine": 0.9}, "belong together"),
        ({"quality": {"min_side_px": 3}, "features": ["f"], "min_cosine": 0.9}, "give against or"),
    ],
)
def test_what_says_nothing_is_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FilterSpec.parse({"data": "up", **fields})

"""A pass over a split gives the same bytes however the work is shared out and interrupted."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.serial_pool import NeverStop, SerialPool
from pipeline.data.feed.loader import Batch
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BuildTools
from pipeline.evaluation.passes import (
    PASSES_FOLDER,
    Pass,
    cut,
    list_column,
    pixels_of,
    run_pass,
    uids_of,
)
from pipeline.model.backbone import Backbone
from pipeline.model.vit import build
from pipeline.ports import StopSignal, TaskPool
from schemas.errors import DataError, IntegrityError, PausedError
from tests.support.datasets import small_set, uids
from tests.support.models import tiny_spec
from tests.support.pools import ChaosPool, DyingPool, KilledError, StopAfter


@dataclass(frozen=True)
class Features:
    """Of a model with random weights."""

    seed: int = 1

    def load(self, device: torch.device) -> "LoadedFeatures":
        return LoadedFeatures(build(tiny_spec(image_px=(8, 8)), seed=self.seed).to(device).eval())


@dataclass
class LoadedFeatures:
    model: Backbone
    image_px: tuple[int, int] = (8, 8)
    columns: pa.Schema = field(
        default_factory=lambda: pa.schema([pa.field("features", pa.list_(pa.float32()))])
    )

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> list[pa.Array]:
        features = self.model.forward_features(pixels_of(batch, self.model))
        return [list_column(features.float().cpu().numpy())]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return small_set(tmp_path_factory.mktemp("data"))


def a_pass(data: ShardSet, **changes: object) -> Pass:
    fields = {"split": "train", "work": Features(), "batch_samples": 5, "threads": 1}
    return Pass(dataset=data.folder, **{**fields, **changes})  # type: ignore[arg-type]


def done(
    task: Pass, where: Path, *, pool: TaskPool | None = None, stop: StopSignal | None = None
) -> pa.Table:
    tools = BuildTools(pool or SerialPool(), where, stop or NeverStop(), [].append)
    return run_pass(task, where / "out.arrow", tools=tools, label="work", at_once=2)


def test_the_table_has_every_image_once_in_storage_order(data: ShardSet, tmp_path: Path) -> None:
    table = done(a_pass(data), tmp_path)
    split = data.split("train")
    assert split.num_rows == 36
    assert table["uid"].to_pylist() == uids(split)
    assert uids_of(table).tolist() == uids(split)
    assert table["label"].to_pylist() == split.labels().tolist()
    assert [len(row) for row in table["features"].to_pylist()] == [24] * 36


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_bytes_are_the_same_for_any_workers_and_order_of_tasks(
    data: ShardSet, tmp_path: Path, workers: int
) -> None:
    done(a_pass(data), tmp_path / "alone")
    done(a_pass(data), tmp_path / "many", pool=ChaosPool(workers=workers, seed=workers))
    paths = [tmp_path / name / "out.arrow" for name in ("alone", "many")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_whole_pieces_are_not_done_again_after_a_kill(data: ShardSet, tmp_path: Path) -> None:
    done(a_pass(data), tmp_path / "whole")
    where = tmp_path / "killed"
    with pytest.raises(KilledError):
        done(a_pass(data), where, pool=DyingPool(3))
    pieces = {path: path.stat().st_mtime_ns for path in where.rglob("0*.arrow")}
    assert len(pieces) == 4, "the pool dies after a fourth piece that nobody hears of"
    done(a_pass(data), where)
    assert {path: path.stat().st_mtime_ns for path in pieces} == pieces
    assert (where / "out.arrow").read_bytes() == (tmp_path / "whole" / "out.arrow").read_bytes()


def test_a_stop_pauses_between_pieces_and_the_next_call_goes_on(
    data: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(PausedError, match="stopped on request while work, 3 of 8 done"):
        done(a_pass(data), tmp_path, stop=StopAfter(2))
    assert len(list(tmp_path.rglob("0*.arrow"))) == 3
    assert len(done(a_pass(data), tmp_path)) == 36


@pytest.mark.parametrize("change", [{"batch_samples": 6}, {"threads": 2}, {"work": Features(2)}])
def test_pieces_of_another_pass_are_not_taken(
    data: ShardSet, tmp_path: Path, change: dict[str, object]
) -> None:
    done(a_pass(data), tmp_path)
    before = len(list((tmp_path / PASSES_FOLDER).iterdir()))
    done(a_pass(data, **change), tmp_path)
    assert len(list((tmp_path / PASSES_FOLDER).iterdir())) == before + 1


def test_the_first_images_are_those_of_the_whole_pass(data: ShardSet, tmp_path: Path) -> None:
    whole, some = done(a_pass(data), tmp_path / "a"), done(a_pass(data, images=10), tmp_path / "b")
    assert some.equals(whole.slice(0, 10))
    assert len(done(a_pass(data, images=1000), tmp_path / "c")) == 36


@given(st.integers(1, 5000), st.integers(1, 300))
def test_pieces_have_every_batch_once_and_are_small(rows: int, batch_samples: int) -> None:
    pieces = cut(rows, batch_samples)
    numbers = [number for piece in pieces for number in piece]
    assert numbers == list(range(-(-rows // batch_samples)))
    assert all(len(piece) * batch_samples <= max(256, batch_samples) for piece in pieces)
    assert len(pieces) >= min(16, len(numbers))


def test_an_unknown_split_is_refused(data: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'train'"):
        done(a_pass(data, split="trian"), tmp_path)


def test_a_pass_that_gives_an_image_twice_is_refused(
    data: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = [range(4), range(3, 8)]
    monkeypatch.setattr("pipeline.evaluation.passes.cut", lambda *_: twice)
    with pytest.raises(IntegrityError, match="36 images but the pass gave 41, 36 of them distinct"):
        done(a_pass(data), tmp_path)


def test_a_column_of_lists_holds_the_numbers_of_each_image() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert list_column(values).to_pylist() == values.tolist()
    assert list_column(np.empty((2, 0), np.float32)).to_pylist() == [[], []]

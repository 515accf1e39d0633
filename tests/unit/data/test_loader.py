import gc
import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.feed.loader import TrainLoader, eval_batches, probe_batch
from pipeline.data.feed.mixtures import AnyData
from pipeline.data.shards.shard_set import ShardSet
from schemas.errors import DataError, IntegrityError
from schemas.samples import AugmentSpec, BatchSpec
from tests.support.datasets import small_set
from tests.support.loading import damage, samples

PX = (16, 20)
EVERYTHING = AugmentSpec(crop="inception", flip=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return small_set(tmp_path_factory.mktemp("loader"))


def loader(
    data: AnyData, *, global_samples: int = 8, tail: Any = "drop", **changes: Any
) -> TrainLoader:
    fields = {
        "augment": EVERYTHING,
        "image_px": PX,
        "batch": BatchSpec(global_samples=global_samples, tail=tail),
        "seed": 5,
        "rank": 0,
        "world_size": 1,
        "micro_batch": 8,
        "threads": 1,
    }
    return TrainLoader(data, **{**fields, **changes})


def steps(split: AnyData, count: int, *, start: int = 0, **changes: Any) -> list[list[bytes]]:
    """The bytes of every sample (pixels, label, uid) of `count` steps."""
    with loader(split, **changes) as train:
        return [
            [sample for batch in micro for sample in samples(batch)]
            for micro in itertools.islice(train.batches(start), count)
        ]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 4])
def test_batches_are_the_same_for_any_world_and_threads(
    shared: ShardSet, world: int, threads: int
) -> None:
    split = shared.split("train")
    expected = steps(split, 9)
    ranks = [
        steps(split, 9, rank=rank, world_size=world, micro_batch=2, threads=threads)
        for rank in range(world)
    ]
    joined = [[sample for rank in ranks for sample in rank[step]] for step in range(9)]
    assert joined == expected


@pytest.mark.parametrize("start", [1, 3, 4, 11])
def test_a_loader_may_start_at_any_step(shared: ShardSet, start: int) -> None:
    split = shared.split("train")
    assert steps(split, 2, start=start) == steps(split, start + 2)[start:]


def test_steps_that_are_planned_apart_are_the_same(
    shared: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = shared.split("train")
    together = steps(split, 9)
    monkeypatch.setattr("pipeline.data.feed.loader.SAMPLES_TOGETHER", 1)
    assert steps(split, 9) == together


def test_an_epoch_has_no_row_twice_and_the_next_has_another_order(shared: ShardSet) -> None:
    split = shared.split("train")
    with loader(split, global_samples=12, micro_batch=12) as train:
        assert train.steps_per_epoch == 3
        uids = [
            uid.tobytes()
            for (batch,) in itertools.islice(train.batches(0), 6)
            for uid in batch.uid_B
        ]
    first, second = uids[:36], uids[36:]
    assert len(set(first)) == len(set(second)) == 36
    assert set(first) == set(second)
    assert first != second


def test_a_subset_is_loaded_like_a_split(shared: ShardSet) -> None:
    split = shared.split("train")
    chosen = np.arange(1, 36, 3)
    subset = split.subset(chosen)
    with loader(subset, global_samples=12, micro_batch=4) as train:
        micro = next(iter(train.batches(0)))
    assert [len(batch) for batch in micro] == [4, 4, 4]
    found = {uid.tobytes() for batch in micro for uid in batch.uid_B}
    assert found == {split.row(int(row)).uid for row in chosen}


def test_evaluation_reads_every_row_once_in_storage_order(shared: ShardSet) -> None:
    split = shared.split("test")
    batches = list(eval_batches(split, image_px=PX, batch_samples=10, threads=3))
    assert [len(batch) for batch in batches] == [10, 10, 10, 6]
    uids = [uid.tobytes() for batch in batches for uid in batch.uid_B]
    assert uids == [split.row(index).uid for index in range(36)]
    labels = np.concatenate([batch.label_B for batch in batches])
    np.testing.assert_array_equal(labels, split.labels())


def test_a_probe_batch_is_the_first_rows(shared: ShardSet) -> None:
    split = shared.split("train")
    probe = probe_batch(split, 5, PX)
    first = next(iter(eval_batches(split, image_px=PX, batch_samples=5, threads=1)))
    assert samples(probe) == samples(first)
    assert len(probe_batch(split, 100, PX)) == 36


def test_without_augmentation_training_sees_what_evaluation_sees(shared: ShardSet) -> None:
    split = shared.split("train")
    plain = {
        sample
        for batch in eval_batches(split, image_px=PX, batch_samples=36, threads=1)
        for sample in samples(batch)
    }
    assert set(steps(split, 1, augment=AugmentSpec())[0]) < plain


def test_fewer_rows_than_a_global_batch_is_refused(shared: ShardSet) -> None:
    with pytest.raises(DataError, match="36 images, fewer than one global batch of 64"):
        loader(shared.split("train"), global_samples=64)


def test_no_thread_is_left_behind(shared: ShardSet) -> None:
    before = threading.active_count()
    train = loader(shared.split("train"), threads=3)
    iterator = train.batches(0)
    next(iterator)
    assert threading.active_count() > before
    del iterator
    gc.collect()
    assert threading.active_count() == before
    kept = train.batches(0)
    next(kept)
    train.close()
    assert threading.active_count() == before


def test_a_bad_row_is_replaced_alike_on_every_topology(tmp_path: Path) -> None:
    data = small_set(tmp_path)
    whole = steps(data.split("train"), 4)
    gone = damage(data, [3, 20])
    split = ShardSet.open(data.folder).split("train")
    alone = steps(split, 4)
    halves = [steps(split, 4, rank=rank, world_size=2, micro_batch=4) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == alone
    changed = [
        (old, new)
        for one, other in zip(whole, alone, strict=True)
        for old, new in zip(one, other, strict=True)
        if old != new
    ]
    assert len(changed) == sum(sample[-16:] in gone for step in whole for sample in step) > 0
    assert all(old[-16:] in gone and new[-16:] not in gone for old, new in changed)


def test_replacements_are_counted_and_too_many_are_fatal(tmp_path: Path) -> None:
    data = small_set(tmp_path)
    damage(data, [3])
    with loader(ShardSet.open(data.folder).split("train"), global_samples=36) as train:
        next(iter(train.batches(0)))
        assert train.replaced >= 1
    damage(data, [row for row in range(36) if row != 3])
    with (
        loader(ShardSet.open(data.folder).split("train"), global_samples=36) as train,
        pytest.raises(IntegrityError, match="rows read are damaged"),
    ):
        next(iter(train.batches(0)))


def test_evaluation_replaces_nothing(tmp_path: Path) -> None:
    data = small_set(tmp_path)
    damage(data, [3])
    split = ShardSet.open(data.folder).split("train")
    with pytest.raises(IntegrityError, match="not what was written"):
        list(eval_batches(split, image_px=PX, batch_samples=10, threads=2))

import gc
import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.augment import CropParams, Draws, apply, centre_box, uniforms
from pipeline.data.images.render import decode, resize
from pipeline.data.loader import Batch, TrainLoader, eval_batches, probe_batch
from pipeline.data.shards import AnySplit, ShardSet
from schemas.errors import DataError, IntegrityError
from schemas.training import AugmentSpec
from tests.support.corpora import encode, picture
from tests.support.datasets import small_set

PX = (16, 20)
EVERYTHING = AugmentSpec(crop="inception", flip=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return small_set(tmp_path_factory.mktemp("loader"))


def loader(split: AnySplit, **changes: Any) -> TrainLoader:
    fields = {
        "augment": EVERYTHING,
        "image_px": PX,
        "global_samples": 8,
        "seed": 5,
        "rank": 0,
        "world_size": 1,
        "micro_batch": 8,
        "threads": 1,
    }
    return TrainLoader(split, **{**fields, **changes})


def steps(split: AnySplit, count: int, *, start: int = 0, **changes: Any) -> list[list[bytes]]:
    """The bytes of every sample (pixels, label, uid) of `count` steps."""
    with loader(split, **changes) as train:
        return [
            [sample for batch in micro for sample in samples(batch)]
            for micro in itertools.islice(train.batches(start), count)
        ]


def samples(batch: Batch) -> list[bytes]:
    return [
        batch.pixels_BHWC[i].tobytes() + batch.label_B[i].tobytes() + batch.uid_B[i].tobytes()
        for i in range(len(batch))
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
    monkeypatch.setattr("pipeline.data.loader.SAMPLES_AT_ONCE", 1)
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


def damage(data: ShardSet, rows: list[int]) -> list[bytes]:
    """Flip a byte of some rows of the split `train`; returns their uids."""
    split = data.split("train")
    gone = [split.row(row) for row in rows]
    for path in {data.shards_folder / name for name in split.shard_names}:
        content = bytearray(path.read_bytes())
        for row in gone:
            place = content.find(row.image)
            if place >= 0:
                content[place + 100] ^= 1
        path.write_bytes(content)
    return [row.uid for row in gone]


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


@pytest.mark.parametrize("crop", ["none", "inception", "shift"])
def test_a_drawn_box_lies_inside_the_image(crop: Any) -> None:
    spec = AugmentSpec(crop=crop, flip=True)
    draws = Draws(spec, seed=1, epoch=0, positions=np.arange(200))
    for position in range(200):
        height, width = 1 + position % 37, 1 + position % 23
        drawn = draws.params(position, (height, width), (8, 8))
        left, top, right, bottom = drawn.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert max(map(abs, drawn.shift_hw)) <= 1


def test_draws_differ_by_position_epoch_and_seed_and_repeat() -> None:
    def drawn(seed: int, epoch: int, positions: list[int]) -> list[CropParams]:
        draws = Draws(EVERYTHING, seed=seed, epoch=epoch, positions=np.array(positions))
        return [draws.params(i, (100, 140), (32, 32)) for i in range(len(positions))]

    keys = list(itertools.product((0, 1), (0, 1), ([0], [1])))
    assert len({drawn(*key)[0] for key in keys}) == len(keys)
    assert [drawn(*key) for key in keys] == [drawn(*key) for key in keys]
    flips = sum(params.mirror for params in drawn(0, 0, list(range(400))))
    assert 150 < flips < 250


def test_a_draw_does_not_depend_on_what_is_drawn_with_it() -> None:
    positions = np.array([7, 3, 2**40, 2**62 + 1, 3])
    together = uniforms("inception", 1, 2, positions, count=5)
    alone = [uniforms("inception", 1, 2, int(position), count=5) for position in positions]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together[:, :2], uniforms("inception", 1, 2, positions, count=2))
    assert uniforms("inception", 1, 2, positions, count=0).shape == (5, 0)


def test_the_centre_box_has_the_inputs_aspect() -> None:
    assert centre_box((100, 300), (50, 50)) == (100.0, 0.0, 200.0, 100.0)
    assert centre_box((300, 100), (50, 100)) == (0.0, 125.0, 100.0, 175.0)


def test_shift_repeats_the_border_and_mirror_turns_left_and_right() -> None:
    data = encode(picture(0, 1, height=16, width=16), "PNG")
    whole = (0.0, 0.0, 16.0, 16.0)
    plain = apply(data, CropParams(whole), (16, 16))
    np.testing.assert_array_equal(plain, resize(decode(data), whole, (16, 16)))
    shifted = apply(data, CropParams(whole, shift_hw=(2, -1)), (16, 16))
    np.testing.assert_array_equal(shifted[2:, :-1], plain[:-2, 1:])
    np.testing.assert_array_equal(shifted[0], shifted[2])
    mirrored = apply(data, CropParams(whole, mirror=True), (16, 16))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])

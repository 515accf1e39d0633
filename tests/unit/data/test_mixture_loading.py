"""Mixtures, mixup, tails and raw images through the loader: the same on every topology."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.feed.loader import Batch, TrainLoader, eval_batches
from pipeline.data.feed.mixtures import AnyData, MixedSplit
from pipeline.data.shards.shard_set import AnySplit, ShardSet
from schemas.errors import DataError
from schemas.samples import AugmentSpec, BatchSpec, MixturePhase
from tests.support.corpora import write_folder
from tests.support.datasets import build, ingest_spec, small_set
from tests.support.loading import damage, samples

PHASES = (
    MixturePhase(from_step=0, weights=(3, 1)),
    MixturePhase(from_step=4, weights=(1, 2)),
)
MIXED = AugmentSpec(crop="inception", flip=True, mixup_alpha=0.4, cutmix_alpha=1.0)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return small_set(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A class less, and one that the first has not."""
    where = tmp_path_factory.mktemp("second")
    folder = write_folder(where / "raw", per_class=7, seed=1)
    (folder / "circle").rename(folder / "zigzag")
    build(ingest_spec(folder, select={"exclude_classes": ["wave"]}), where)
    return ShardSet.open(where / "out")


def both(first: ShardSet, second: ShardSet) -> MixedSplit:
    return MixedSplit((first.split("train"), second.split("train")), PHASES)


def steps(
    data: AnyData, count: int, *, start: int = 0, tail: Any = "drop", **changes: Any
) -> list[list[Batch]]:
    fields = {
        "augment": MIXED,
        "image_px": (16, 20),
        "batch": BatchSpec(global_samples=8, tail=tail),
        "seed": 5,
        "rank": 0,
        "world_size": 1,
        "micro_batch": 2,
        "threads": 1,
    }
    with TrainLoader(data, **{**fields, **changes}) as loader:
        return [list(micro) for micro in itertools.islice(loader.batches(start), count)]


Sample = tuple[bytes, bytes]
"""Pixels, label and uid; mix and weight."""


def content(step: list[Batch]) -> list[Sample]:
    """Everything of every sample."""
    found = []
    for batch in step:
        extra = [
            np.asarray(batch.mix.keep_B if batch.mix else np.ones(len(batch))),
            np.asarray(batch.mix.box_B4 if batch.mix else np.ones(len(batch))),
            np.ones(len(batch)) if batch.weight_B is None else batch.weight_B,
        ]
        for index, sample in enumerate(samples(batch)):
            found.append((sample, b"".join(column[index].tobytes() for column in extra)))
    return found


def joined(data: AnyData, count: int, world: int, **changes: Any) -> list[list[Sample]]:
    ranks = [steps(data, count, rank=rank, world_size=world, **changes) for rank in range(world)]
    return [[sample for rank in ranks for sample in content(rank[step])] for step in range(count)]


@pytest.mark.parametrize(("world", "threads", "micro_batch"), [(1, 3, 8), (2, 2, 4), (4, 1, 2)])
def test_a_mixture_is_the_same_on_every_topology(
    first: ShardSet, second: ShardSet, world: int, threads: int, micro_batch: int
) -> None:
    mixture = both(first, second)
    expected = [content(step) for step in steps(mixture, 7)]
    found = joined(mixture, 7, world, threads=threads, micro_batch=micro_batch)
    assert found == expected
    assert [content(step) for step in steps(mixture, 2, start=5)] == expected[5:]


def test_classes_of_a_mixture_are_united_by_name(first: ShardSet, second: ShardSet) -> None:
    mixture = both(first, second)
    assert mixture.class_names == ("circle", "stripes", "wave", "zigzag")
    named = {
        split.row(index).uid: split.class_names[split.row(index).label]
        for split in mixture.splits
        for index in range(split.num_rows)
    }
    seen = set()
    for batch in itertools.chain(*steps(mixture, 12)):
        for uid, label in zip(batch.uid_B, batch.label_B, strict=True):
            assert mixture.class_names[label] == named[uid.tobytes()]
            seen.add(mixture.class_names[label])
    assert seen == set(mixture.class_names)


def test_a_bad_row_of_a_mixture_is_replaced_from_its_own_set(
    tmp_path: Path, second: ShardSet
) -> None:
    data = small_set(tmp_path)
    before = [content(step) for step in steps(both(data, second), 8)]
    gone = damage(data, [3, 20])
    mixture = both(ShardSet.open(data.folder), second)
    after = joined(mixture, 8, 1)
    assert joined(mixture, 8, 2) == after
    uids = {split.row(i).uid for split in both(data, second).splits[1:] for i in range(14)}
    for old, new in zip(itertools.chain(*before), itertools.chain(*after), strict=True):
        uid, stand_in = old[0][-16:], new[0][-16:]
        assert (old != new) == (uid in gone)
        assert old[1] == new[1], "partners and weights stay as they are"
        assert uid not in gone or stand_in not in uids


def test_an_exact_tail_counts_every_image_once(first: ShardSet) -> None:
    split = first.split("train").subset(np.arange(30))
    plain = AugmentSpec()
    counted: dict[bytes, float] = {}
    for batch in itertools.chain(*steps(split, 4, tail="exact", augment=plain)):
        assert batch.weight_B is not None
        for uid, weight in zip(batch.uid_B, batch.weight_B, strict=True):
            counted[uid.tobytes()] = counted.get(uid.tobytes(), 0) + float(weight > 0)
    assert set(counted.values()) == {1.0}
    assert len(counted) == 30


def test_a_padded_tail_repeats_the_first_images_and_says_so(first: ShardSet) -> None:
    split = first.split("train").subset(np.arange(30))
    taken = [batch.uid_B for batch in itertools.chain(*steps(split, 4, tail="pad"))]
    uids = [uid.tobytes() for uid in np.concatenate(taken)]
    assert uids[30:] == uids[:2]
    assert joined(split, 9, 4, tail="pad") == joined(split, 9, 1, tail="pad")
    with padded(split) as loader:
        assert loader.figures()["loader/repeated_per_epoch_count"] == 2.0


def padded(split: AnySplit) -> TrainLoader:
    batch = BatchSpec(global_samples=8, tail="pad")
    return TrainLoader(
        split,
        augment=MIXED,
        image_px=(16, 20),
        batch=batch,
        seed=5,
        rank=0,
        world_size=1,
        micro_batch=8,
        threads=1,
    )


def test_a_split_smaller_than_a_batch_needs_another_tail(first: ShardSet) -> None:
    split = first.split("train").subset(np.arange(5))
    with pytest.raises(DataError, match=r"5 images, fewer than one global batch of 8.*batch\.tail"):
        steps(split, 1)
    (step,) = steps(split, 1, tail="pad", augment=AugmentSpec())
    assert len({uid.tobytes() for batch in step for uid in batch.uid_B}) == 5


def test_a_set_without_images_may_only_have_no_weight(first: ShardSet) -> None:
    empty = first.split("train").subset(np.arange(0))
    with pytest.raises(DataError, match=r"data\[1\] of the mixture.*has no images"):
        steps(MixedSplit((first.split("train"), empty), PHASES), 1)
    alone = (MixturePhase(from_step=0, weights=(1, 0)),)
    assert len(steps(MixedSplit((first.split("train"), empty), alone), 3)) == 3


def test_the_loader_tells_what_it_did(first: ShardSet) -> None:
    with padded(first.split("train")) as loader:
        list(itertools.islice(loader.batches(0), 3))
        told = loader.figures()
    assert told["loader/replaced_count"] == 0.0
    assert told["loader/decode_seconds"] > 0
    assert 0 <= told["loader/ready_steps"] <= 3


def test_raw_images_load_as_lossless_ones_do(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw-files", per_class=8)
    stored = []
    for encoding in ("png", "raw"):
        where = tmp_path / encoding
        build(ingest_spec(folder, image={"encoding": encoding, "max_side_px": 24}), where)
        split = ShardSet.open(where / "out").split("train")
        loaded = eval_batches(split, image_px=(18, 24), batch_samples=24, threads=2)
        stored.append({sample[-16:]: sample for batch in loaded for sample in samples(batch)})
        shifted = steps(split, 3, augment=AugmentSpec(crop="shift", flip=True))
        assert all(batch.pixels_BHWC.any() for step in shifted for batch in step)
    assert stored[0] == stored[1]

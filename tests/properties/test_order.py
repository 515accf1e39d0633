import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import (
    EpochOrder,
    KeyedPermutation,
    Removed,
    derive_key,
    rank_positions,
    steps_per_epoch,
)

SHARDS = st.lists(st.integers(0, 40), min_size=1, max_size=14).filter(any)


def places(order: EpochOrder) -> list[tuple[int, int]]:
    shards, rows = order.locate(np.arange(order.num_rows))
    return list(zip(shards.tolist(), rows.tolist(), strict=True))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3000), st.integers(0, 2**64))
def test_a_keyed_permutation_is_a_bijection_with_its_inverse(n: int, seed: int) -> None:
    permutation = KeyedPermutation(n, derive_key(seed))
    images = permutation.forward(np.arange(n))
    assert sorted(images.tolist()) == list(range(n))
    np.testing.assert_array_equal(permutation.inverse(images), np.arange(n))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 10**15), st.integers(0, 2**64), st.data())
def test_a_permutation_of_any_size_needs_no_table(n: int, seed: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5)))
    permutation = KeyedPermutation(n, derive_key(seed))
    images = permutation.forward(index)
    assert ((images >= 0) & (images < n)).all()
    np.testing.assert_array_equal(permutation.inverse(images), index)


def test_an_index_outside_is_refused() -> None:
    with pytest.raises(IndexError, match="outside"):
        KeyedPermutation(5, b"k").forward(5)


@settings(deadline=None, max_examples=50)
@given(SHARDS, st.integers(0, 2**32), st.integers(0, 9))
def test_an_epoch_has_every_row_once(shard_rows: list[int], seed: int, epoch: int) -> None:
    order = EpochOrder(shard_rows, digest="d", seed=seed, epoch=epoch)
    every = [(shard, row) for shard, rows in enumerate(shard_rows) for row in range(rows)]
    assert sorted(places(order)) == every


@settings(deadline=None, max_examples=50)
@given(SHARDS, st.integers(0, 2**32), st.data())
def test_removed_rows_are_skipped_and_the_others_keep_their_order(
    shard_rows: list[int], seed: int, data: st.DataObject
) -> None:
    whole = places(EpochOrder(shard_rows, digest="d", seed=seed, epoch=1))
    gone = data.draw(st.sets(st.sampled_from(whole)))
    columns = np.array(sorted(gone), np.int64).reshape(-1, 2)
    removed = Removed(columns[:, 0], columns[:, 1])
    order = EpochOrder(shard_rows, digest="d", seed=seed, epoch=1, removed=removed)
    assert places(order) == [place for place in whole if place not in gone]


@settings(deadline=None, max_examples=50)
@given(SHARDS, st.data())
def test_positions_can_be_asked_for_in_any_order(
    shard_rows: list[int], data: st.DataObject
) -> None:
    order = EpochOrder(shard_rows, digest="d", seed=1, epoch=0)
    whole = places(order)
    asked = data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=9))
    shards, rows = order.locate(asked)
    found = list(zip(shards.tolist(), rows.tolist(), strict=True))
    assert found == [whole[position] for position in asked]


@settings(deadline=None, max_examples=50)
@given(SHARDS, st.data())
def test_substitutes_are_other_live_rows_of_the_window(
    shard_rows: list[int], data: st.DataObject
) -> None:
    whole = EpochOrder(shard_rows, digest="d", seed=1, epoch=0)
    gone = data.draw(st.sets(st.sampled_from(places(whole)), max_size=5))
    columns = np.array(sorted(gone), np.int64).reshape(-1, 2)
    removed = Removed(columns[:, 0], columns[:, 1])
    order = EpochOrder(shard_rows, digest="d", seed=1, epoch=0, removed=removed)
    live = places(order)
    for position in range(min(3, len(live))):
        stand_ins = list(itertools.islice(order.substitutes(position), 8))
        assert stand_ins == list(itertools.islice(order.substitutes(position), 8))
        assert len(set(stand_ins)) == len(stand_ins)
        assert set(stand_ins) <= set(live) - {live[position]}


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 16), st.integers(1, 4), st.integers(0, 5))
def test_ranks_split_an_epoch_without_overlap(world: int, share: int, steps: int) -> None:
    samples = world * share
    seen = [
        rank_positions(step, samples, rank=rank, world_size=world)
        for step in range(steps)
        for rank in range(world)
    ]
    assert {len(part) for part in seen} <= {share}, "every rank reads as much"
    together = np.concatenate([np.empty(0, np.int64), *seen])
    np.testing.assert_array_equal(together, np.arange(steps * samples))
    assert steps_per_epoch(steps * samples + samples - 1, samples) == steps


def test_a_world_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="world_size 3 must divide global_samples 16"):
        rank_positions(0, 16, rank=0, world_size=3)


def test_every_epoch_seed_and_dataset_has_its_own_order() -> None:
    orders = [
        places(EpochOrder([30, 30], digest=digest, seed=seed, epoch=epoch))
        for digest in "ab"
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_neighbours_of_the_storage_are_spread_over_the_window() -> None:
    """Chi-squared over a coarse grid stays near its expectation for a fixed seed."""
    rows = 4096
    order = EpochOrder([rows], digest="d", seed=3, epoch=0)
    _, found = order.locate(np.arange(rows))
    cells, _, _ = np.histogram2d(np.arange(rows), found, bins=16)
    expected = rows / 256
    chi2_per_df = ((cells - expected) ** 2 / expected).sum() / 225
    assert 0.7 < chi2_per_df < 1.3


@settings(deadline=None, max_examples=50)
@given(SHARDS, st.integers(0, 3), st.data())
def test_positions_are_the_inverse_of_locate(
    shard_rows: list[int], seed: int, data: st.DataObject
) -> None:
    whole = places(EpochOrder(shard_rows, digest="d", seed=seed, epoch=1))
    gone = data.draw(st.sets(st.sampled_from(whole)))
    columns = np.array(sorted(gone), np.int64).reshape(-1, 2)
    removed = Removed(columns[:, 0], columns[:, 1])
    order = EpochOrder(shard_rows, digest="d", seed=seed, epoch=1, removed=removed)
    shards, rows = order.locate(np.arange(order.num_rows))
    np.testing.assert_array_equal(order.positions(shards, rows), np.arange(order.num_rows))
    assert set(order.positions(removed.shard, removed.row).tolist()) <= {-1}


@settings(deadline=None, max_examples=50)
@given(SHARDS)
def test_the_shards_ahead_are_those_that_come_next(shard_rows: list[int]) -> None:
    order = EpochOrder(shard_rows, digest="d", seed=1, epoch=0)
    shards, _ = order.locate(np.arange(order.num_rows))
    position = 0
    while len(ahead := order.ahead(position)):
        later = [place for place in np.flatnonzero(np.isin(shards, ahead)) if place > position]
        if not later:  # the window ahead has no rows
            break
        assert set(shards[position : later[0]].tolist()).isdisjoint(ahead.tolist())
        position = int(later[0])

"""Golden values: a change invalidates every run in progress; raise ORDER_VERSION with it."""

import numpy as np

from pipeline.data.feed.augment import uniforms
from pipeline.data.order import ORDER_VERSION, EpochOrder, KeyedPermutation, keyed_hash
from tests.support.loading import places


def test_the_order_does_not_drift() -> None:
    order = EpochOrder([4, 3, 5], digest="d" * 64, seed=7, epoch=2)
    shards, rows = order.locate(np.arange(12))
    assert ORDER_VERSION == 1
    assert shards.tolist() == [2, 0, 1, 2, 1, 0, 2, 2, 2, 0, 0, 1]
    assert rows.tolist() == [4, 1, 0, 3, 2, 3, 0, 1, 2, 2, 0, 1]


def test_the_permutation_does_not_drift() -> None:
    assert KeyedPermutation(8, b"key").forward(np.arange(8)).tolist() == [3, 0, 7, 2, 5, 1, 4, 6]
    assert KeyedPermutation(10**12, b"key").forward([0, 1]).tolist() == [820939207814, 969677923317]


def test_the_storage_hash_does_not_drift() -> None:
    assert keyed_hash("order", 3, bytes(16)) == 3325586472238955747


def test_the_draws_of_augmentation_do_not_drift() -> None:
    drawn = uniforms("flip", 1, places(2, [3]), count=2)
    assert [round(number, 12) for number in drawn[0].tolist()] == [0.037756106858, 0.492151242237]

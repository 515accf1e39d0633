"""Cells, salient patches, corruptions: what is changed is exact, and fixed by the image alone."""

import itertools
import json
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.evaluation.robustness.cells import (
    CellGrid,
    drop_cells,
    first_dropped,
    shuffle_cells,
)
from pipeline.evaluation.robustness.corruptions import corrupt
from pipeline.evaluation.robustness.draws import generator, orders
from pipeline.evaluation.robustness.saliency import attention_shares, drop_by_mass
from pipeline.evaluation.robustness.trials import Corrupted, Place, RandomDrop, Seen, Shuffle
from pipeline.model.backbone import normalise
from pipeline.model.vit import build
from schemas.robustness import CorruptionName
from tests.support.models import tiny_spec

PUBLISHED = json.loads((Path(__file__).parents[2] / "golden" / "corruptions.json").read_text())
"""Mean, spread and mean step to the right of `photo(224)` under `imagecorruptions` 1.1.2, by
severity, with NumPy's global generator seeded by ten times the severity (glass and impulse: means
of eight draws)."""
NAMES: tuple[CorruptionName, ...] = typing.get_args(CorruptionName)


def pictures(count: int, height: int = 24, width: int = 24) -> NDArray[np.uint8]:
    """Noise without any black."""
    return np.random.default_rng(5).integers(1, 256, (count, height, width, 3), np.uint8)


def names_of(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(6).integers(0, 256, (count, 16), np.uint8)


def photo(side: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:side, :side] / side
    waves = np.sin(9 * x + 4 * y**2), np.cos(14 * x * y - 2 * x)
    edges = np.sign(np.sin(25 * x) * np.cos(19 * y))
    return np.round((np.stack([*waves, edges], axis=-1) * 0.4 + 0.5) * 255).astype(np.uint8)


def seen(pixels: NDArray[np.uint8], uids: NDArray[np.uint8], seed: int = 3) -> Seen:
    zeros = np.zeros(len(pixels), np.int64)
    return Seen(pixels_BHWC=pixels, label_B=zeros, uid_B=uids, position_B=zeros, seed=seed)


def place(draw: int = 0) -> Place:
    return Place("test", "variant", "top1_ratio", "axis", 1.0, "label", draw)


@pytest.mark.parametrize("percent", [0, 10, 30, 50, 90])
@pytest.mark.parametrize("grid", [(14, 14), (4, 8), (7, 7), (224, 224)])
def test_exactly_the_share_of_cells_is_black(grid: tuple[int, int], percent: int) -> None:
    pixels, cells = pictures(2, 224, 224), CellGrid(grid, (224, 224))
    order = orders("drop", 0, names_of(2), cells.cells)
    holed = drop_cells(pixels, first_dropped(order, percent), cells)
    black = (holed == 0).all(axis=3).reshape(2, grid[0], 224 // grid[0], grid[1], 224 // grid[1])
    assert (black.all(axis=(2, 4)) == black.any(axis=(2, 4))).all(), "cells are whole"
    dropped = percent // 10 * grid[0] * grid[1] // 10
    assert (black.all(axis=(2, 4)).sum(axis=(1, 2)) == dropped).all()
    kept = ~black.reshape(2, 224, 224)
    assert (holed[kept] == pixels[kept]).all()


def test_nothing_dropped_is_the_same_image() -> None:
    pixels, cells = pictures(3), CellGrid((5, 7), (24, 24), offset_px=3)
    order = orders("drop", 0, names_of(3), cells.cells)
    assert (drop_cells(pixels, first_dropped(order, 0), cells) == pixels).all()


def test_a_moved_grid_has_as_many_cells_of_the_same_size() -> None:
    plain, moved = (CellGrid((14, 14), (224, 224), offset).places() for offset in (0, 8))
    assert (np.bincount(moved.ravel()) == np.bincount(plain.ravel())).all()
    assert (moved == np.roll(plain, (8, 8), axis=(0, 1))).all()


def test_holes_of_a_draw_grow() -> None:
    order = orders("drop", 1, names_of(4), 196)
    masks = [first_dropped(order, percent) for percent in (10, 20, 50)]
    assert all((less <= more).all() for less, more in itertools.pairwise(masks))


@given(st.integers(1, 9), st.integers(1, 9))
def test_the_identity_permutation_changes_nothing(rows: int, columns: int) -> None:
    pixels, cells = pictures(2, 13, 17), CellGrid((rows, columns), (13, 17))
    identity = np.tile(np.arange(cells.cells), (2, 1))
    assert (shuffle_cells(pixels, identity, cells) == pixels).all()


def test_a_shuffle_moves_whole_cells() -> None:
    pixels, cells = pictures(2), CellGrid((4, 3), (24, 24))
    order = orders("shuffle", 0, names_of(2), 12)
    moved = shuffle_cells(pixels, order, cells)
    for image in range(2):
        for at in range(12):
            (row, column), (source, beside) = divmod(at, 3), divmod(int(order[image, at]), 3)
            new = moved[image, 6 * row : 6 * row + 6, 8 * column : 8 * column + 8]
            old = pixels[image, 6 * source : 6 * source + 6, 8 * beside : 8 * beside + 8]
            assert (new == old).all()


def test_more_cells_than_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="14x14 has more cells than an image of 8 x 24 px"):
        CellGrid((14, 14), (8, 24))


@pytest.mark.parametrize(
    "trial",
    [
        RandomDrop(place(), CellGrid((6, 6), (32, 32)), 40),
        Shuffle(place(), CellGrid((4, 4), (32, 32))),
        Corrupted(place(), "glass_blur", 3),
        Corrupted(place(), "fog", 5),
    ],
)
def test_a_change_depends_on_the_image_and_not_on_the_batch(
    trial: RandomDrop | Shuffle | Corrupted,
) -> None:
    pixels, uids = pictures(5, 32, 32), names_of(5)
    together = trial.alter(seen(pixels, uids))
    alone = [trial.alter(seen(pixels[at : at + 1], uids[at : at + 1])) for at in range(5)]
    assert (together == np.concatenate(alone)).all()
    assert (trial.alter(seen(pixels, uids[::-1])) != together).any()
    assert (trial.alter(seen(pixels, uids, seed=4)) != together).any()


def test_draws_differ() -> None:
    pixels, uids, cells = pictures(1, 32, 32), names_of(1), CellGrid((4, 4), (32, 32))
    first, second = (Shuffle(place(draw), cells).alter(seen(pixels, uids)) for draw in (0, 1))
    assert (first != second).any()


def test_salient_patches_are_the_fewest_that_hold_their_share() -> None:
    share = np.random.default_rng(0).dirichlet(np.full(20, 0.4), size=6)
    for percent in (10, 50, 90):
        salient = drop_by_mass(share, percent, salient=True)
        others = drop_by_mass(share, percent, salient=False)
        for row, most, least in zip(share, salient, others, strict=True):
            assert row[most].sum() >= percent / 100
            assert row[most].sum() - row[most].min() < percent / 100
            assert row[most].min() >= row[~most].max()
            assert row[least].sum() <= percent / 100
            assert row[least].sum() + row[~least].min() > percent / 100
            assert row[least].max(initial=0.0) <= row[~least].min()


def test_attention_is_that_of_the_last_blocks_class_token() -> None:
    model = build(tiny_spec(registers=2), seed=4).eval()
    pixels = pictures(3, 8, 12)
    whole = normalise(torch.from_numpy(pixels), model.spec)
    with torch.no_grad():
        before, last = model.hidden_states(whole)[-2], model.blocks[-1]
        paid = last.attention.weights(last.norm1(before))[:, :, 0, 3:].double()
    for head, expected in ((None, paid.mean(dim=1)), (1, paid[:, 1])):
        shares = attention_shares(model, pixels, head)
        assert shares.sum(axis=1) == pytest.approx(1.0)
        assert shares == pytest.approx((expected / expected.sum(1, keepdim=True)).numpy())


class GlobalStream:
    """NumPy's old global generator, which the published implementation draws from."""

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed)

    def __getattr__(self, name: str) -> object:
        return getattr(self.state, name)

    def integers(self, low: int, high: int, size: tuple[int, ...]) -> NDArray[np.int64]:
        return self.state.randint(low, high, size)


@pytest.mark.parametrize("name", NAMES)
def test_corruptions_are_those_of_the_published_implementation(name: CorruptionName) -> None:
    image = photo(224)
    for severity in range(1, 6):
        stream = typing.cast("np.random.Generator", GlobalStream(10 * severity))
        found = corrupt(image, name, severity, stream).astype(np.float64)
        figures = found.mean(), found.std(), np.abs(np.diff(found, axis=1)).mean()
        assert figures == pytest.approx(PUBLISHED[name][severity - 1], abs=1.0), severity


def test_every_corruption_takes_every_size_from_32_px_on() -> None:
    image = pictures(1, 32, 45)[0]
    for name in NAMES:
        made = [corrupt(image, name, it, generator(name, 0, b"uid")) for it in range(1, 6)]
        assert all(it.shape == image.shape and it.dtype == np.uint8 for it in made)
        assert all((it != image).any() for it in made)
    with pytest.raises(ValueError, match="at least 32 px"):
        corrupt(image[:31], "fog", 1, generator("fog", 0, b"uid"))

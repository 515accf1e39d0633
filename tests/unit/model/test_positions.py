"""Positions on another grid, in each convention against its original."""

import importlib
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch

from pipeline.model.positions import resize_positions, resized_tables, sincos_2d
from pipeline.model.vit import build
from schemas.model import ViTSpec
from tests.support.foreign import timm, transformers
from tests.support.models import tiny_spec

Grid = tuple[int, int]
TOLERANCE = 1e-6
WIDTH = 24
SQUARE: list[tuple[Grid, Grid]] = [
    ((14, 14), (24, 24)),
    ((16, 16), (37, 37)),
    ((24, 24), (14, 14)),
    ((14, 14), (10, 21)),
]
ALL = [*SQUARE, ((7, 12), (12, 7)), ((7, 12), (20, 12))]


def on_grid(grid: Grid, **more: Any) -> ViTSpec:
    return tiny_spec(image_px=(4 * grid[0], 4 * grid[1]), **more)


def table(grid: Grid, slots: int) -> torch.Tensor:
    shape = (slots + grid[0] * grid[1], WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def resized(old: Grid, new: Grid, method: str) -> torch.Tensor:
    target = on_grid(new, position_resize=method)
    return resize_positions(table(old, 1), on_grid(old), target)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= TOLERANCE)


@pytest.mark.parametrize(("old", "new"), ALL)
def test_jax_is_scipys_zoom(old: Grid, new: Grid) -> None:
    position = table(old, 1)
    grid = position[1:].numpy().reshape(*old, WIDTH)
    zoomed = scipy.ndimage.zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1)
    expected = np.concatenate([position[:1].numpy(), zoomed.reshape(-1, WIDTH)])
    assert close(resized(old, new, "jax"), torch.from_numpy(expected))


@pytest.mark.parametrize(("old", "new"), ALL)
def test_timm_is_timms(old: Grid, new: Grid) -> None:
    resample = timm().layers.resample_abs_pos_embed
    expected = resample(table(old, 1)[None], new_size=list(new), old_size=list(old))[0]
    assert close(resized(old, new, "timm"), expected)


@pytest.mark.parametrize(("old", "new"), SQUARE)
@pytest.mark.parametrize(
    ("convention", "module", "name"),
    [
        ("hf", "vit", "ViTEmbeddings"),
        ("hf", "dinov2", "Dinov2Embeddings"),
        ("timm", "dinov2_with_registers", "Dinov2WithRegistersEmbeddings"),
    ],
)
def test_hf_is_that_of_transformers(
    monkeypatch: pytest.MonkeyPatch, convention: str, module: str, name: str, old: Grid, new: Grid
) -> None:
    library = transformers(monkeypatch)
    models = importlib.import_module(f"{library.__name__}.models.{module}.modeling_{module}")
    embeddings = SimpleNamespace(
        position_embeddings=table(old, 1)[None],
        patch_size=4,
        patch_embeddings=SimpleNamespace(patch_size=(4, 4)),
        config=SimpleNamespace(patch_size=4),
    )
    tokens = torch.empty(1, 1 + new[0] * new[1], WIDTH)
    interpolate = getattr(models, name).interpolate_pos_encoding
    expected = interpolate(embeddings, tokens, 4 * new[0], 4 * new[1])[0]
    assert close(resized(old, new, convention), expected)


def bicubic(old: int, new: int, factor: float) -> np.ndarray:
    """[new, old]: Keys' kernel with a = -0.75; the border is repeated."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    weights = np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) / factor - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[i, min(max(j, 0), old - 1)] += kernel(place - j)
    return weights


@pytest.mark.parametrize("convention", ["hf", "dinov2"])
@pytest.mark.parametrize(("old", "new"), ALL)
def test_dinov2_counts_a_tenth_of_a_patch_more(old: Grid, new: Grid, convention: str) -> None:
    extra = 0.1 if convention == "dinov2" else 0.0
    rows, columns = (bicubic(o, n, (n + extra) / o) for o, n in zip(old, new, strict=True))
    position = table(old, 1).double()
    grid = position[1:].numpy().reshape(*old, WIDTH)
    expected = np.einsum("yi,xj,ijd->yxd", rows, columns, grid).reshape(-1, WIDTH)
    found = resize_positions(position, on_grid(old), on_grid(new, position_resize=convention))
    assert np.abs(found[1:].numpy() - expected).max() <= TOLERANCE


@pytest.mark.parametrize("convention", ["jax", "timm", "hf", "dinov2"])
def test_each_layers_table_is_resized_alone_and_leading_rows_stay(convention: str) -> None:
    more = {"distillation_token": True, "position_at": "every_layer"}
    source, target = on_grid((4, 6), **more), on_grid((5, 3), position_resize=convention, **more)
    position = torch.stack([table((4, 6), 2), -table((4, 6), 2)])
    found = resize_positions(position, source, target)
    assert torch.equal(found[:, :2], position[:, :2])
    for layer, alone in zip(position, found, strict=True):
        assert close(alone, resize_positions(layer, source, target))


@pytest.mark.parametrize("convention", ["jax", "timm", "hf", "dinov2"])
def test_tables_of_rows_and_columns_are_resized_as_lines(convention: str) -> None:
    more = {"position": "learned_2d", "position_resize": convention}
    source, target = on_grid((4, 6), **more), on_grid((7, 6), **more)
    weights = build(source, seed=0).state_dict()
    found = resized_tables(weights, source, target)
    assert found["position_columns"] is weights["position_columns"]
    as_grid = weights["position_rows"].repeat_interleave(6, dim=0)
    tall = resize_positions(as_grid, source.revise(pool="gap"), target)
    assert close(found["position_rows"], tall[::6])


@pytest.mark.parametrize("new", [(7, 1), (1, 1), (1, 7)])
def test_a_grid_of_one_column_is_that_of_one_row_turned(new: Grid) -> None:
    """torch's antialiased kernel is wrong for one column."""
    turned = table((4, 5), 0).view(4, 5, WIDTH).transpose(0, 1).reshape(-1, WIDTH)
    upright = resize_positions(table((4, 5), 0), on_grid((4, 5), pool="gap"), on_grid(new))
    lying = resize_positions(turned, on_grid((5, 4), pool="gap"), on_grid((new[1], new[0])))
    assert close(upright, lying)


@pytest.mark.parametrize("convention", ["jax", "timm", "hf", "dinov2"])
@pytest.mark.parametrize("axial", [False, True])
def test_distances_are_stretched_about_zero(convention: str, axial: bool) -> None:
    more = {"position": "relative", "pool": "gap", "axial": axial, "position_resize": convention}
    source, target = on_grid((2, 3), **more), on_grid((4, 5), **more)
    weights = build(source, seed=0).state_dict()
    found = resized_tables(weights, source, target)
    shapes = {name: it.shape for name, it in build(target, seed=0).state_dict().items()}
    assert found
    for name, keys in found.items():
        assert keys.shape == shapes[name]
        old, new = weights[name].shape[1] // 2, keys.shape[1] // 2
        if convention != "dinov2":
            assert close(keys[:, new], weights[name][:, old])


def test_sines_are_big_visions() -> None:
    found = sincos_2d(on_grid((2, 3), position="sincos_2d"))
    steps = WIDTH // 4
    omega = [10_000.0 ** (-i / (steps - 1)) for i in range(steps)]
    assert (omega[0], omega[-1]) == (1.0, pytest.approx(1e-4))
    place = found[1 + 3 + 2]  # class token, a whole row, the third column
    waves = [math.sin(2 * w) for w in omega] + [math.cos(2 * w) for w in omega]
    waves += [math.sin(w) for w in omega] + [math.cos(w) for w in omega]
    assert place.tolist() == pytest.approx(waves, abs=1e-7)
    assert not found[0].any()

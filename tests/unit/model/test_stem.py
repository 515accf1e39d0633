"""The stem of hybrids by its definition; its timm form is held against timm itself."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from pipeline.model.stem import ResNetStem, StandardConv, pad_same, standardise
from schemas.model import ResNetStemSpec
from tests.support.foreign import randomise

JAX = ResNetStemSpec(blocks=(1, 2))
TIMM = JAX.revise(group_norm_eps=1e-5, weight_std="timm", weight_std_eps=1e-8)


def test_kernels_are_standardised_as_the_authors_code_does() -> None:
    weight = torch.randn(4, 3, 5, 5, dtype=torch.float64) * 1e-4 + 2.0
    for channel, found in zip(weight, standardise(weight, JAX), strict=True):
        centred = channel - channel.mean()
        expected = centred / (centred.square().mean().sqrt() + 1e-5)
        assert torch.allclose(found, expected, atol=1e-9)
    assert standardise(weight, JAX).std().item() == pytest.approx(1e-4 / (1e-4 + 1e-5), rel=0.05)
    assert standardise(weight, TIMM).std().item() == pytest.approx(0.5**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("cells", "side", "stride", "borders"),
    [(224, 7, 2, (2, 3)), (112, 3, 2, (0, 1)), (113, 3, 2, (1, 1)), (56, 3, 1, (1, 1))],
)
def test_the_border_is_tensorflows(
    cells: int, side: int, stride: int, borders: tuple[int, int]
) -> None:
    row = pad_same(torch.ones(1, 1, 1, cells), side, stride, fill=7.0)[0, 0, 0]
    assert row[: borders[0]].eq(7).all()
    assert row[borders[0] + cells :].eq(7).all()
    assert len(row) == cells + sum(borders)
    assert (len(row) - side) // stride + 1 == -(-cells // stride)


@torch.no_grad()
def test_a_stem_is_its_formula() -> None:
    stem = ResNetStem(JAX)
    randomise(stem, seed=1)
    pixels = torch.randn(2, 3, 32, 48)
    x = F.relu(stem.root_norm(stem.root(pixels)))
    x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 3, stride=2)
    for stage in stem.stages:
        for unit in stage:
            y = F.relu(unit.norm1(unit.conv1(x)))
            y = F.relu(unit.norm2(unit.conv2(y)))
            x = unit.project_norm(unit.project(x)) if unit.project else x
            x = F.relu(x + unit.norm3(unit.conv3(y)))
    assert x.shape == (2, JAX.channels, 4, 6)
    assert torch.equal(stem(pixels), x)


def test_a_convolution_is_that_of_its_standardised_kernel() -> None:
    conv = StandardConv(3, 8, side=3, stride=2, spec=JAX)
    randomise(conv, seed=1)
    grid = torch.randn(1, 3, 9, 9)
    expected = F.conv2d(grid, standardise(conv.weight, JAX), stride=2, padding=1)
    assert torch.allclose(conv(grid), expected, atol=1e-6)


@torch.no_grad()
def test_the_conventions_give_other_numbers() -> None:
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    stems = [ResNetStem(spec) for spec in (JAX, TIMM)]
    for stem in stems:
        randomise(stem, seed=4)
    one, other = (stem(pixels) for stem in stems)
    assert (one - other).abs().max() > 1e-4

"""Chance in a forward pass: a function of numbers that the caller drew."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.model.noise import ForwardNoise, branches, path_rates, training_noise
from pipeline.model.vit import ViT, build
from schemas.model import ViTSpec
from tests.support.foreign import noise as pictures
from tests.support.foreign import randomise
from tests.support.models import tiny_spec

NOISY = {"drop_path": 0.4, "patch_dropout": 0.5}
WHOLE_GRIDS: dict[str, dict[str, Any]] = {
    "stem": {},
    "every layer": {"position_at": "every_layer", "registers": 2},
    "shared": {"position_at": "shared", "position": "learned_2d", "distillation_token": True},
    "mean": {"pool": "gap", "position": "sincos_2d"},
}


def random_model(spec: ViTSpec) -> ViT:
    model = build(spec, seed=0)
    randomise(model, seed=7)
    return model.train()


def draws(spec: ViTSpec, samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = (samples, branches(spec)), (samples, spec.patches)
    return tuple(torch.rand(shape, generator=generator) for shape in shapes)


@pytest.mark.parametrize("kind", WHOLE_GRIDS)
def test_without_noise_everything_is_kept(kind: str) -> None:
    model = random_model(tiny_spec(**NOISY, **WHOLE_GRIDS[kind]))
    images = pictures(model.spec.image_px, samples=2, seed=8)
    everything = ForwardNoise(
        torch.ones(2, branches(model.spec)), torch.arange(model.spec.patches).expand(2, -1)
    )
    assert torch.equal(model(images), model(images, ForwardNoise()))
    torch.testing.assert_close(model(images, everything), model(images), atol=1e-6, rtol=0)


def test_equal_draws_give_equal_passes() -> None:
    spec = tiny_spec(**NOISY)
    model, images = random_model(spec), pictures(spec.image_px, samples=4, seed=8)
    first, second = (model(images, training_noise(spec, *draws(spec, 4))) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.allclose(first, model(images))


@torch.no_grad()
def test_a_skipped_branch_leaves_the_tokens_and_a_kept_one_is_widened() -> None:
    block = random_model(tiny_spec(depth=1)).blocks[0]
    tokens = torch.randn(2, 5, 24)
    assert torch.equal(block(tokens, torch.zeros(2, 2)), tokens)
    attended = block.attention(block.norm1(tokens))
    found = block(tokens, torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(found[0], tokens[0] + 2 * attended[0])
    assert torch.equal(found[1], tokens[1])


@torch.no_grad()
def test_branches_of_an_axial_block_are_rows_then_columns() -> None:
    model = random_model(tiny_spec(axial=True, pool="gap", depth=1))
    block, tokens = model.blocks[0], torch.randn(2, 6, 24)
    found = block(tokens, torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]))
    columns = tokens[0].view(2, 3, 24).transpose(0, 1)
    torch.testing.assert_close(found[0].view(2, 3, 24), block.columns(columns).transpose(0, 1))
    torch.testing.assert_close(found[1].view(2, 3, 24), block.rows(tokens[1].view(2, 3, 24)))


@torch.no_grad()
@pytest.mark.parametrize("kind", WHOLE_GRIDS)
def test_patches_that_are_left_out_have_no_say(kind: str) -> None:
    model = random_model(tiny_spec(**NOISY, **WHOLE_GRIDS[kind]))
    images = pictures(model.spec.image_px, samples=1, seed=8)
    noise = ForwardNoise(kept_patches_BM=torch.tensor([[0, 2, 5]]))
    changed = images.clone()
    changed[:, :, :4, 4:8] = 9.0  # patch 1
    changed[:, :, 4:, :8] = -9.0  # patches 3 and 4
    assert torch.equal(model(images, noise), model(changed, noise))
    assert model.forward_tokens(images, noise).shape[1] == model.spec.leading + 3
    changed[:, :, 4:, 8:] = 9.0  # patch 5 has
    assert not torch.equal(model(images, noise), model(changed, noise))


def test_patches_stay_in_reading_order_those_with_the_smallest_numbers() -> None:
    spec = tiny_spec(patch_dropout=0.5)
    numbers = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.2, 0.7]])
    noise = training_noise(spec, torch.empty(1, 0), numbers)
    assert noise.keep_path_BL is None
    assert noise.kept_patches_BM is not None
    assert noise.kept_patches_BM.tolist() == [[1, 3, 4]]
    assert spec.revise(patch_dropout=0.99).kept_patches == 1


def test_rates_grow_from_zero_to_the_last_block() -> None:
    rates = path_rates(tiny_spec(depth=3, drop_path=0.4))
    assert rates == pytest.approx([0.0, 0.0, 0.2, 0.2, 0.4, 0.4])
    assert len(path_rates(tiny_spec(axial=True, pool="gap", drop_path=0.4))) == 8
    assert path_rates(tiny_spec(depth=1, drop_path=0.4)) == [0.0, 0.0]


def test_the_mean_factor_of_a_branch_is_one() -> None:
    spec = tiny_spec(drop_path=0.4)
    even = torch.linspace(0, 1, 1001)[:-1, None].expand(-1, branches(spec))
    keep = training_noise(spec, even, torch.empty(1000, 0)).keep_path_BL
    assert keep is not None
    torch.testing.assert_close(keep.mean(dim=0), torch.ones(4), atol=2e-3, rtol=0)
    assert sorted(set(keep[:, -1].tolist())) == pytest.approx([0.0, 1 / 0.6])


@pytest.mark.parametrize("whole", [{"axial": True, "pool": "gap"}, {"position": "relative"}])
def test_patches_cannot_be_left_out_where_the_grid_must_be_whole(whole: dict[str, Any]) -> None:
    model = random_model(tiny_spec(**whole))
    noise = ForwardNoise(kept_patches_BM=torch.tensor([[0, 2, 5]]))
    with pytest.raises(ValueError, match="need every patch of the grid"):
        model(pictures(model.spec.image_px, samples=1, seed=8), noise)


def test_dropout_is_off_outside_training() -> None:
    model = random_model(tiny_spec(dropout=0.5))
    images = pictures(model.spec.image_px, samples=2, seed=8)
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))

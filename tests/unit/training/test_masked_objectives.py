"""Learning from images alone: against the formulas, and that it learns."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pipeline.model.mae import build_mae
from pipeline.model.masked import Corruption, build_masked
from pipeline.training.engine import EngineSpec, TorchEngine
from pipeline.training.loop import Watch, train
from pipeline.training.objectives.masked import Autoencoding, MaskedPatch, colours
from schemas.objectives import MaeSpec, MaskedPatchSpec
from schemas.optim import OptimSpec
from tests.support.foreign import randomise
from tests.support.loading import places
from tests.support.models import tiny_spec
from tests.support.training import CPU, FakeBatch, FakeLoader, Recorded, setting

SPEC = tiny_spec(num_classes=0, patch_px=2)  # 4 x 6 patches
SMALL = MaeSpec(decoder_width=16, decoder_depth=1, decoder_heads=2)


class Says(nn.Module):
    """A model that says the same of everything, and remembers what it was asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.asked: dict[str, Any] = {}

    def forward(self, pixels: Tensor, **asked: Any) -> Tensor:
        self.asked = asked
        return self.answer


def batch(samples: int = 6) -> FakeBatch:
    loader = FakeLoader(SPEC.revise(num_classes=5))
    return loader.rows(np.arange(samples))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(8))


def blocks(pixels: np.ndarray) -> np.ndarray:
    """Patches of 2 x 2 in reading order, [B, N, 4, C], in float64."""
    cells = pixels.astype(np.float64).reshape(len(pixels), 4, 2, 6, 2, -1)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(len(pixels), 24, 4, -1)


def test_a_colour_is_three_bits_of_each_mean() -> None:
    mean = blocks(batch().pixels_BHWC).mean(axis=2)
    level = np.floor(mean / 32).astype(int)
    expected = level[..., 0] * 64 + level[..., 1] * 8 + level[..., 2]
    assert colours(torch.from_numpy(batch().pixels_BHWC), 2).tolist() == expected.tolist()
    white = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    assert colours(white, 2).item() == 511


def test_only_corrupted_patches_count_for_their_colour() -> None:
    objective, logits = MaskedPatch(setting(SPEC), MaskedPatchSpec()), random(6, 24, 512)
    found = objective(Says(logits), batch())
    order = objective.setting.uniforms("corrupt", batch().places, 72).numpy()[:, :24].argsort(1)
    label = colours(torch.from_numpy(batch().pixels_BHWC), 2).numpy()
    exact = logits.numpy().astype(np.float64)
    nll = logsumexp(exact, axis=2) - np.take_along_axis(exact, label[..., None], 2)[..., 0]
    expected = np.take_along_axis(nll, order[:, :12], 1).mean()
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_half_of_the_patches_are_corrupted_in_three_ways() -> None:
    objective = MaskedPatch(setting(SPEC), MaskedPatchSpec())
    chosen, corruption = objective.corruption(places(0, range(5000)))
    assert chosen.shape == (5000, 12)
    assert all(len(set(row)) == 12 for row in chosen[:100].tolist())
    is_chosen = torch.zeros(5000, 24, dtype=torch.bool).scatter(1, chosen, value=True)
    swapped = corruption.source_BN != torch.arange(24)
    masked = corruption.masked_BN
    assert not (swapped & masked).any()
    assert not ((swapped | masked) & ~is_chosen).any()
    total = is_chosen.sum().item()
    # Six deviations of a binomial draw.
    assert masked.sum().item() / total == pytest.approx(0.8, abs=6 * (0.16 / total) ** 0.5)
    assert swapped.sum().item() / total == pytest.approx(0.1, abs=6 * (0.09 / total) ** 0.5)
    taken = torch.bincount(corruption.source_BN[swapped], minlength=24).double()
    assert (taken / taken.sum()).tolist() == pytest.approx([1 / 24] * 24, abs=0.01)
    assert is_chosen.double().mean(dim=0).tolist() == pytest.approx([0.5] * 24, abs=0.05)


@torch.no_grad()
def test_a_corrupted_patch_shows_the_token_or_another_patch_in_its_own_place() -> None:
    model = build_masked(SPEC, seed=1).eval()
    randomise(model, seed=2)
    pixels = setting(SPEC).pixels(batch(1))
    source, masked = torch.arange(24)[None].clone(), torch.zeros(1, 24, dtype=torch.bool)
    untouched = model(pixels, Corruption(source, masked))
    source[0, 3], masked[0, 5] = 9, True
    pasted = pixels.clone()
    pasted[:, :, 0:2, 6:8] = pixels[:, :, 2:4, 6:8]  # patch 9 in the place of patch 3
    drawn = random(12)
    pasted[0, :, 0:2, 10:12] = drawn.view(3, 2, 2)  # in the place of patch 5
    model.mask_token.copy_(model.patch(drawn))
    found = model(pixels, Corruption(source, masked))
    torch.testing.assert_close(
        found,
        model(pasted, Corruption(torch.arange(24)[None], torch.zeros_like(masked))),
        atol=1e-4,
        rtol=0,
    )
    assert not torch.allclose(found, untouched)


@pytest.mark.parametrize("normalised", [True, False])
def test_only_hidden_patches_count_for_their_pixels(normalised: bool) -> None:
    objective = Autoencoding(setting(SPEC), SMALL.revise(normalised_targets=normalised))
    drawn = random(6, 24, 12)
    model = Says(drawn)
    found = objective(model, batch())
    order = objective.setting.uniforms("mask", batch().places, 24).numpy().argsort(1)
    kept = model.asked["noise"].kept_patches_BM
    assert kept.tolist() == np.sort(order[:, :6], axis=1).tolist()
    target = blocks(batch().pixels_BHWC / 127.5 - 1).transpose(0, 1, 3, 2).reshape(6, 24, 12)
    if normalised:
        variance = target.var(axis=2, ddof=1, keepdims=True)
        target = (target - target.mean(axis=2, keepdims=True)) / np.sqrt(variance + 1e-6)
    error = ((drawn.numpy() - target) ** 2).mean(axis=2)
    assert found.item() == pytest.approx(
        np.take_along_axis(error, order[:, 6:], 1).mean(), rel=1e-5
    )


@pytest.mark.parametrize("kind", [MaskedPatch, Autoencoding])
def test_parts_and_weights_of_a_batch_add_up(kind: type[Any]) -> None:
    spec = SPEC.revise(drop_path=0.3)
    if kind is MaskedPatch:
        objective, model = kind(setting(spec), MaskedPatchSpec()), build_masked(spec, seed=1)
    else:
        objective = kind(setting(spec), SMALL)
        model = build_mae(spec, SMALL.decoder(spec), seed=1)
    randomise(model, seed=2)
    whole = batch(6)
    losses = []
    for start in range(0, 6, 2):
        rows = np.arange(start, start + 2)
        losses.append(objective(model.train(), FakeLoader(SPEC.revise(num_classes=5)).rows(rows)))
    together = objective(model, whole)
    torch.testing.assert_close(together, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)
    assert objective(model.eval(), whole) != together, "branches are skipped in training alone"
    weight = np.array([3, 3, 0, 0, 0, 0], np.float32)
    weighted = replace(whole, places=replace(whole.places, weight=weight))
    torch.testing.assert_close(objective(model.train(), weighted), losses[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["masked_patch", "mae"])
def test_a_tiny_model_learns_digits_without_labels(kind: str) -> None:
    spec = tiny_spec(width=48, num_heads=4, mlp_dim=96, image_px=(8, 8), patch_px=2, num_classes=0)
    loader = FakeLoader(spec.revise(num_classes=10), samples=512, global_samples=64)
    grey = (load_digits().images[:512] * 15.9375).astype(np.uint8)
    loader.pixels = np.repeat(grey[..., None], 3, axis=3)
    if kind == "mae":
        objective = Autoencoding(setting(spec), SMALL.revise(decoder_width=32))
        model = build_mae(spec, objective.spec.decoder(spec), seed=1)
        shown = objective.setting.pixels(loader.rows(np.arange(512)))
        blind = objective.targets(shown).square().mean().item()  # of one who draws the mean
    else:
        objective, model = MaskedPatch(setting(spec), MaskedPatchSpec()), build_masked(spec, seed=1)
        share = torch.bincount(colours(torch.from_numpy(loader.pixels), 2).flatten()) / (512 * 16)
        blind = -torch.xlogy(share, share).sum().item()  # of one who knows how frequent each is
    optim, log = OptimSpec(peak_lr=3e-3, warmup_steps=10), Recorded()
    engine = TorchEngine(model, EngineSpec(optim, objective, "fp32", CPU, 11))
    train(engine, loader, optim=optim, total_steps=150, keeper=None, watch=Watch(metrics=log))
    losses = log.points["train/loss"]
    last = np.mean([losses[step] for step in range(141, 151)])
    assert losses[1] > blind
    assert last < 0.9 * blind

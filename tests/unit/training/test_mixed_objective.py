"""The loss of mixed, weighted and smoothed batches, against its definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from pipeline.data.feed.mixing import Mix
from pipeline.training.objectives.common import blend, partners
from pipeline.training.objectives.supervised import Supervised
from schemas.objectives import SupervisedSpec
from tests.support.training import TINY, FakeBatch, FakeLoader, model, setting


def batch(samples: int = 6) -> FakeBatch:
    return FakeLoader().rows(np.arange(samples))


def mixed(keep: list[float], boxes: list[list[int]]) -> Mix:
    return Mix(
        np.repeat(np.array(keep, np.float32), 2), np.repeat(np.array(boxes, np.int64), 2, axis=0)
    )


def test_mixup_blends_neighbours_and_cutmix_swaps_a_rectangle() -> None:
    pixels = torch.randn(4, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    mix = mixed([0.75, 0.5], [[0, 0, 0, 0], [2, 1, 6, 4]])
    found = blend(pixels, torch.from_numpy(mix.keep_B), torch.from_numpy(mix.box_B4))
    torch.testing.assert_close(found[0], 0.75 * pixels[0] + 0.25 * pixels[1])
    torch.testing.assert_close(found[1], 0.75 * pixels[1] + 0.25 * pixels[0])
    expected = pixels[2:].clone()
    expected[:, :, 1:4, 2:6] = pixels[[3, 2], :, 1:4, 2:6]
    torch.testing.assert_close(found[2:], expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_mixed_batch_is_that_of_soft_labels(smoothing: float) -> None:
    mix = mixed([0.75, 0.25, 0.5], [[0, 0, 0, 0]] * 3)
    plain = batch()
    found = Supervised(setting(), SupervisedSpec(), smoothing)(
        vit := model(), replace(plain, mix=mix)
    )
    keep = torch.from_numpy(mix.keep_B)
    pixels = torch.from_numpy(plain.pixels_BHWC).float()
    blended = blend(pixels.permute(0, 3, 1, 2), keep, torch.from_numpy(mix.box_B4))
    one_hot = F.one_hot(torch.from_numpy(plain.label_B), TINY.num_classes).float()
    soft = keep[:, None] * one_hot + (1 - keep[:, None]) * partners(one_hot)
    logits = vit(blended / (255.0 * TINY.pixel_std[0]) - TINY.pixel_mean[0] / TINY.pixel_std[0])
    expected = F.cross_entropy(logits, soft, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)


def test_keeping_all_is_not_mixing() -> None:
    objective, vit = Supervised(setting(), SupervisedSpec(), 0.0), model()
    whole = mixed([1.0, 1.0, 1.0], [[0, 0, 0, 0]] * 3)
    torch.testing.assert_close(objective(vit, replace(batch(), mix=whole)), objective(vit, batch()))


def test_samples_without_weight_do_not_count() -> None:
    objective, vit = Supervised(setting(), SupervisedSpec(), 0.0), model()
    weight = np.array([1.5, 1.5, 1.5, 1.5, 0, 0], np.float32)
    weighted = replace(batch(), places=replace(batch().places, weight=weight))
    torch.testing.assert_close(objective(vit, weighted), objective(vit, batch(4)))

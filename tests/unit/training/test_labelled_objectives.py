"""Sigmoid loss and distillation against their formulas in float64."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor, nn

from pipeline.data.feed.mixing import Mix
from pipeline.model.vit import ViT
from pipeline.training.objectives.common import blend
from pipeline.training.objectives.distilled import Distilled, check_teacher
from pipeline.training.objectives.supervised import Supervised
from schemas.checkpoint import SavedModel
from schemas.errors import SpecError
from schemas.objectives import DistillationSpec, SupervisedSpec
from tests.support.training import TINY, FakeBatch, FakeLoader, model, setting

MIX = Mix(np.repeat(np.array([0.75, 0.25, 1.0], np.float32), 2), np.zeros((6, 4), np.int64))
TWO_HEADS = TINY.revise(distillation_token=True)


class Says(nn.Module):
    """A model that says the same of everything."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.asked: dict[str, Any] = {}

    def forward(self, pixels: Tensor, **asked: Any) -> Tensor:
        self.asked = asked
        return self.answer


def batch(mix: Mix | None = None) -> FakeBatch:
    return replace(FakeLoader().rows(np.arange(6)), mix=mix)


def random(*shape: int, seed: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def soft_labels(mix: Mix | None, smoothing: float) -> np.ndarray:
    one_hot = np.eye(5)[batch().label_B] * (1 - smoothing) + smoothing / 5
    if mix is None:
        return one_hot
    swapped = one_hot.reshape(3, 2, 5)[:, ::-1].reshape(6, 5)
    return mix.keep_B[:, None] * one_hot + (1 - mix.keep_B[:, None]) * swapped


@pytest.mark.parametrize("mix", [None, MIX], ids=["plain", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sigmoid_asks_each_class_and_adds_the_losses(mix: Mix | None, smoothing: float) -> None:
    logits = random(6, 5, seed=1)
    found = Supervised(setting(), SupervisedSpec(loss="sigmoid"), smoothing)(
        Says(logits), batch(mix)
    )
    target, exact = soft_labels(mix, smoothing), logits.numpy().astype(np.float64)
    each = -target * np.log(1 / (1 + np.exp(-exact)))
    each -= (1 - target) * np.log(1 - 1 / (1 + np.exp(-exact)))
    assert found.item() == pytest.approx(each.sum(axis=1).mean(), rel=1e-6)


def teacher_says(logits: Tensor) -> ViT:
    """A teacher of TINY's shape that answers always the same."""
    teacher = model()
    teacher.forward = lambda _pixels: logits  # type: ignore[method-assign]
    return teacher.eval()


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("two_heads", [True, False])
def test_distillation_is_part_labels_part_teacher(mode: str, two_heads: bool) -> None:
    pair, taught = random(6, 2, 5, seed=2), random(6, 5, seed=3)
    said = Says(pair if two_heads else pair[:, 0])
    spec = DistillationSpec(mode=mode, teacher_ratio=0.3, temperature=2.5)
    ground = setting(TWO_HEADS if two_heads else TINY)
    labels = Supervised(ground, SupervisedSpec(), 0.1)
    found = Distilled(ground, spec, labels, teacher_says(taught), "fp32")(said, batch(MIX))
    exact = pair.numpy().astype(np.float64)
    own, other = exact[:, 0], exact[:, 1 if two_heads else 0]
    by_label = -(soft_labels(MIX, 0.1) * log_softmax(own, axis=1)).sum(axis=1)
    if mode == "hard":
        named = taught.numpy().argmax(axis=1)
        by_teacher = -log_softmax(other, axis=1)[np.arange(6), named]
    else:
        wanted = log_softmax(taught.numpy().astype(np.float64) / 2.5, axis=1)
        each = np.exp(wanted) * (wanted - log_softmax(other / 2.5, axis=1))
        by_teacher = 2.5**2 * each.sum(axis=1)
    assert found.item() == pytest.approx((0.7 * by_label + 0.3 * by_teacher).mean(), rel=1e-5)
    assert said.asked.get("both_heads", False) == two_heads


def test_the_teacher_sees_the_students_mixed_pixels_in_its_own_range() -> None:
    teacher = model(TINY.revise(pixel_mean=(0.4, 0.5, 0.6), pixel_std=(0.2, 0.3, 0.4))).eval()
    seen: list[Tensor] = []
    teacher.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    labels = Supervised(setting(), SupervisedSpec(), 0.0)
    student = model()
    loss = Distilled(setting(), DistillationSpec(), labels, teacher, "fp32")(student, batch(MIX))
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.head.weight.grad is not None
    pixels = torch.from_numpy(batch().pixels_BHWC).permute(0, 3, 1, 2).float() / 255
    mixed = blend(pixels, torch.from_numpy(MIX.keep_B), torch.from_numpy(MIX.box_B4))
    mean, std = (torch.tensor(it)[:, None, None] for it in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    torch.testing.assert_close(seen[0], (mixed - mean) / std)


@pytest.mark.parametrize(
    ("teacher", "names", "message"),
    [
        ({"image_px": (8, 12)}, "abcde", "the teacher takes images of 8 x 12 px and the model 8"),
        ({"num_classes": 3}, "abc", "the teacher tells 3 classes apart and the data has 5"),
        ({}, "abxde", "class 2 is 'x' to the teacher and 'c' in the data"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    teacher: dict[str, Any], names: str, message: str
) -> None:
    saved = SavedModel(spec=TINY.revise(**teacher), class_names=tuple(names), trained_steps=1)
    with pytest.raises(SpecError, match=message):
        check_teacher(saved, TINY, tuple("abcde"))
    fitting = SavedModel(spec=TINY, class_names=(), trained_steps=0)
    check_teacher(fitting, TINY, tuple("abcde"))

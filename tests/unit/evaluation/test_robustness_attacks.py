"""Attacks stay where they are allowed, lesions are exact, and no image sees another."""

from collections.abc import Mapping
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.feed.loader import Batch, probe_batch
from pipeline.data.shards.shard_set import ShardSet
from pipeline.evaluation.robustness import attacks
from pipeline.evaluation.robustness.attack_trials import Fgsm, ImagePatch, Pgd
from pipeline.evaluation.robustness.cells import CellGrid, shuffle_cells
from pipeline.evaluation.robustness.lesions import blocks_of, lesion
from pipeline.evaluation.robustness.subjects import Subject, subject_of
from pipeline.evaluation.robustness.trials import Correlation, Place, RandomDrop, Seen
from pipeline.model.backbone import normalise
from pipeline.model.building import build
from pipeline.model.saved import load_model
from schemas.backbones import TimmSpec
from schemas.robustness import ImagePatchTest, PgdTest
from tests.support.robustness import trained_models
from tests.support.stages import StageRun

pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")
EPS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, StageRun]:
    return trained_models(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def subjects(made: Mapping[str, StageRun]) -> dict[str, Subject]:
    return {
        name: subject_of(name, load_model(made[name].path / "model")[0])
        for name in ("vit", "resnet")
    }


@pytest.fixture(scope="module")
def seen(made: Mapping[str, StageRun]) -> Seen:
    split = ShardSet.open(made["digits"].path / "dataset").split("test")
    return as_seen(probe_batch(split, 60, (32, 32)))


def as_seen(batch: Batch) -> Seen:
    return Seen(
        pixels_BHWC=batch.pixels_BHWC,
        label_B=batch.label_B,
        uid_B=batch.uid_B,
        position_B=batch.places.position,
        seed=7,
    )


def part(seen: Seen, chosen: slice) -> Seen:
    arrays = (seen.pixels_BHWC, seen.label_B, seen.uid_B, seen.position_B)
    pixels, labels, uids, positions = (it[chosen] for it in arrays)
    return Seen(pixels_BHWC=pixels, label_B=labels, uid_B=uids, position_B=positions, seed=7)


def place(x: float = 1.0) -> Place:
    return Place("test", "variant", "top1_ratio", "axis", x, str(x))


def accuracy(answers: NDArray[np.int32], seen: Seen) -> float:
    return float((answers == seen.label_B).mean())


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_values_as_floats_are_answered_as_the_bytes_are(
    name: str, subjects: dict[str, Subject], seen: Seen
) -> None:
    subject = subjects[name]
    whole = subject.answers(seen.pixels_BHWC)
    assert accuracy(whole, seen) > 0.9, "the fixture has learned its digits"
    values = subject.values(seen.pixels_BHWC)
    assert (subject.answers(values) == whole).all()
    plain = normalise(torch.from_numpy(seen.pixels_BHWC), subject.model.spec)
    assert torch.equal(plain, normalise(values.clone(), subject.model.spec))


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_nothing_dropped_and_nothing_moved_is_clean_accuracy(
    name: str, subjects: dict[str, Subject], seen: Seen
) -> None:
    subject, cells = subjects[name], CellGrid((14, 14), (32, 32))
    clean = subject.answers(seen.pixels_BHWC)
    assert (RandomDrop(place(0.0), cells, 0).measure(subject, seen)[0] == clean).all()
    identity = np.tile(np.arange(cells.cells), (60, 1))
    still = shuffle_cells(seen.pixels_BHWC, identity, cells)
    assert (subject.answers(still) == clean).all()
    assert (RandomDrop(place(9.0), cells, 90).measure(subject, seen)[0] != clean).any()


@pytest.mark.parametrize("eps", [0.3, 1.0, 2.7, 8.0, 255.0])
def test_bounds_are_exact_and_as_wide_as_floats_allow(eps: float) -> None:
    values = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)))
    values = torch.cat([values.float(), torch.arange(256.0).repeat(48).view(1, 64, 64, 3)])
    low, high = attacks.bounds(values, eps)
    for end, outward in ((low, -1e9), (high, 1e9)):
        assert ((end.double() - values.double()).abs() <= eps).all()
        assert ((end >= 0) & (end <= 255)).all()
        further = torch.nextafter(end, torch.tensor(outward))
        outside = (further < 0) | (further > 255)
        assert (((further.double() - values.double()).abs() > eps) | outside).all()


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_no_value_moves_further_than_the_bound(
    name: str, subjects: dict[str, Subject], seen: Seen
) -> None:
    for eps in (0.7, 3.0):
        trials = [Fgsm(((place(), eps),)), Pgd(place(), eps, PgdTest(steps=3))]
        for trial in trials:
            ((_, changed),) = trial.changed(subjects[name], seen)
            distance = (changed.double() - torch.from_numpy(seen.pixels_BHWC).double()).abs()
            assert distance.max() <= eps
            assert distance.max() > 0.99 * eps, "it goes as far as it may"
            assert changed.min() >= 0
            assert changed.max() <= 255


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_accuracy_does_not_rise_with_the_bound(
    name: str, subjects: dict[str, Subject], seen: Seen
) -> None:
    subject = subjects[name]
    clean = accuracy(subject.answers(seen.pixels_BHWC), seen)
    fgsm = Fgsm(tuple((place(eps), eps) for eps in EPS)).measure(subject, seen)
    pgd = [Pgd(place(eps), eps, PgdTest()).measure(subject, seen)[0] for eps in EPS]
    for answers in (fgsm, pgd):
        found = [clean, *(accuracy(it, seen) for it in answers)]
        assert found == sorted(found, reverse=True)
    assert accuracy(pgd[-1], seen) < clean - 0.2, "the largest bound does harm"


def test_outside_of_a_patch_nothing_changes(subjects: dict[str, Subject], seen: Seen) -> None:
    few = part(seen, slice(0, 6))
    trial = ImagePatch(place(), place(2.0), side=7, spec=ImagePatchTest(steps=2))
    corners = attacks.corners("test/place/7/0", 7, few.uid_B, image_px=(32, 32), side=7)
    for _, changed in trial.changed(subjects["vit"], few):
        differs = (changed.numpy() != few.pixels_BHWC).any(axis=3)
        inside = np.zeros_like(differs)
        for image, (top, left) in zip(inside, corners, strict=True):
            image[top : top + 7, left : left + 7] = True
        assert not differs[~inside].any()
        assert differs[inside].mean() > 0.9


def test_a_patch_that_follows_the_gradient_does_more_than_noise(
    subjects: dict[str, Subject], seen: Seen
) -> None:
    trial = ImagePatch(place(), place(2.0), side=10, spec=ImagePatchTest(steps=10))
    noise, attack = trial.measure(subjects["resnet"], seen)
    assert accuracy(np.asarray(attack), seen) < accuracy(np.asarray(noise), seen)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_gradients_and_lesions_do_not_depend_on_the_batch(
    name: str, subjects: dict[str, Subject], seen: Seen
) -> None:
    subject, few = subjects[name], part(seen, slice(0, 8))
    together = subject.gradient(subject.values(few.pixels_BHWC), few.label_B)
    block = list(subject.blocks.values())[1]
    kept = inputs_of(block, subject, few)
    for at in range(0, 8, 4):
        alone = part(few, slice(at, at + 4))
        gradient = subject.gradient(subject.values(alone.pixels_BHWC), alone.label_B)
        torch.testing.assert_close(gradient, together[at : at + 4], rtol=1e-3, atol=1e-6)
        assert torch.equal(inputs_of(block, subject, alone) == 0, kept[at : at + 4] == 0)


def inputs_of(block: nn.Module, subject: Subject, seen: Seen, percent: int = 50) -> Tensor:
    """What a block gets under a lesion."""
    found: list[Tensor] = []
    with lesion(block, percent, purpose="lesion", seed=7, uid_B=seen.uid_B):
        hook = block.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        subject.answers(seen.pixels_BHWC)
        hook.remove()
    return found[0]


@pytest.mark.parametrize("percent", [25, 75])
def test_a_lesion_zeroes_an_exact_share_and_leaves_no_trace(
    percent: int, subjects: dict[str, Subject], seen: Seen
) -> None:
    subject, few = subjects["vit"], part(seen, slice(0, 5))
    before = subject.answers(few.pixels_BHWC)
    numbers = 17 * 24  # 16 patches and the class token, width 24
    for block in subject.blocks.values():
        zeros = (inputs_of(block, subject, few, percent) == 0).flatten(1).sum(dim=1)
        assert (zeros == percent * numbers // 100).all()
    assert (subject.answers(few.pixels_BHWC) == before).all()


def test_blocks_are_found_in_the_order_in_which_they_run(subjects: dict[str, Subject]) -> None:
    assert list(subjects["vit"].blocks) == ["blocks.0", "blocks.1"]
    assert list(subjects["resnet"].blocks) == ["stages.0.0", "stages.1.0"]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet18", [f"body.layer{stage}" for stage in (1, 2, 3, 4)]),
        ("vit_tiny_patch16_224", [f"body.blocks.{block}" for block in range(12)]),
        ("convnext_atto", [f"body.stages.{stage}" for stage in range(4)]),
    ],
)
def test_blocks_of_a_library_are_found(name: str, blocks: list[str]) -> None:
    if find_spec("timm") is None:
        pytest.skip("timm comes with the extra `backbones`")
    side = 224 if name.startswith("vit") else 64
    spec = TimmSpec(name=name, image_px=(side, side), num_classes=2)
    assert list(blocks_of(build(spec, seed=0).eval())) == blocks


def test_correlation_is_pearsons(subjects: dict[str, Subject], seen: Seen) -> None:
    subject, few = subjects["vit"], part(seen, slice(0, 4))
    trial = Correlation(((place(), 0), (place(2.0), 50)), CellGrid((8, 8), (32, 32)))
    same, less = trial.measure(subject, few)
    assert same == pytest.approx(np.ones(4), abs=1e-12)
    whole = subject.features(few.pixels_BHWC)
    holed = RandomDrop(place(2.0), CellGrid((8, 8), (32, 32)), 50).alter(few)
    expected = [
        np.corrcoef(*pair)[0, 1] for pair in zip(whole, subject.features(holed), strict=True)
    ]
    assert less == pytest.approx(np.array(expected), abs=1e-9)

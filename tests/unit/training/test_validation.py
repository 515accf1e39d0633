"""Validation while a model trains: exact on any world, and what follows from it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.feed.loader import eval_batches
from pipeline.data.shards.shard_set import AnySplit
from pipeline.model.backbone import normalise
from pipeline.training.checkpoint import read_model
from pipeline.training.engine import TorchEngine
from pipeline.training.guard import needed_again
from pipeline.training.loop import Watch, train
from pipeline.training.objectives.supervised import Supervised
from pipeline.training.validation import Answers, OwnLoss, Validator
from schemas.checkpoint import RunProgress, Standing
from schemas.errors import DataError, PausedError, StageFailedError
from schemas.objectives import SupervisedSpec
from schemas.validation import ValidationSpec
from tests.support.datasets import small_set
from tests.support.training import (
    OPTIM,
    TINY,
    FakeLoader,
    Recorded,
    StopAfter,
    engine_spec,
    keeper,
    mae_engine_parts,
    model,
    setting,
    torch_engine,
)

STEPS = 12


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> AnySplit:
    return small_set(tmp_path_factory.mktemp("data"), per_class=7).split("test")


def validator(split: AnySplit, samples: int = 4, **fields: object) -> Validator:
    spec = ValidationSpec.parse({"every_steps": 3, **fields})
    labels = Supervised(setting(), SupervisedSpec(), 0.0)
    return Validator(
        spec,
        split,
        measure=Answers(setting(), labels),
        model=model(),
        engine=engine_spec(),
        image_px=TINY.image_px,
        samples=samples,
        threads=2,
    )


class OneOfTwo:
    """A rank of a world of two whose sums are brought together by the test."""

    world_size = 2

    def __init__(self, rank: int, sums: list[list[float]]) -> None:
        self.rank = rank
        self.engine = torch_engine()
        self.weights = self.engine.weights
        self.buffers = self.engine.buffers
        self.sums = sums

    def summed(self, numbers: list[float]) -> list[float]:
        self.sums.append(numbers)
        return [sum(column) for column in zip(*self.sums, strict=True)]


def test_every_image_counts_once_on_any_world(split: AnySplit) -> None:
    engine = torch_engine()
    pixels = np.stack([image for image, _ in shown(split)])
    labels = torch.tensor([label for _, label in shown(split)])
    with torch.no_grad():
        logits = engine.model(normalise(torch.from_numpy(pixels), TINY))
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    top1 = (logits.argmax(dim=1) == labels).double().mean().item()
    for samples in (1, 4, 5, 64):
        found = validator(split, samples).run(engine)
        assert found == {"loss": pytest.approx(loss, abs=1e-6), "top1_ratio": top1}
    for samples in (1, 4, 64):  # of 64, the second rank gets none
        sums: list[list[float]] = []
        for rank in (0, 1):
            found = validator(split, samples).run(OneOfTwo(rank, sums))  # type: ignore[arg-type]
        assert found == {"loss": pytest.approx(loss, abs=1e-6), "top1_ratio": top1}


def shown(split: AnySplit) -> list[tuple[np.ndarray, int]]:
    batches = eval_batches(split, image_px=TINY.image_px, batch_samples=1, threads=1)
    return [(batch.pixels_BHWC[0].copy(), int(batch.label_B[0])) for batch in batches]


def test_what_is_measured_is_what_would_be_saved(split: AnySplit) -> None:
    averaged = torch_engine(optim=OPTIM.revise(ema_decay=0.9))
    train(averaged, FakeLoader(), optim=OPTIM, total_steps=STEPS, keeper=None, watch=Watch())
    saved = torch_engine()
    with torch.no_grad():
        for name, weight in averaged.weights():
            dict(saved.model.named_parameters())[name].copy_(weight)
    assert validator(split).run(averaged) == validator(split).run(saved)
    assert dict(averaged.model.named_parameters())["head.weight"].requires_grad


def test_an_objective_without_labels_is_validated_by_its_own_loss(split: AnySplit) -> None:
    trained, spec = mae_engine_parts()
    one, many = (
        replace(
            validator(split, samples),
            measure=OwnLoss(spec.objective),
            model=mae_engine_parts()[0],
            engine=spec,
        ).run(TorchEngine(trained, spec))
        for samples in (1, 64)
    )
    assert one.keys() == {"loss"}
    assert one["loss"] == pytest.approx(many["loss"], abs=1e-6)


def test_validation_changes_nothing_in_the_training(split: AnySplit) -> None:
    ends = []
    for measures in (None, validator(split)):
        engine, log = torch_engine(), Recorded()
        train(
            engine,
            FakeLoader(),
            optim=OPTIM,
            total_steps=STEPS,
            keeper=None,
            watch=Watch(metrics=log),
            validator=measures,
        )
        ends.append((dict(engine.weights()), log.points))
    assert all(torch.equal(ends[0][0][name], ends[1][0][name]) for name in ends[0][0])
    assert ends[0][1]["train/loss"] == ends[1][1]["train/loss"]
    assert sorted(ends[1][1]["validation/loss"]) == [3, 6, 9, 12]


class Scripted:
    """A validator that finds what a test says; the rest is the real one's."""

    def __init__(self, real: Validator, values: Callable[[int], float]) -> None:
        self.real = real
        self.values = values
        self.is_due, self.judged, self.gives_up = real.is_due, real.judged, real.gives_up

    def run(self, engine: object) -> dict[str, float]:
        step = int(engine.updates)  # type: ignore[attr-defined]
        return {self.real.spec.metric: self.values(step)}


def follow(
    scripted: Scripted, root: Path, stop: StopAfter | None = None
) -> tuple[RunProgress, dict[str, torch.Tensor]]:
    engine = torch_engine()
    progress = train(
        engine,
        FakeLoader(),
        optim=OPTIM,
        total_steps=STEPS,
        keeper=keeper(
            root,
            every_steps=4,
            keep_last=1,
            needed=lambda progress: needed_again(progress, OPTIM, scripted.real.spec),
        ),
        watch=Watch(stop=stop),
        validator=scripted,  # type: ignore[arg-type]
    )
    return progress, dict(engine.weights())


def test_training_ends_early_and_the_best_checkpoint_is_kept(
    split: AnySplit, tmp_path: Path
) -> None:
    real = validator(split, patience=2, keep_best=True)
    worse_from_3_on = Scripted(real, float)
    progress, _ = follow(worse_from_3_on, tmp_path)
    assert progress.step == 9
    assert progress.standing == Standing(best_step=3, best_value=3.0, no_better=2)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-00000003", "step-00000009"]
    weights, _ = read_model(tmp_path / "step-00000003")
    stopped = torch_engine()
    with pytest.raises(PausedError):
        train(
            stopped,
            FakeLoader(),
            optim=OPTIM,
            total_steps=STEPS,
            keeper=None,
            watch=Watch(stop=StopAfter(3)),
        )
    assert all(torch.equal(weights[name], weight) for name, weight in stopped.weights())


@pytest.mark.parametrize("stop_after", [2, 3, 4, 8])
def test_patience_survives_an_interruption(
    split: AnySplit, tmp_path: Path, stop_after: int
) -> None:
    real = validator(split, patience=2)
    expected = follow(Scripted(real, float), tmp_path / "undisturbed")
    with pytest.raises(PausedError):
        follow(Scripted(real, float), tmp_path / "stopped", StopAfter(stop_after))
    found = follow(Scripted(real, float), tmp_path / "stopped")
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], it) for name, it in expected[1].items())


def test_a_run_that_ended_early_is_over_when_it_is_loaded(split: AnySplit, tmp_path: Path) -> None:
    real = validator(split, patience=1)
    first, _ = follow(Scripted(real, float), tmp_path)
    again, _ = follow(Scripted(real, lambda _step: 1 / 0), tmp_path)
    assert first == again
    assert first.step == 6


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [("loss", [3.0, 1.0, 1.0, 2.0], 6), ("top1_ratio", [0.1, 0.5, 0.5, 0.4], 6)],
)
def test_the_first_of_equally_good_validations_is_the_best(
    split: AnySplit, metric: str, values: list[float], best: int
) -> None:
    judge = validator(split, metric=metric)
    progress = RunProgress(step=0)
    for index, value in enumerate(values, start=1):
        progress = judge.judged(progress.revise(step=3 * index), {metric: value})
    assert progress.standing == Standing(best_step=best, best_value=values[1], no_better=2)


def test_answers_that_are_not_finite_end_the_run(split: AnySplit) -> None:
    engine = torch_engine()
    with torch.no_grad():
        engine.model.head.weight.fill_(math.nan)
    with pytest.raises(StageFailedError, match="not finite"):
        validator(split).run(engine)


def test_an_empty_split_is_refused(split: AnySplit) -> None:
    with pytest.raises(DataError, match="has no images to validate on"):
        validator(split.subset(np.arange(0)))

"""The tests as the work of a pass: a table of answers, a row for each image.

Columns are `MODEL|TEST/VARIANT/STRENGTH/MEASURE/DRAW`, and `MODEL|clean` for whole images.
Models of one input size go through one pass, so that images are decoded and changed once for all.

Axes: B batch, N patches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from pipeline.data.feed.loader import Batch
from pipeline.evaluation.robustness.planning import Asked, Plan, plan_trials
from pipeline.evaluation.robustness.saliency import attention_shares, guiding
from pipeline.evaluation.robustness.subjects import Subject, subject_of
from pipeline.evaluation.robustness.trials import NOT_MEASURED, Column, Pixels, Place, Seen
from pipeline.model.saved import load_model
from pipeline.model.vit import ViT
from schemas.robustness import AnyTest, PatchDropTest

CLEAN = "clean"
Look = Callable[[Pixels, int | None], Float[np.ndarray, "B N"]]


@dataclass(frozen=True)
class Named:
    """A stage that made a model, and the folder of the model."""

    stage: str
    folder: Path
    number: int
    """In the spec, from 0."""


@dataclass(frozen=True)
class Robustness:
    """The tests of some models of one input size; see `pipeline.evaluation.passes.Work`."""

    models: tuple[Named, ...]
    guide: Named | None
    tests: tuple[AnyTest, ...]
    patches: Path
    """Folder of learned patches."""
    training_images: int
    seed: int

    def load(self, device: torch.device) -> "LoadedTests":
        """Read the models.

        Raises:
            DataError: If the guide cannot say what is salient.
        """
        guide = None if self.guide is None else _guide(self.guide, self.tests).to(device)
        subjects = {
            named.number: subject_of(named.stage, load_model(named.folder)[0].to(device))
            for named in self.models
        }
        plans = [
            plan_trials(
                self.tests,
                Asked(
                    subject=subject,
                    number=number,
                    guide_grid=None if guide is None else guide.spec.grid,
                    patches=self.patches,
                    training_images=self.training_images,
                ),
            )
            for number, subject in subjects.items()
        ]
        look = None if guide is None else _looking(guide)
        return LoadedTests([*subjects.values()], plans, look, self.seed)


class LoadedTests:
    """Models and their trials, ready for batches."""

    def __init__(
        self, subjects: list[Subject], plans: list[Plan], look: Look | None, seed: int
    ) -> None:
        """Put trials in an order in which models that share one follow each other."""
        self.subjects, self.plans, self.look, self.seed = subjects, plans, look, seed
        by_trial: dict[tuple[Place, ...], list[int]] = {}
        self._trials = {}
        for index, plan in enumerate(plans):
            for trial in plan.trials:
                self._trials[index, trial.places] = trial
                by_trial.setdefault(trial.places, []).append(index)
        self._order = [(at, places) for places, all_at in by_trial.items() for at in all_at]

    @property
    def image_px(self) -> tuple[int, int]:
        """Of all models."""
        return self.subjects[0].model.spec.image_px

    @property
    def columns(self) -> pa.Schema:
        """Answers as int32, with nulls for images that are not measured; numbers as float32."""
        clean = [pa.field(f"{it.stage}|{CLEAN}", pa.int32()) for it in self.subjects]
        return pa.schema(
            [
                *clean,
                *(
                    pa.field(f"{self.subjects[at].stage}|{place.column}", _type_of(place))
                    for at, places in self._order
                    for place in places
                ),
            ]
        )

    def see(self, batch: Batch) -> Seen:
        """A batch as trials take it."""
        return Seen(
            pixels_BHWC=batch.pixels_BHWC,
            label_B=batch.label_B,
            uid_B=batch.uid_B,
            position_B=batch.places.position,
            seed=self.seed,
            look=self.look,
        )

    def __call__(self, batch: Batch) -> list[pa.Array]:
        """Run every trial of every model."""
        seen = self.see(batch)
        columns = [pa.array(it.answers(seen.pixels_BHWC), pa.int32()) for it in self.subjects]
        for at, places in self._order:
            found = self._trials[at, places].measure(self.subjects[at], seen)
            columns.extend(map(_column, places, found))
        return columns


def _guide(named: Named, tests: tuple[AnyTest, ...]) -> ViT:
    heads = [test.head for test in tests if isinstance(test, PatchDropTest)]
    model, _ = load_model(named.folder)
    return guiding(named.stage, model, heads[0] if heads else None)


def _looking(guide: ViT) -> Look:
    return lambda pixels, head: attention_shares(guide, pixels, head)


def _type_of(place: Place) -> pa.DataType:
    return pa.int32() if place.measure == "top1_ratio" else pa.float32()


def _column(place: Place, found: Column) -> pa.Array:
    gone = found == NOT_MEASURED if place.measure == "top1_ratio" else None
    return pa.array(found, _type_of(place), mask=gone)

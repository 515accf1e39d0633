"""`robustness.json`: what every test of a `robustness` stage found of every model."""

from typing import Literal

from pydantic import Field

from schemas.evaluation import Accuracy
from schemas.robustness import AnyTest
from schemas.spec import Semantic, Spec

ROBUSTNESS_FILE = "robustness.json"
Measure = Literal["top1_ratio", "correlation", "dropped_ratio"]
"""`top1_ratio`: share of right answers; `correlation`: of features with those of the whole image;
`dropped_ratio`: share of the patches that a salient or non-salient drop takes."""


class RobustnessPoint(Spec):
    """One strength of one change, over all images and draws."""

    x: Semantic[float]
    """On the axis of the test; see `RobustnessCurve.axis`."""
    label: Semantic[str]
    """The strength in words."""
    images: Semantic[int] = Field(gt=0)
    mean: Semantic[float]
    """Over images and draws."""
    low: Semantic[float]
    high: Semantic[float]
    """95 % interval over images, each counted by the mean of its draws. Shares: Wilson's score
    interval with the number of images that would spread as much by single draws; correlations:
    mean and 1.96 standard errors."""
    draws: Semantic[tuple[float, ...]]
    """The mean of each draw."""
    columns: Semantic[tuple[str, ...]]
    """Columns of the table of answers that it was counted from, one for each draw."""


class RobustnessCurve(Spec):
    """One model under one change of rising strength."""

    test: Semantic[str]
    """Type of the test."""
    variant: Semantic[str]
    """What else tells it from the test's other curves."""
    model: Semantic[str]
    """The stage that made the model."""
    measure: Semantic[Measure]
    axis: Semantic[str]
    """What `x` counts, with its unit."""
    points: Semantic[tuple[RobustnessPoint, ...]]
    """By rising `x`; without the unchanged image."""


class MeasuredModel(Spec):
    """A model and how well it does on the images as they are."""

    stage: Semantic[str]
    digest: Semantic[str]
    """Of the stage's artifact."""
    type: Semantic[str]
    image_px: Semantic[tuple[int, int]]
    clean: Semantic[Accuracy]
    answers: Semantic[str]
    """File with the answers to each image: `uid`, `label`, and a column for each draw."""
    column: Semantic[str]
    """Column of the answers to the unchanged images."""
    passes_per_image: Semantic[float] = Field(ge=0)
    """Forward passes for each image in all tests; a gradient counts three."""


class CorruptionError(Spec):
    """Mean errors of one model over the severities of each corruption."""

    model: Semantic[str]
    errors: Semantic[dict[str, float]]
    """Corruption -> mean of 1 - accuracy over the severities that were measured."""
    mean_error: Semantic[float]
    """Over the corruptions that were measured: an absolute error, not the published mCE."""
    relative_to: Semantic[str | None]
    """The model of `mce_ratio`; null: there is none."""
    mce_ratio: Semantic[float | None]
    """Mean over corruptions of this model's summed error over that model's, as in ImageNet-C; 1 is
    as many errors as that model makes. Published figures divide by AlexNet's."""


class AbsentTest(Spec):
    """What was asked for and cannot be measured, and why."""

    test: Semantic[str]
    model: Semantic[str | None]
    """None: of no model."""
    what: Semantic[str]
    reason: Semantic[str]


class RobustnessReport(Spec):
    """`robustness.json`."""

    schema_version: Semantic[Literal[1]] = 1
    data: Semantic[str]
    """The stage of the shard set."""
    split: Semantic[str]
    images: Semantic[int] = Field(gt=0)
    seed: Semantic[int]
    guide: Semantic[str | None]
    """The stage whose attention said which patches are salient."""
    tests: Semantic[tuple[AnyTest, ...]]
    models: Semantic[tuple[MeasuredModel, ...]]
    curves: Semantic[tuple[RobustnessCurve, ...]]
    corruptions: Semantic[tuple[CorruptionError, ...]]
    absent: Semantic[tuple[AbsentTest, ...]]

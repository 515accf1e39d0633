"""Features of images, and simple methods on them: what a user says, and the documents."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from schemas.evaluation import Accuracy
from schemas.passes import PassStageSpec
from schemas.spec import Input, Semantic, Spec
from schemas.stage import SHARD_SETS, StageSpec

FEATURES_FOLDER = "features"
"""Folder of the artifact with `SPLIT.arrow` for each split: `schemas.records.features_schema`."""
FEATURES_FILE = "features.json"
PROBE_FILE = "probe.json"

ProbeMethod = Literal["few_shot", "knn", "logistic_regression"]
METHODS: tuple[ProbeMethod, ...] = ("few_shot", "knn", "logistic_regression")


class FeaturesSpec(PassStageSpec):
    """What a model's head sees of every image, computed once for all that reads it."""

    kind: Semantic[Literal["features"]] = "features"
    data: Input[str]
    """The shard set, `NAME`."""
    model: Input[str]
    splits: Semantic[tuple[str, ...] | None] = None
    """Splits of the set; None: all that it has."""
    image_px: Semantic[int | tuple[int, int] | None] = None
    """What the model is shown: a square's side, or height and width; None: as it was trained.
    Positions are resized."""

    revision: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "pillow", "pyarrow", "simplejpeg", "torch")
    ports: ClassVar[dict[str, tuple[str, ...]]] = {
        "data": SHARD_SETS,
        "model": ("pretrain", "finetune", "import"),
    }
    whole_sets: ClassVar[tuple[str, ...]] = ("data",)


class FeaturesDocument(Spec):
    """`features.json`: what the features are of."""

    schema_version: Semantic[Literal[1]] = 1
    data_digest: Semantic[str]
    """Of the shard set's manifest: its live rows, in storage order, are the rows of the files."""
    model_digest: Semantic[str]
    """Content digest of the artifact that the model came from."""
    class_names: Semantic[tuple[str, ...]]
    width: Semantic[int] = Field(gt=0)
    """Numbers in one feature."""
    image_px: Semantic[tuple[int, int]]
    """Height and width of what the model saw."""
    split_rows: Semantic[dict[str, int]]
    """Split -> images."""


class ProbeSpec(StageSpec):
    """Classify by frozen features with simple methods: how good the features are.

    Everything is learned from the split `train` and measured on another.
    """

    kind: Semantic[Literal["probe"]] = "probe"
    features: Input[str | None] = None
    """The stage with the features, `NAME` (measured on its split `test`) or `NAME@SPLIT`."""
    data: Input[str | None] = None
    """Instead of `features`, together with `model`: a stage `PROBE-features` is made for both."""
    model: Input[str | None] = None
    methods: Semantic[tuple[ProbeMethod, ...]] = Field(default=METHODS, min_length=1)
    shots: Semantic[tuple[int, ...]] = Field(default=(1, 5, 10, 25), min_length=1)
    """`few_shot`: training images of each class; all of a class that has fewer."""
    draws: Semantic[int] = Field(default=3, ge=1)
    """`few_shot`: how many times they are drawn; one draw's fewer shots are among its more."""
    l2: Semantic[float] = Field(default=1024.0, gt=0)
    """`few_shot`: the penalty, beside features of unit spread and a bias feature of 100."""
    neighbours: Semantic[tuple[int, ...]] = Field(default=(1, 20), min_length=1)
    """`knn`: how many training images vote."""
    temperature: Semantic[float] = Field(default=0.07, gt=0)
    """`knn`: a neighbour votes with exp(cosine / temperature)."""
    holdout_ratio: Semantic[float] = Field(default=0.2, gt=0, lt=1)
    """`logistic_regression`: share of `train` on which its penalty is chosen."""

    revision: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("matplotlib", "numpy", "scikit-learn", "scipy")
    uses_seed: ClassVar[bool] = True
    ports: ClassVar[dict[str, tuple[str, ...]]] = {
        "features": ("features",),
        "data": SHARD_SETS,
        "model": ("pretrain", "finetune", "import"),
    }
    default_splits: ClassVar[dict[str, str]] = {"features": "test", "data": "test"}

    @model_validator(mode="after")
    def _has_features(self) -> "ProbeSpec":
        both = self.data is not None and self.model is not None
        neither = self.data is None and self.model is None
        if not (neither if self.features is not None else both):
            raise ValueError(
                "a probe reads either features (a stage of kind features), or data and model, for "
                "which such a stage is made"
            )
        return self

    @model_validator(mode="after")
    def _counts_are_plain(self) -> "ProbeSpec":
        for name in ("methods", "shots", "neighbours"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} lists something twice: {', '.join(map(str, values))}")
        for name in ("shots", "neighbours"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} has a number below 1; allowed are whole numbers from 1")
        return self


class FewShotResult(Spec):
    """Accuracy after learning from one draw of some images of each class."""

    shots: Semantic[int] = Field(ge=1)
    draw: Semantic[int] = Field(ge=0)
    train_images: Semantic[int] = Field(ge=1)
    """Fewer than shots x classes where a class has fewer images."""
    accuracy: Semantic[Accuracy]


class FewShotMean(Spec):
    """The same over all draws."""

    shots: Semantic[int] = Field(ge=1)
    draws: Semantic[int] = Field(ge=1)
    mean_ratio: Semantic[float] = Field(ge=0, le=1)
    std_ratio: Semantic[float | None]
    """Spread between draws (n - 1); None for a single one."""
    low_ratio: Semantic[float | None]
    """95 % t-interval of the mean over draws, the measured images given; None for one draw."""
    high_ratio: Semantic[float | None]


class ProbeReport(Spec):
    """`probe.json` of a `probe` artifact."""

    schema_version: Semantic[Literal[1]] = 1
    split: Semantic[str]
    """The split that was measured."""
    class_names: Semantic[tuple[str, ...]]
    class_counts: Semantic[tuple[int, ...]]
    """Images of each class in that split."""
    train_images: Semantic[int] = Field(ge=1)
    few_shot: Semantic[tuple[FewShotResult, ...]] = ()
    few_shot_means: Semantic[tuple[FewShotMean, ...]] = ()
    accuracies: Semantic[tuple[Accuracy, ...]] = ()
    """Of the methods that learn from all of `train`: `knn_K`, `logistic_regression`."""
    chosen: Semantic[dict[str, float]] = {}
    """Hyper-parameters that were chosen on training data, by dotted name."""

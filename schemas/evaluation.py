"""What a user says of evaluation, and the reports that evaluation stages write."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.objectives import Probabilities
from schemas.passes import PassStageSpec
from schemas.sources import Uri
from schemas.spec import Execution, Input, Semantic, Spec
from schemas.stage import SHARD_SETS, StageSpec

Method = Literal["nearest_neighbour", "logistic_regression"]
Side = Annotated[int, Field(gt=0)]
ImageSize = Side | tuple[Side, Side]
"""One side of a square, or height and width."""

MEASURED = (
    "top1_ratio", "top1_low_ratio", "top1_high_ratio",
    "top5_ratio", "top5_low_ratio", "top5_high_ratio",
    "class_mean_ratio", "nll", "brier", "ece_ratio", "images_count",
)  # fmt: skip
"""Metrics of every evaluation, without the split; top-5 only where there are more classes."""
MEASURED_OF_SETS = (
    "sets_top1_ratio", "sets_top1_low_ratio", "sets_top1_high_ratio",
    "sets_images_count", "sets_left_out_count",
)  # fmt: skip
"""Those of an evaluation with `label_sets`."""


class LabelSetsSource(Spec):
    """A file that says of each image which classes are right, one, several or none (JSON).

    Either an object, image -> list of class names or indices; an image is named by its path in the
    corpus, by its file name, or by that without suffix. Or, as ReaL (Beyer et al. 2020) has it, a
    list of lists of indices: the n-th is of `ILSVRC2012_val_%08d`, counted from 1.
    """

    uri: Execution[Uri]
    """Not keyed: the sha256 of the file is."""


class EvaluateSpec(PassStageSpec):
    """Run a model over every image of a split, each exactly once."""

    kind: Semantic[Literal["evaluate"]] = "evaluate"
    data: Input[str]
    """The shard set, `NAME` (its split `test`) or `NAME@SPLIT`."""
    model: Input[str]
    label_sets: Semantic[LabelSetsSource | None] = None
    """Several right classes for an image: an answer is right if it is one of them."""
    resolutions_px: Semantic[tuple[ImageSize, ...]] = ()
    """Further sizes of images that the model is measured at, its positions resized."""

    revision: ClassVar[int] = 4
    libraries: ClassVar[tuple[str, ...]] = (
        "matplotlib",
        "numpy",
        "pillow",
        "pyarrow",
        "simplejpeg",
        "torch",
    )
    ports: ClassVar[dict[str, tuple[str, ...]]] = {
        "data": SHARD_SETS,
        "model": ("pretrain", "finetune", "import"),
    }
    default_splits: ClassVar[dict[str, str]] = {"data": "test"}

    def outside(self) -> Spec | None:
        """See `StageSpec`."""
        return self.label_sets

    def measured(self) -> tuple[str, ...]:
        """See `GatedStageSpec`."""
        sizes = tuple(f"top1_{size_name(size)}_ratio" for size in self.resolutions_px)
        return MEASURED + (MEASURED_OF_SETS if self.label_sets else ()) + sizes


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """A size as two sides."""
    return (size, size) if isinstance(size, int) else size


def size_name(size: ImageSize) -> str:
    """`112px`, or `96x128px` for height and width."""
    height, width = height_and_width(size)
    return f"{height}px" if height == width else f"{height}x{width}px"


class BaselineSpec(StageSpec):
    """Classify raw pixels with simple methods: what a model has to be compared with."""

    kind: Semantic[Literal["baseline"]] = "baseline"
    data: Input[str]
    """The shard set; `train` is learned from, `test` is measured on."""
    methods: Semantic[tuple[Method, ...]] = ("nearest_neighbour", "logistic_regression")
    image_px: Semantic[int] = Field(gt=0)
    """Side to which images are resized before their pixels are compared."""

    revision: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = (
        "numpy",
        "pillow",
        "scikit-learn",
        "simplejpeg",
        "torch",
    )
    uses_seed: ClassVar[bool] = True
    ports: ClassVar[dict[str, tuple[str, ...]]] = {"data": SHARD_SETS}
    fixed_splits: ClassVar[dict[str, tuple[str, ...]]] = {"data": ("train", "test")}


_SHOWN = (
    "pretrain",
    "finetune",
    "evaluate",
    "baseline",
    "compare",
    "features",
    "probe",
    "robustness",
    "interpret",
)


class ReportSpec(StageSpec):
    """One page with tables and figures of other stages; with a matrix, over all variants."""

    kind: Semantic[Literal["report"]] = "report"
    of: Input[tuple[str, ...]] = Field(min_length=1)
    title: Semantic[str] = "Report"

    revision: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("jinja2", "matplotlib", "scipy")
    ports: ClassVar[dict[str, tuple[str, ...]]] = {
        "of": (*SHARD_SETS, *_SHOWN),
    }
    shows_names: ClassVar[bool] = True


class Accuracy(Spec):
    """Share of correct answers, with its 95 % Wilson score interval."""

    method: Semantic[str]
    """`model`, or a method of `baseline`."""
    correct: Semantic[int] = Field(ge=0)
    total: Semantic[int] = Field(gt=0)
    top1_ratio: Semantic[float] = Field(ge=0, le=1)
    low_ratio: Semantic[float] = Field(ge=0, le=1)
    high_ratio: Semantic[float] = Field(ge=0, le=1)


class Share(Spec):
    """A share of images, with two 95 % intervals: `low` to `high` is Wilson's, which is shown."""

    correct: Semantic[int] = Field(ge=0)
    total: Semantic[int] = Field(gt=0)
    ratio: Semantic[float] = Field(ge=0, le=1)
    low_ratio: Semantic[float] = Field(ge=0, le=1)
    high_ratio: Semantic[float] = Field(ge=0, le=1)
    bootstrap_low_ratio: Semantic[float] = Field(ge=0, le=1)
    """Percentile bootstrap over images."""
    bootstrap_high_ratio: Semantic[float] = Field(ge=0, le=1)


class CalibrationBin(Spec):
    """Answers whose probability is above `low` and at most `high`."""

    low: Semantic[float]
    high: Semantic[float]
    images: Semantic[int] = Field(ge=0)
    confidence: Semantic[float | None]
    """Mean probability of the answers; null in an empty bin."""
    right_ratio: Semantic[float | None]


class Calibration(Spec):
    """Whether answers are right as often as their probabilities say."""

    ece_ratio: Semantic[float] = Field(ge=0, le=1)
    """Expected calibration error: mean gap of confidence and share of right answers, weighted by
    images (Guo et al. 2017)."""
    bins: Semantic[tuple[CalibrationBin, ...]]


class LabelSetFacts(Spec):
    """What was found of an outside file before anything was measured."""

    unknown_count: Semantic[int] = Field(ge=0)
    """Names in it that no image of the split has."""
    unknown_names: Semantic[tuple[str, ...]]
    """The first of them."""


class LabelSetFigures(LabelSetFacts):
    """Accuracy where several classes may be right."""

    top1: Semantic[Share | None]
    """Of the images with at least one right class; null where there is none."""
    left_out: Semantic[int] = Field(ge=0)
    """Images for which no class is right."""
    unnamed: Semantic[int] = Field(ge=0)
    """Images of which the file says nothing; left out, too."""


class SizeFigures(Spec):
    """Accuracy at one size of images."""

    image_px: Semantic[tuple[int, int]]
    """Height and width."""
    top1: Semantic[Share]
    nll: Semantic[float]


class ModelFigures(Spec):
    """What can be said of a model that answers with logits."""

    probabilities: Semantic[Probabilities]
    """What makes them of logits. `confidence` is the probability of the answered class."""
    top1: Semantic[Share]
    top5: Semantic[Share | None]
    """Null for five classes or fewer."""
    class_mean_ratio: Semantic[float]
    """Mean over classes of the share of their images that are answered right."""
    nll: Semantic[float]
    """Mean negative log-likelihood, in nats; under sigmoids the sum over all classes."""
    brier: Semantic[float]
    """Mean over images of the squared distance of probabilities and truth, summed over classes."""
    calibration: Semantic[Calibration]
    label_sets: Semantic[LabelSetFigures | None] = None
    sizes: Semantic[tuple[SizeFigures, ...]] = ()
    """The model's own size and `resolutions_px`, smallest first; empty without the latter."""


class PredictionFacts(Spec):
    """What a file of predictions says of itself, so that nothing else is needed to measure."""

    schema_version: Semantic[Literal[1]] = 1
    split: Semantic[str]
    class_names: Semantic[tuple[str, ...]]
    probabilities: Semantic[Probabilities]
    image_px: Semantic[tuple[int, int]]
    """Height and width of what the model saw."""
    label_sets: Semantic[LabelSetFacts | None] = None


class AccuracyReport(Spec):
    """`accuracy.json` of an `evaluate` or `baseline` artifact."""

    schema_version: Semantic[Literal[1]] = 1
    split: Semantic[str]
    """The split that was measured."""
    accuracies: Semantic[tuple[Accuracy, ...]]
    per_class: Semantic[dict[str, dict[str, float]]]
    """Method -> class name -> share of correct answers."""
    class_names: Semantic[tuple[str, ...]]
    confusion: Semantic[dict[str, tuple[tuple[int, ...], ...]]]
    """Method -> rows of true classes, columns of predicted ones."""
    chosen: Semantic[dict[str, float]] = {}
    """Hyper-parameters that were chosen on training data, by dotted name."""
    model: Semantic[ModelFigures | None] = None
    """Of an `evaluate` artifact; it follows from `predictions.arrow` alone."""

    def of_model(self) -> ModelFigures:
        """What is said of the model.

        Raises:
            ValueError: If this is the report of baselines.
        """
        if self.model is None:
            raise ValueError("no model was measured, only baselines")
        return self.model

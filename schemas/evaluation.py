"""What a user says of evaluation, and the reports that evaluation stages write."""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.spec import Execution, Input, Semantic, Spec
from schemas.stage import SHARD_SETS, StageSpec

Method = Literal["nearest_neighbour", "logistic_regression"]


class EvaluateSpec(StageSpec):
    """Run a model over every image of a split, each exactly once."""

    kind: Semantic[Literal["evaluate"]] = "evaluate"
    data: Input[str]
    """The shard set, `NAME` (its split `test`) or `NAME@SPLIT`."""
    model: Input[str]
    batch_samples: Execution[int] = Field(default=64, gt=0)
    threads: Execution[int] = Field(default=1, ge=1)

    revision: ClassVar[int] = 3
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

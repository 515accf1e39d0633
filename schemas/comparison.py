"""Models measured on the same images, compared: what a user says, and the documents."""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.runs import Change
from schemas.spec import Input, Semantic, Spec
from schemas.stage import StageSpec

COMPARISON_FILE = "comparison.json"
RESAMPLES = 10_000


class CompareSpec(StageSpec):
    """Say which of several models is better, from what each answered on the same images."""

    kind: Semantic[Literal["compare"]] = "compare"
    of: Input[tuple[str, ...]] = Field(min_length=2)
    """Stages of kind `evaluate`."""
    resamples: Semantic[int] = Field(default=RESAMPLES, ge=100)
    """Of the images, for the bootstrap intervals."""

    revision: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("matplotlib", "numpy", "scipy")
    uses_seed: ClassVar[bool] = True
    ports: ClassVar[dict[str, tuple[str, ...]]] = {"of": ("evaluate",)}
    shows_names: ClassVar[bool] = True


class ComparedModel(Spec):
    """One model's answers."""

    name: Semantic[str]
    """The stage that measured it."""
    correct: Semantic[int] = Field(ge=0)
    top1_ratio: Semantic[float] = Field(ge=0, le=1)
    low_ratio: Semantic[float] = Field(ge=0, le=1)
    """Of the 95 % Wilson interval."""
    high_ratio: Semantic[float] = Field(ge=0, le=1)


class ComparedPair(Spec):
    """Two models on the same images."""

    first: Semantic[str]
    second: Semantic[str]
    only_first_correct: Semantic[int] = Field(ge=0)
    """Images that the first answers right and the second does not."""
    only_second_correct: Semantic[int] = Field(ge=0)
    difference_ratio: Semantic[float]
    """Accuracy of the first less that of the second."""
    low_ratio: Semantic[float]
    """Of the 95 % percentile interval of a paired bootstrap over images."""
    high_ratio: Semantic[float]
    mcnemar_p: Semantic[float] = Field(ge=0, le=1)
    """Exact, two-sided: how probable so uneven counts are if both models err alike."""
    mcnemar_mid_p: Semantic[float] = Field(ge=0, le=1)
    """The same less half the probability of these very counts; less conservative."""
    holm_p: Semantic[float] = Field(ge=0, le=1)
    """`mcnemar_p` adjusted for all pairs of the comparison (Holm 1979)."""


class ComparisonReport(Spec):
    """`comparison.json` of a `compare` artifact."""

    schema_version: Semantic[Literal[1]] = 1
    images: Semantic[int] = Field(gt=0)
    resamples: Semantic[int]
    seed: Semantic[int]
    models: Semantic[tuple[ComparedModel, ...]]
    """In the order of `of`."""
    pairs: Semantic[tuple[ComparedPair, ...]]
    """Every two of them, in that order."""


class StageComparison(Spec):
    """One `evaluate` stage of two runs."""

    stage: Semantic[str]
    same_artifact: Semantic[bool]
    """Both runs have the very same result."""
    pair: Semantic[ComparedPair | None] = None
    """`first` and `second` are the runs; None where the images differ, as `problem` says."""
    first: Semantic[ComparedModel | None] = None
    second: Semantic[ComparedModel | None] = None
    images: Semantic[int | None] = None
    problem: Semantic[str | None] = None


class StageChange(Spec):
    """One field in which a stage of two runs differs."""

    stage: Semantic[str]
    change: Semantic[Change]
    """`before` is of the first run, `after` of the second."""


class RunComparison(Spec):
    """`vitrail compare RUN_A RUN_B --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    first: Semantic[str]
    second: Semantic[str]
    stages: Semantic[tuple[StageComparison, ...]]
    """`evaluate` stages that both have, in the order of the first run."""
    changes: Semantic[tuple[StageChange, ...]]
    """What differs between stages of the same name: fields of the spec, raw data, libraries,
    revision, seed; of what merely follows from that nothing is said."""
    only_first: Semantic[tuple[str, ...]] = ()
    """`evaluate` stages that the other run has not."""
    only_second: Semantic[tuple[str, ...]] = ()

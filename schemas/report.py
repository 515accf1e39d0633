"""What stages write for report pages: notes on figures, findings; and the rows of studies."""

from typing import Literal

from pydantic import Field

from schemas.spec import Semantic, Spec

FIGURES_FOLDER = "figures"
"""Folder of an artifact with PNG files for people."""
FIGURE_NOTES_FILE = "figures.json"
"""In that folder: `FigureNotes`."""


class FigureNote(Spec):
    """What a figure of an artifact shows."""

    file: Semantic[str]
    """Name in the folder of figures."""
    title: Semantic[str]
    """A few words, without the name of the stage."""
    caption: Semantic[str] = ""
    """Sentences that say how to read it: what the axes are, how many images, which interval."""


class FigureNotes(Spec):
    """The figures of an artifact, in the order in which a page shows them."""

    schema_version: Semantic[Literal[1]] = 1
    figures: Semantic[tuple[FigureNote, ...]]


class AccuracyRow(Spec):
    """One measured method of one stage, with its 95 % Wilson score interval."""

    stage: Semantic[str]
    kind: Semantic[str]
    artifact: Semantic[str]
    place: Semantic[int]
    """Index of the method in the `accuracies` of the artifact's `accuracy.json`."""
    method: Semantic[str]
    split: Semantic[str]
    test_set: Semantic[str]
    """Digest of the split's name, its classes and the images of each: equal where comparable."""
    correct: Semantic[int] = Field(ge=0)
    total: Semantic[int] = Field(gt=0)
    top1_ratio: Semantic[float]
    low_ratio: Semantic[float]
    high_ratio: Semantic[float]
    chosen: Semantic[dict[str, float]] = {}
    """Hyper-parameters that were chosen on training data."""


class MeanRow(Spec):
    """One method of one stage over the variants of a matrix, with a 95 % t-interval of the mean."""

    stage: Semantic[str]
    """Name without the variant."""
    method: Semantic[str]
    variants: Semantic[tuple[str, ...]]
    top1_ratios: Semantic[tuple[float, ...]]
    """In the order of `variants`."""
    mean_ratio: Semantic[float]
    low_ratio: Semantic[float]
    high_ratio: Semantic[float]


class DifferenceRow(Spec):
    """Accuracy of one method less that of another, paired by variant, with a 95 % t-interval."""

    first: Semantic[str]
    second: Semantic[str]
    variants: Semantic[tuple[str, ...]]
    """Those in which both were measured."""
    mean_ratio: Semantic[float]
    low_ratio: Semantic[float]
    high_ratio: Semantic[float]


TEST_COPIES_FILE = "test_copies.json"


class TestCopiesRow(Spec):
    """What a filter found of one test split in the data that it cleaned."""

    __test__ = False  # no test case, whatever pytest thinks of the name

    test_set: Semantic[str]
    """`STAGE@SPLIT`; it is not changed."""
    found: Semantic[int]
    """Its images that had a copy in the data."""
    images: Semantic[int]
    """All of its images."""
    removed: Semantic[int]
    """Images of the data that repeat one of it; one image may repeat images of several sets."""


class TestCopiesReport(Spec):
    """`test_copies.json` of a `filter` artifact."""

    __test__ = False

    schema_version: Semantic[Literal[1]] = 1
    tests: Semantic[tuple[TestCopiesRow, ...]]
    """In the order of `against`."""


SEARCH_FILE = "search.json"


class SearchTrial(Spec):
    """One pair that a search tried."""

    peak_lr: Semantic[float]
    steps: Semantic[int]
    holdout_top1_ratio: Semantic[float]
    """Mean over the repeats."""


class SearchReport(Spec):
    """`search.json` of a `finetune` artifact."""

    schema_version: Semantic[Literal[1]] = 1
    trials: Semantic[tuple[SearchTrial, ...]]
    chosen: Semantic[int] = Field(ge=0)
    """Index of the winner in `trials`."""

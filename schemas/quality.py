"""`quality.json`: what a corpus looks like, in numbers that never grow with its images."""

from typing import Literal

from pydantic import Field

from schemas.spec import Semantic, Spec

QUALITY_FILE = "quality.json"


class Histogram(Spec):
    """Counts of values between edges; the first and the last bin hold all that lies beyond."""

    edges: Semantic[tuple[float, ...]]
    """Rising, one more than there are counts."""
    counts: Semantic[tuple[int, ...]]


class SplitQuality(Spec):
    """The images of one split as they are stored."""

    split: Semantic[str]
    images: Semantic[int] = Field(ge=0)
    source_side_px: Semantic[Histogram]
    """Longer side of the source image."""
    aspect_ratio: Semantic[Histogram]
    """Width over height of the source image, as its base-2 logarithm."""
    brightness: Semantic[Histogram]
    """Mean grey level, 0 to 255."""
    brightness_unknown: Semantic[int] = Field(ge=0)
    """Images without a thumbnail that were not among those decoded for their brightness."""
    stored_bytes: Semantic[Histogram]
    """Bytes of the stored image."""
    images_of_class: Semantic[tuple[int, ...]]
    """In the order of the class names."""


class RejectedFiles(Spec):
    """The files that one reason kept out."""

    reason: Semantic[str]
    files: Semantic[int] = Field(ge=1)
    examples: Semantic[tuple[str, ...]]
    """The first ones by name, each with what was said of it."""


class QualityReport(Spec):
    """What `ingest` found, split by split; `duplicate` is among the reasons of `rejected`."""

    schema_version: Semantic[Literal[1]] = 1
    digest: Semantic[str]
    """Of the shard set's manifest."""
    class_names: Semantic[tuple[str, ...]]
    splits: Semantic[tuple[SplitQuality, ...]]
    rejected: Semantic[tuple[RejectedFiles, ...]]
    """Most files first."""

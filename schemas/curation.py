"""What a user says of changing a shard set: rows taken out, new images added, nothing rewritten."""

import re
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from schemas.data import CorpusSpec, IngestSpec
from schemas.spec import Input, Semantic, Spec
from schemas.stage import SHARD_SETS, StageSpec

_UID = re.compile(r"[0-9a-f]{32}")


def is_uid(text: str) -> bool:
    """Whether a text has the form of a uid: 32 digits, 0-9 and a-f."""
    return _UID.fullmatch(text) is not None


class QualitySpec(Spec):
    """Which images are kept, judged by what stands in their rows; None: not asked."""

    min_side_px: Semantic[int | None] = Field(default=None, ge=1)
    """Shorter side of the source image."""
    max_aspect_ratio: Semantic[float | None] = Field(default=None, ge=1)
    """Longer side over shorter side of the source image."""
    min_brightness: Semantic[float | None] = Field(default=None, ge=0, le=255)
    """Mean grey level of the thumbnail, 0 black to 255 white. Images without one are kept."""
    max_brightness: Semantic[float | None] = Field(default=None, ge=0, le=255)
    """As `min_brightness`."""

    @model_validator(mode="after")
    def _asks_something(self) -> "QualitySpec":
        if all(value is None for _, value in self):
            raise ValueError(f"quality asks nothing; give {', '.join(type(self).model_fields)}")
        low, high = self.min_brightness, self.max_brightness
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_brightness {low:g} is above max_brightness {high:g}")
        return self


class FilterSpec(StageSpec):
    """Remove rows of one split: copies of test images, poor images, near copies of each other."""

    kind: Semantic[Literal["filter"]] = "filter"
    data: Input[str]
    """The shard set to clean, `NAME` (its split `train`) or `NAME@SPLIT`."""
    against: Input[tuple[str, ...]] = ()
    """Shard sets whose images must not be in `data`, exactly or nearly: `NAME` (all its splits) or
    `NAME@SPLIT`. They are read and never changed."""
    quality: Semantic[QualitySpec | None] = None
    """Rules for each image by itself; they come after `against`."""
    near_duplicates: Semantic[Literal["keep_first"] | None] = None
    """`keep_first`: of what is left, an image goes if it is a near copy of one that stands before
    it (in storage order, which is random) and stays. None: near copies within `data` stay."""
    max_hamming_bits: Semantic[int] = Field(default=7, ge=0, le=7)
    """Perceptual hashes (64 bits, image or mirror) at most this far apart are candidates."""
    max_thumbnail_difference: Semantic[float] = Field(default=6.0, ge=0)
    """A candidate is a near copy if its thumbnail, mirrored or not, differs by no more grey levels
    (0..255) on average. Copies of photos that were encoded again or resized differ by less than 2,
    tiny images by up to 6, photos of alike things by 10 and more."""
    max_relative_difference: Semantic[float] = Field(default=0.25, ge=0)
    """And by no more than this share of the thumbnail's contrast (its mean absolute deviation from
    its mean grey): of pale images, such as pages of text, a small difference is a great one."""

    features: Input[tuple[str, ...]] = ()
    """Stages of features, all by one model: of `data`, and of every set of `against`. With
    `min_cosine`, whatever is that alike by them goes too, after all that goes without them."""
    min_cosine: Semantic[float | None] = Field(default=None, gt=0, le=1)
    """Cosine of two features from which on images count as alike. What is right depends on the
    model: look at the pairs that a first value finds."""

    revision: ClassVar[int] = 3
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "pillow", "pyarrow", "simplejpeg")
    ports: ClassVar[dict[str, tuple[str, ...]]] = {
        "data": SHARD_SETS,
        "against": SHARD_SETS,
        "features": ("features",),
    }
    default_splits: ClassVar[dict[str, str]] = {"data": "train"}
    shows_names: ClassVar[bool] = True

    @model_validator(mode="after")
    def _has_a_rule(self) -> "FilterSpec":
        if not self.against and self.quality is None and self.near_duplicates is None:
            raise ValueError(
                "a filter without a rule removes nothing; give against, quality or near_duplicates"
            )
        return self

    @model_validator(mode="after")
    def _features_have_a_bound(self) -> "FilterSpec":
        if bool(self.features) != (self.min_cosine is not None):
            raise ValueError(
                "features and min_cosine belong together: the stages that have the features of "
                "data and of against, and how alike two of them may be"
            )
        if self.features and not self.against and self.near_duplicates is None:
            raise ValueError(
                "features are compared with those of against, or of data itself; give against or "
                "near_duplicates"
            )
        return self

    def needed_libraries(self) -> tuple[str, ...]:
        """With the library that compares features, where some are compared."""
        return (*self.libraries, *(("scikit-learn",) if self.features else ()))


class AppendSpec(CorpusSpec):
    """Add images to a shard set: new shards beside the old ones, which stay as they are.

    What stands in the set already, or was taken out of it, is rejected. Labels of the set's classes
    stay; new classes get the labels behind them. `image` has to be that of the set. The fields of
    `ingest` are meant for the new images alone. The order of training is a new one.
    """

    kind: Semantic[Literal["append"]] = "append"
    to: Input[str]
    """The shard set to add to, `NAME`."""

    revision: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = IngestSpec.libraries
    ports: ClassVar[dict[str, tuple[str, ...]]] = {"to": SHARD_SETS}
    whole_sets: ClassVar[tuple[str, ...]] = ("to",)

    def new_images(self) -> IngestSpec:
        """How the new images are prepared: as if they were a set of their own."""
        return IngestSpec(**{name: getattr(self, name) for name in CorpusSpec.model_fields})


class RemoveSpec(StageSpec):
    """Take named images out of a whole shard set, test splits included; nothing is rewritten."""

    kind: Semantic[Literal["remove"]] = "remove"
    data: Input[str]
    """The shard set, `NAME`."""
    uids: Semantic[tuple[str, ...]] = ()
    """Images by uid: 32 hex digits, the beginning of the sha256 of the source file."""
    sources: Semantic[tuple[str, ...]] = ()
    """Images by the source's name, as the rows have it; all images of that name go."""
    note: Semantic[str] = ""
    """Why, for the record: it stands beside every removed row."""
    allow_missing: Semantic[bool] = False
    """Whether an image that is not in the set is only counted; else it is an error."""

    revision: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("pyarrow",)
    ports: ClassVar[dict[str, tuple[str, ...]]] = {"data": SHARD_SETS}
    whole_sets: ClassVar[tuple[str, ...]] = ("data",)

    @model_validator(mode="after")
    def _names_images(self) -> "RemoveSpec":
        if not self.uids and not self.sources:
            raise ValueError("remove names no image; give uids or sources")
        for uid in self.uids:
            if not is_uid(uid):
                raise ValueError(f"{uid!r} is no uid; a uid has 32 digits, 0-9 and a-f")
        return self

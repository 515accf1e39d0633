"""What a user says of data: what is kept of a source, and how it is stored."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.sources import SourceSpec
from schemas.spec import Semantic, Spec
from schemas.stage import StageSpec


class HoldBackSpec(Spec):
    """A draw of classes by keyed hash of their names: held back upstream, used downstream."""

    num_classes: Semantic[int] = Field(gt=0)
    keep: Semantic[Literal["held_back", "others"]]
    """Which side of the draw this stage takes."""
    seed: Semantic[int] = Field(default=0, ge=0)


class SelectSpec(Spec):
    """Which classes and how many images of each are taken; duplicates go before counting."""

    classes: Semantic[tuple[str, ...] | None] = None
    """Names of the classes to keep, in the order of their new labels. None: all, sorted by name, or
    by value where all are whole numbers."""
    exclude_classes: Semantic[tuple[str, ...]] = ()
    """Names of classes to leave out."""
    hold_back: Semantic[HoldBackSpec | None] = None
    """Draws some of the classes, so that a recipe can split a tree whose names it does not know."""
    per_class: Semantic[dict[str, Annotated[int, Field(gt=0)]]] = {}
    """Split name -> images kept of each class, drawn by keyed hash. Splits not named keep all."""
    seed: Semantic[int] = Field(default=0, ge=0)
    """Seed of the draw of `per_class`."""

    @model_validator(mode="after")
    def _classes_are_named_once(self) -> "SelectSpec":
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError("classes names a class twice; name each class once")
        given = [self.classes is not None, bool(self.exclude_classes), self.hold_back is not None]
        if sum(given) > 1:
            raise ValueError("classes, exclude_classes and hold_back exclude each other; give one")
        return self


class SplitSpec(Spec):
    """A split by hash of the image bytes: copies of one image never fall into two splits."""

    test_ratio: Semantic[float] = Field(gt=0, lt=1)
    """Expected share of the images that becomes the split `test`; the rest is `train`."""
    seed: Semantic[int] = Field(default=0, ge=0)


class ImageSpec(Spec):
    """How an image is stored in a shard, and which images are refused."""

    max_side_px: Semantic[int] = Field(default=512, ge=1)
    """Longer images are scaled down (Lanczos) to this long side; none is ever enlarged."""
    encoding: Semantic[Literal["jpeg", "png", "raw"]] = "jpeg"
    """`jpeg` passes baseline RGB JPEG files within the limit through untouched; `raw` needs no
    decoding later, at 3 bytes a pixel: for images of about 32 px."""
    quality: Semantic[int] = Field(default=90, ge=1, le=100)
    """JPEG quality of what is encoded again."""
    max_pixels: Semantic[int] = Field(default=64_000_000, ge=1)
    """A header that promises more pixels is refused before decoding."""
    decode_seconds: Semantic[float] = Field(default=60.0, gt=0)
    """An image that takes longer by the clock to be brought into its stored form is refused. In the
    key, since it can decide what is kept; meant for decoders that hang, so leave it generous."""
    min_side_px: Semantic[int] = Field(default=1, ge=1)
    """Images with a shorter side are refused."""


class CorpusSpec(StageSpec):
    """What becomes of raw images: `ingest` builds a shard set of them, `append` adds to one."""

    source: Semantic[SourceSpec]
    select: Semantic[SelectSpec] = SelectSpec()
    split: Semantic[SplitSpec | None] = None
    """For sources without splits of their own, or with a single folder in `source.splits`, which is
    then divided. None: the source's splits, or one, `train`."""
    image: Semantic[ImageSpec] = ImageSpec()
    shuffle_seed: Semantic[int] = Field(default=0, ge=0)
    """Key of the order in which rows are stored; the experiment's seed is not used here."""
    near_duplicates: Semantic[bool] = True
    """Store perceptual hashes and thumbnails (32 px and up), for `filter` to find near copies."""
    max_rejected_ratio: Semantic[float] = Field(default=0.05, ge=0, le=1)
    """More refused files than this share stop the build; duplicates and label conflicts, which are
    found and rejected later, do not count."""
    shard_bytes: Semantic[int] = Field(default=96 * 2**20, ge=1, le=2**30)
    """About this many image bytes go into one shard."""

    @model_validator(mode="after")
    def _one_way_to_split(self) -> "CorpusSpec":
        if self.split is not None and len(getattr(self.source, "splits", {})) > 1:
            raise ValueError(
                "source.splits names several splits, and split divides one; give one of them"
            )
        return self


class IngestSpec(CorpusSpec):
    """Build a shard set from a raw corpus."""

    kind: Semantic[Literal["ingest"]] = "ingest"

    revision: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "pillow", "pyarrow", "simplejpeg", "torch")

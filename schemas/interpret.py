"""What a user says of pictures that explain a model, and the document with their numbers."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.spec import Execution, Input, Semantic, Spec
from schemas.stage import SHARD_SETS, StageSpec

INTERPRET_FILE = "interpret.json"
ARRAYS_FILE = "interpret.safetensors"
"""Beside the document: what is drawn as pictures, by the names that the document gives."""

Section = Literal[
    "filters", "positions", "attention", "looks", "feature_maps", "neighbourhood", "layers"
]
_Ratio = Annotated[float, Field(ge=0, le=1)]
_Rows = tuple[tuple[float, ...], ...]


class InterpretSpec(StageSpec):
    """Pictures of what a model has learned, over images drawn from a split."""

    kind: Semantic[Literal["interpret"]] = "interpret"
    data: Input[str]
    """The shard set, `NAME` (its split `test`) or `NAME@SPLIT`."""
    model: Input[str]
    sample_images: Semantic[int] = Field(default=500, ge=1, le=5000)
    """Images drawn for the map of features and for comparing layers; all, if there are fewer. Each
    costs one forward pass."""
    attention_images: Semantic[int] = Field(default=128, ge=1)
    """Of those, images over which attention is averaged; the paper takes 128."""
    shown_images: Semantic[int] = Field(default=8, ge=1, le=24)
    """Of those, images that are shown, of as many classes as there are."""
    perplexity: Semantic[float] = Field(default=30.0, gt=1)
    """Of t-SNE: about how many neighbours an image has; at most a third of the images."""
    batch_samples: Execution[int] = Field(default=16, gt=0)
    threads: Execution[int] = Field(default=1, ge=1)

    revision: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (
        "matplotlib",
        "numpy",
        "pillow",
        "pyarrow",
        "safetensors",
        "scikit-learn",
        "simplejpeg",
        "torch",
    )
    uses_seed: ClassVar[bool] = True
    ports: ClassVar[dict[str, tuple[str, ...]]] = {
        "data": SHARD_SETS,
        "model": ("pretrain", "finetune", "import"),
    }
    default_splits: ClassVar[dict[str, str]] = {"data": "test"}


class Absent(Spec):
    """A section that this model, or this sample, does not give."""

    section: Semantic[Section]
    reason: Semantic[str]


class Filters(Spec):
    """The kernels that see pixels first."""

    what: Semantic[Literal["components", "kernels"]]
    """`components`: principal components of a patch projection, by falling share; `kernels`: the
    kernels of a convolution, by falling norm."""
    count: Semantic[int] = Field(gt=0)
    """Kernels that the model has."""
    explained_ratios: Semantic[tuple[_Ratio, ...]]
    """Of the components, each one's share of the variance over all kernels; else empty."""
    array: Semantic[str]
    """[filters, height, width, 3], as they multiply red, green and blue."""


class Positions(Spec):
    """Cosine similarity of the positions of some patches with those of all."""

    grid: Semantic[tuple[int, int]]
    shown: Semantic[tuple[tuple[int, int], ...]]
    """Row and column of each patch whose map is drawn."""
    every_layer: Semantic[bool]
    """Whether each layer has its own positions; then those of the first are drawn."""
    array: Semantic[str]
    """[shown, rows, columns]."""


class Attention(Spec):
    """What the heads of each layer look at, on average over images and patches that ask.

    Leading tokens (class tokens, registers) ask nothing here. For distances they are left out and
    what goes to patches is counted as the whole; entropies and `leading_ratios` count them.
    """

    images: Semantic[int] = Field(gt=0)
    patch_px: Semantic[tuple[float, float]]
    """Height and width of what a patch covers."""
    layers: Semantic[tuple[str, ...]]
    distances_px: Semantic[_Rows]
    """[layers, heads]: attention-weighted mean distance from the centre of the patch that asks to
    those of all patches, in pixels of the image as the model sees it."""
    uniform_distances_px: Semantic[tuple[float, ...]]
    """[layers]: the same if every patch looked at all patches alike."""
    entropies: Semantic[_Rows]
    """[layers, heads]: of the attention of a patch, over the largest that is possible: 1 is
    uniform, 0 one token alone."""
    leading_ratios: Semantic[_Rows]
    """[layers, heads]: share of the attention of patches that goes to leading tokens."""


class Image(Spec):
    """An image that is shown."""

    uid: Semantic[str]
    """In hex."""
    label: Semantic[str]


class Looks(Spec):
    """Where the model looks on the shown images; each map adds up to 1 over its patches."""

    reads: Semantic[Literal["class token", "pooling query", "mean over patches"]]
    """Whose attention it is: what the model pools with, as far as that is known."""
    last: Semantic[str]
    """Array [images, rows, columns]: of the last attention, mean over its heads."""
    heads: Semantic[str]
    """Array [images, heads, rows, columns]: of the last attention, head by head."""
    rollout: Semantic[str]
    """Array [images, rows, columns]: followed through all blocks (Abnar & Zuidema 2020)."""


class FeatureMaps(Spec):
    """The first three principal components of patch features, over all shown images at once."""

    explained_ratios: Semantic[tuple[_Ratio, ...]]
    array: Semantic[str]
    """[images, rows, columns, 3], components before they are scaled to colours."""


class Neighbourhood(Spec):
    """A map of the features of the sample: points that are near were near among the features."""

    method: Semantic[Literal["t-SNE"]] = "t-SNE"
    images: Semantic[int] = Field(gt=0)
    perplexity: Semantic[float] = Field(gt=0)
    trustworthiness: Semantic[_Ratio]
    """1: all that is near on the map is near among the features (10 neighbours)."""
    same_class_ratio: Semantic[_Ratio]
    """Share of the 10 nearest images, by cosine of features, that have the class of the image."""
    same_class_chance: Semantic[_Ratio]
    """The same for images that are drawn instead."""
    array: Semantic[str]
    """[images, 2]."""
    labels: Semantic[tuple[int, ...]]
    uids: Semantic[tuple[str, ...]]


class LayerSimilarity(Spec):
    """How alike the images are arranged by any two layers."""

    images: Semantic[int] = Field(gt=0)
    layers: Semantic[tuple[str, ...]]
    cka: Semantic[_Rows]
    """[layers, layers]: linear CKA of means over patches, estimated without bias (Nguyen et al.
    2021): 1 is equal up to turning and scaling; near 0 is unrelated, and may be below."""


class InterpretReport(Spec):
    """`interpret.json`: every number behind the pictures, in it or in the file of arrays."""

    schema_version: Semantic[Literal[1]] = 1
    split: Semantic[str]
    image_px: Semantic[tuple[int, int]]
    class_names: Semantic[tuple[str, ...]]
    shown: Semantic[tuple[Image, ...]]
    filters: Semantic[Filters | None] = None
    positions: Semantic[Positions | None] = None
    attention: Semantic[Attention | None] = None
    looks: Semantic[Looks | None] = None
    feature_maps: Semantic[FeatureMaps | None] = None
    neighbourhood: Semantic[Neighbourhood | None] = None
    layers: Semantic[LayerSimilarity | None] = None
    absent: Semantic[tuple[Absent, ...]] = ()

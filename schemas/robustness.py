"""What a user says of a `robustness` stage: which tests, how strong, how often."""

from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from schemas.passes import PassStageSpec
from schemas.spec import Input, Semantic, Spec
from schemas.stage import SHARD_SETS

MODELS = ("pretrain", "finetune", "import")
"""Kinds whose artifact is a model."""
LARGEST_VALUE = 255
Cells = Annotated[int, Field(gt=0)]
Grid = Literal["own"] | tuple[Cells, Cells]
"""Rows and columns of cells; `own`: the grid of tokens or cells that each model works with."""
Percent = Annotated[int, Field(gt=0, lt=100)]
Seeds = Annotated[int, Field(gt=0)]
Order = Literal["random", "salient", "non_salient"]
Severity = Annotated[int, Field(ge=1, le=5)]
CommonCorruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
"""Of the fifteen of Hendrycks & Dietterich (2019); `frost` is absent."""
CorruptionName = Literal[CommonCorruption, "speckle_noise", "gaussian_blur", "saturate"]
COMMON: tuple[CorruptionName, ...] = get_args(CommonCorruption)
ABSENT_CORRUPTIONS = {
    "frost": "it lays photographs of ice over an image, which are not shipped",
    "spatter": "its drops need an edge detector and a distance transform, which nothing here has",
}
"""Published, and not here: name -> why."""


class PatchDropTest(Spec):
    """Cells of a grid are made black in pixel space, before an image is normalised."""

    type: Semantic[Literal["patch_drop"]] = "patch_drop"
    orders: Semantic[tuple[Order, ...]] = Field(
        default=("random", "salient", "non_salient"), min_length=1
    )
    """Which cells go first. `random`: an order for each image and seed; the first
    `percent * cells // 100` are dropped. `salient`: the fewest patches that hold `percent` of the
    guide's attention; `non_salient`: the most patches that hold no more than `percent` of it."""
    percents: Semantic[tuple[Percent, ...]] = (10, 20, 30, 40, 50, 60, 70, 80, 90)
    grids: Semantic[tuple[Grid, ...]] = ((14, 14), "own")
    """Of the random order; the others drop patches of the guide's own grid. An image is cut at
    `row * height // rows`, so cells differ by a pixel where the grid does not divide it."""
    offset_px: Semantic[int] = Field(default=0, ge=0)
    """How far the grid of the random order is moved down and to the right, around the edges."""
    seeds: Semantic[Seeds] = 3
    """Random orders for each image; the paper has 5."""
    head: Semantic[int | None] = Field(default=None, ge=0)
    """Of the guide's last block; null: the mean of all. The paper takes head 1 of DINO-S."""


class PatchShuffleTest(Spec):
    """Cells of a grid change places; identical for all models of one input size."""

    type: Semantic[Literal["patch_shuffle"]] = "patch_shuffle"
    grids: Semantic[tuple[tuple[Cells, Cells], ...]] = Field(
        default=((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (14, 14), (16, 16)), min_length=1
    )
    """Where a grid does not divide the image, cells differ by a pixel, and one that moves is
    stretched to its new place by repeating or leaving out a row or a column."""
    seeds: Semantic[Seeds] = 3


class LesionTest(Spec):
    """Numbers that go into a block are set to zero, each block by itself."""

    type: Semantic[Literal["lesion"]] = "lesion"
    percents: Semantic[tuple[Percent, ...]] = Field(default=(25, 50, 75), min_length=1)
    """Of all numbers that a block gets of an image (tokens x width), rounded down."""
    blocks: Semantic[tuple[Annotated[int, Field(gt=0)], ...] | None] = None
    """Blocks of a ViT, or stages of a CNN, from 1; null: all."""
    seeds: Semantic[Seeds] = 1
    """A draw for each image and block; thousands of numbers are drawn, so one says enough."""


class TokenCorrelationTest(Spec):
    """How alike the features of an image are to those of the image with cells dropped."""

    type: Semantic[Literal["token_correlation"]] = "token_correlation"
    percents: Semantic[tuple[Percent, ...]] = Field(default=(25, 50, 75), min_length=1)
    grid: Semantic[Grid] = (14, 14)
    seeds: Semantic[Seeds] = 3


Eps = Annotated[float, Field(gt=0, le=LARGEST_VALUE)]


class FgsmTest(Spec):
    """One step up the sign of the loss's gradient, as far as the bound allows."""

    type: Semantic[Literal["fgsm"]] = "fgsm"
    eps_per_255: Semantic[tuple[Eps, ...]] = Field(default=(0.5, 1.0, 2.0, 4.0, 8.0), min_length=1)
    """Largest change of any value, in 255ths of the range of a pixel."""


class PgdTest(Spec):
    """Steps up the sign of the gradient from a random start, each brought back to the bound."""

    type: Semantic[Literal["pgd"]] = "pgd"
    eps_per_255: Semantic[tuple[Eps, ...]] = Field(default=(0.5, 1.0, 2.0, 4.0), min_length=1)
    steps: Semantic[int] = Field(default=5, gt=0)
    step_ratio: Semantic[float] = Field(default=0.5, gt=0)
    """Length of a step over the bound; 2.5 / steps is usual."""
    seeds: Semantic[Seeds] = 1
    """Random starts."""


class _PatchAttack(Spec):
    side_percents: Semantic[tuple[Percent, ...]] = Field(default=(10, 20), min_length=1)
    """Side of the square patch over the shorter side of the image."""
    step_per_255: Semantic[float] = Field(default=16.0, gt=0)
    """Length of a step in 255ths of the range of a pixel; values are bound to the range alone."""
    seeds: Semantic[Seeds] = 1
    """Places and first noise."""


class ImagePatchTest(_PatchAttack):
    """A patch at a random place, made for each image against its model."""

    type: Semantic[Literal["image_patch"]] = "image_patch"
    steps: Semantic[int] = Field(default=10, gt=0)


class UniversalPatchTest(_PatchAttack):
    """One patch for all images, learned on the first of them and measured on the others."""

    type: Semantic[Literal["universal_patch"]] = "universal_patch"
    steps: Semantic[int] = Field(default=100, gt=0)
    training_images: Semantic[int] = Field(default=100, gt=0)
    """At most half of the images; none of them is measured."""
    training_batch: Semantic[int] = Field(default=32, gt=0)
    """Images that one step sees."""


class CorruptionTest(Spec):
    """Common corruptions (Hendrycks & Dietterich 2019) at severities 1 to 5."""

    type: Semantic[Literal["corruption"]] = "corruption"
    names: Semantic[tuple[CorruptionName, ...]] = Field(default=COMMON, min_length=1)
    severities: Semantic[tuple[Severity, ...]] = Field(default=(1, 2, 3, 4, 5), min_length=1)


AnyTest = Annotated[
    PatchDropTest
    | PatchShuffleTest
    | LesionTest
    | TokenCorrelationTest
    | FgsmTest
    | PgdTest
    | ImagePatchTest
    | UniversalPatchTest
    | CorruptionTest,
    Field(discriminator="type"),
]
ALL_TESTS: tuple[AnyTest, ...] = (
    PatchDropTest(),
    PatchShuffleTest(),
    LesionTest(),
    TokenCorrelationTest(),
    FgsmTest(),
    PgdTest(),
    ImagePatchTest(),
    UniversalPatchTest(),
    CorruptionTest(),
)


class RobustnessSpec(PassStageSpec):
    """Change the images of a split in many ways, and count what models still recognise.

    After "Intriguing Properties of Vision Transformers" (Naseer et al. 2021), and beyond.
    """

    kind: Semantic[Literal["robustness"]] = "robustness"
    data: Input[str]
    """The shard set, `NAME` (its split `test`) or `NAME@SPLIT`."""
    model: Input[str | tuple[str, ...]]
    """A model, or several: they stand in one plot."""
    guide: Input[str | None] = None
    """The ViT whose last attention says which patches are salient, for all models; null: the first
    of `model` that has a class token."""
    reference: Input[str | None] = None
    """Of `model`: the one whose errors under corruptions count 100 % in the others' mCE."""
    samples: Semantic[int | None] = Field(default=500, gt=0)
    """How many images: the first in storage order, which a keyed hash of the images decides; null:
    all of the split."""
    tests: Semantic[tuple[AnyTest, ...]] = Field(default=ALL_TESTS, min_length=1)

    revision: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (
        "matplotlib",
        "numpy",
        "pillow",
        "pyarrow",
        "scipy",
        "simplejpeg",
        "torch",
    )
    uses_seed: ClassVar[bool] = True
    ports: ClassVar[dict[str, tuple[str, ...]]] = {
        "data": SHARD_SETS,
        "model": MODELS,
        "guide": MODELS,
        "reference": MODELS,
    }
    default_splits: ClassVar[dict[str, str]] = {"data": "test"}
    shows_names: ClassVar[bool] = True

    @property
    def models(self) -> tuple[str, ...]:
        """The stages that are measured, in order."""
        return (self.model,) if isinstance(self.model, str) else self.model

    @model_validator(mode="after")
    def _models_are_told_apart(self) -> Self:
        models, types = self.models, [test.type for test in self.tests]
        if not models or len(set(models)) < len(models):
            raise ValueError(f"model names a stage, or several, each once; it is {list(models)}")
        if self.reference is not None and self.reference not in models:
            raise ValueError(
                f"reference {self.reference!r} is none of the models {', '.join(models)}; its "
                "errors are measured with theirs"
            )
        if len(set(types)) < len(types):
            raise ValueError(f"each type of test stands once; tests are {', '.join(types)}")
        return self

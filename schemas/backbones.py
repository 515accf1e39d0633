"""Models beside the ViT, and the unions of all: a ResNet of ours, and models of two libraries."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, field_validator, model_validator
from pydantic import Tag as Choice

from schemas.errors import SpecError
from schemas.model import (
    GROUPS,
    RGB,
    ModelChange,
    ModelSpec,
    Ratio,
    Spread,
    ViTSpec,
    squared,
)
from schemas.spec import Semantic, Spec

DEFAULT_TYPE = "vit"
"""What a model without `type` is."""
ResNetVariant = Literal["R26", "R50", "R101", "R152"]
RESNETS: dict[str, tuple[int, ...]] = {
    "R26": (2, 2, 2, 2),
    "R50": (3, 4, 6, 3),
    "R101": (3, 4, 23, 3),
    "R152": (3, 8, 36, 3),
}
"""Units of each stage; Kolesnikov et al. 2019 (BiT) and, for R26, Steiner et al. 2021."""
LIBRARIES = {"timm": "timm", "hf": "transformers"}
"""Type of a model -> the distribution that it needs."""
INSTALL = {
    "timm": "pip install 'vitrail[backbones]' && pip install --no-deps timm torchvision",
    "transformers": "pip install 'vitrail[backbones]'",
}
"""Distribution -> how it is installed; torchvision would ask for another torch."""
ROOT_WIDTH = 64
"""Channels of the root at width factor 1."""
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_Positive = Annotated[int, Field(gt=0)]
Side = int | tuple[int, int]

_Plain = bool | int | float | str | None
Option = _Plain | tuple[_Plain | tuple[_Plain, ...], ...]
"""What an option of a library's model can be: plain, or a list of such, or a list of lists."""


class _ResNetParts(Spec):
    """What a user may say of a ResNet besides its size, and what is resolved of it."""

    type: Semantic[Literal["resnet"]] = "resnet"
    group_norm_eps: Semantic[float] = Field(default=1e-5, gt=0)
    weight_std: Semantic[Literal["jax", "timm"]] = "timm"
    """What a kernel is divided by. `timm`: sqrt(var + eps), as in BiT; `jax`: std + eps."""
    weight_std_eps: Semantic[float] = Field(default=1e-10, gt=0)
    """The authors' code 1e-10, timm 1e-8."""
    pixel_mean: Semantic[RGB] = (0.5, 0.5, 0.5)
    pixel_std: Semantic[Spread] = (0.5, 0.5, 0.5)


class ResNetSpec(_ResNetParts):
    """A fully resolved ResNet of BiT's kind, head included.

    Bottleneck units that normalise and activate before each convolution (v2), GroupNorm of 32
    groups, standardised kernels, no bias; a last norm, the mean over all cells, a linear head.
    """

    blocks: Semantic[tuple[_Positive, ...]] = Field(min_length=1)
    """Units of each stage."""
    width: Semantic[int] = Field(gt=0)
    """Channels of the root; the units of stage s give 4 x width x 2^s."""
    image_px: Semantic[tuple[_Positive, _Positive]]
    """Height and width of the input; any size."""
    num_classes: Semantic[int] = Field(ge=0)
    """0: no head, features alone."""

    FREE_WITH_WEIGHTS: ClassVar[tuple[str, ...]] = ("image_px",)
    """What may be changed where the weights are given."""

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.width % GROUPS:
            raise ValueError(f"width {self.width} must be a multiple of {GROUPS}, the groups")
        return self

    @property
    def features(self) -> int:
        """Channels of the last stage, which are what the head sees."""
        return self.width << (len(self.blocks) + 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the cells that the last stage gives."""
        stride = 4 << (len(self.blocks) - 1)
        return -(-self.image_px[0] // stride), -(-self.image_px[1] // stride)


class ResNetModel(_ResNetParts):
    """A ResNet as a user writes it: a named size, or its units, and the image's side."""

    variant: Semantic[ResNetVariant | None] = None
    width_factor: Semantic[int | None] = Field(default=None, gt=0)
    """Of a named size: BiT's R50x3 is R50 with 3. Without it, 1."""
    blocks: Semantic[tuple[_Positive, ...] | None] = Field(default=None, min_length=1)
    """The alternative to a named size: units of each stage, such as [3, 4, 6, 3]."""
    width: Semantic[int | None] = Field(default=None, gt=0)
    """With `blocks`: channels of the root. Without it, 64."""
    image_px: Semantic[Side]
    """One side of a square, or height and width."""

    @model_validator(mode="after")
    def _is_one_size(self) -> Self:
        if (self.variant is None) == (self.blocks is None):
            raise ValueError(f"give either variant ({', '.join(RESNETS)}) or blocks")
        named, own = self.variant is not None, self.blocks is not None
        if (named and self.width is not None) or (own and self.width_factor is not None):
            raise ValueError("width_factor goes with variant, and width with blocks")
        self.resolved(num_classes=1)
        return self

    def resolved(self, *, num_classes: int) -> ResNetSpec:
        """The whole ResNet with a head of `num_classes`."""
        shared = {name: getattr(self, name) for name in _ResNetParts.model_fields}
        return ResNetSpec(
            **shared,
            blocks=self.blocks or RESNETS[str(self.variant)],
            width=self.width or ROOT_WIDTH * (self.width_factor or 1),
            image_px=_height_and_width(self.image_px),
            num_classes=num_classes,
        )


class _LibraryParts(Spec):
    """What a user may say of any library's model, and what is resolved of it."""

    drop_path: Semantic[Ratio] = 0.0
    """Share of samples that skip a residual branch in training, where the library has that."""
    options: Semantic[dict[str, Option]] = {}
    """The library's own settings by its own names."""
    pixel_mean: Semantic[RGB] = _IMAGENET_MEAN
    """Of red, green, blue, for pixels in [0, 1]; ImageNet's, as most models of both libraries."""
    pixel_std: Semantic[Spread] = _IMAGENET_STD


class _TimmParts(_LibraryParts):
    type: Semantic[Literal["timm"]] = "timm"
    name: Semantic[str]
    """As `timm.list_models` has it, such as swin_tiny_patch4_window7_224. Nothing is downloaded."""

    @field_validator("name")
    @classmethod
    def _is_no_place(cls, name: str) -> str:
        return _refuse_hub(name, "name", "timm.list_models")


class _HFParts(_LibraryParts):
    type: Semantic[Literal["hf"]] = "hf"
    model_type: Semantic[str]
    """As in `config.json`: convnext, swin, resnet, dinov2, ... Nothing is downloaded."""

    @field_validator("model_type")
    @classmethod
    def _is_no_place(cls, name: str) -> str:
        return _refuse_hub(name, "model_type", "config.json")


class _Resolved(Spec):
    """What a resolved model of a library adds."""

    image_px: Semantic[tuple[_Positive, _Positive]]
    """Height and width of the input."""
    num_classes: Semantic[int] = Field(ge=0)
    """0: no head, features alone."""

    FREE_WITH_WEIGHTS: ClassVar[tuple[str, ...]] = ("image_px", "drop_path")
    """What may be changed where the weights are given; the size, where no weight depends on it."""


class TimmSpec(_TimmParts, _Resolved):
    """A model of timm with a head of ours."""


class HFSpec(_HFParts, _Resolved):
    """A model of Hugging Face's `transformers` with a head of ours."""


class TimmModel(_TimmParts):
    """A model of timm as a user writes it (extra `backbones`)."""

    image_px: Semantic[Side]
    """One side of a square, or height and width."""

    def resolved(self, *, num_classes: int) -> TimmSpec:
        """The same with a head of `num_classes`."""
        size = _height_and_width(self.image_px)
        return TimmSpec(**dict(self) | {"image_px": size}, num_classes=num_classes)


class HFModel(_HFParts):
    """A model of `transformers` as a user writes it (extra `backbones`), with random weights.

    One with weights comes in by a stage of kind `import`.
    """

    image_px: Semantic[Side]
    """One side of a square, or height and width."""

    def resolved(self, *, num_classes: int) -> HFSpec:
        """The same with a head of `num_classes`."""
        size = _height_and_width(self.image_px)
        return HFSpec(**dict(self) | {"image_px": size}, num_classes=num_classes)


def type_of_model(value: Any) -> str:
    """The tag of a model, as plain data or as a spec."""
    found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return DEFAULT_TYPE if found is None else str(found)


AnyModel = Annotated[
    Annotated[ModelSpec, Choice("vit")]
    | Annotated[ResNetModel, Choice("resnet")]
    | Annotated[TimmModel, Choice("timm")]
    | Annotated[HFModel, Choice("hf")],
    Discriminator(type_of_model),
]
"""A whole model as a user writes it."""

AnyChange = Annotated[
    Annotated[ModelChange, Choice("vit")]
    | Annotated[ResNetModel, Choice("resnet")]
    | Annotated[TimmModel, Choice("timm")]
    | Annotated[HFModel, Choice("hf")],
    Discriminator(type_of_model),
]
"""A whole model, or what changes of one whose weights are given."""

BackboneSpec = Annotated[
    Annotated[ViTSpec, Choice("vit")]
    | Annotated[ResNetSpec, Choice("resnet")]
    | Annotated[TimmSpec, Choice("timm")]
    | Annotated[HFSpec, Choice("hf")],
    Discriminator(type_of_model),
]
"""A resolved model, as checkpoints and saved models carry it."""


def libraries_of(model: AnyChange) -> tuple[str, ...]:
    """Distributions whose version shapes a model of this type."""
    library = LIBRARIES.get(type_of_model(model))
    return () if library is None else (library,)


def carried_on(change: ModelChange, start: BackboneSpec, *, num_classes: int) -> BackboneSpec:
    """The model that goes on from the weights of `start`, with a new head and what is changed.

    Raises:
        SpecError: If a field is changed that a model of this type has not.
    """
    if isinstance(start, ViTSpec):
        return change.applied_to(start, num_classes=num_classes)
    given = change.given()
    unknown = sorted(given.keys() - set(start.FREE_WITH_WEIGHTS))
    if unknown:
        raise SpecError(
            f"model.{unknown[0]} is not a field of a model of type {start.type}; where its weights "
            f"are given, only {' and '.join(start.FREE_WITH_WEIGHTS)} may be changed"
        )
    return start.revise(**squared(given), num_classes=num_classes)


def _height_and_width(side: Side) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side


def _refuse_hub(name: str, field: str, source: str) -> str:
    if "/" in name or ":" in name or not name:
        raise ValueError(
            f"{name!r} names a place; nothing is downloaded: give {field} as in {source}, and "
            "bring weights by a stage of kind import"
        )
    return name

"""The Vision Transformer as a value: its parts, and every convention on which code bases differ."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from schemas.spec import Semantic, Spec

CHANNELS = 3
GROUPS = 32
"""Of every GroupNorm in a stem."""
Variant = Literal["Ti", "S", "B", "L", "H", "g", "G"]
Pool = Literal["cls", "gap", "map"]
Position = Literal["none", "learned_1d", "learned_2d", "relative", "sincos_2d"]
PositionAt = Literal["stem", "every_layer", "shared"]
PositionResize = Literal["jax", "timm", "hf", "dinov2"]
Gelu = Literal["erf", "tanh"]
NormAt = Literal["tokens", "pooled"]
Ratio = Annotated[float, Field(ge=0, lt=1)]
RGB = tuple[float, float, float]
_Positive = Annotated[float, Field(gt=0)]
Spread = tuple[_Positive, _Positive, _Positive]


class Size(NamedTuple):
    """Width, depth, heads and hidden width of the MLP."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int


VARIANTS: dict[str, Size] = {
    "Ti": Size(192, 12, 3, 768),
    "S": Size(384, 12, 6, 1536),
    "B": Size(768, 12, 12, 3072),
    "L": Size(1024, 24, 16, 4096),
    "H": Size(1280, 32, 16, 5120),
    "g": Size(1408, 40, 16, 6144),
    "G": Size(1664, 48, 16, 8192),
}
"""Dosovitskiy et al. 2020, Table 1; Ti and S as in the authors' code; Zhai et al. 2021, Table 2."""


class ResNetStemSpec(Spec):
    """Convolutions before the patches, as in a BiT ResNet: weight standardisation and GroupNorm.

    A root (7 x 7 and a maximum over 3 x 3, each with stride 2), then stages of bottleneck units.
    """

    blocks: Semantic[tuple[Annotated[int, Field(gt=0)], ...]]
    """Units of each stage: [3, 4, 9] for R50+B/16, [2, 2, 2, 2] for R26, [3, 4, 6, 3] for R50+L/32;
    [] is the root alone, as in R+Ti/16."""
    width: Semantic[int] = Field(default=64, gt=0)
    """Channels of the root; the units of stage s give 4 x width x 2^s."""
    group_norm_eps: Semantic[float] = Field(default=1e-6, gt=0)
    """The authors' code 1e-6, timm 1e-5."""
    weight_std: Semantic[Literal["jax", "timm"]] = "jax"
    """What a kernel is divided by: the authors' code std + eps, timm sqrt(var + eps)."""
    weight_std_eps: Semantic[float] = Field(default=1e-5, gt=0)
    """The authors' code 1e-5, timm 1e-8."""

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.width % GROUPS:
            raise ValueError(f"stem.width {self.width} must be a multiple of {GROUPS}, the groups")
        return self

    @property
    def stride(self) -> int:
        """Pixels that one cell of the stem's grid stands for, along each side."""
        return 4 << max(0, len(self.blocks) - 1)

    @property
    def channels(self) -> int:
        """Of the stem's grid."""
        return self.width * 2 ** (len(self.blocks) + 1) if self.blocks else self.width


class ViTSpec(Spec):
    """A fully resolved ViT, head included; what a checkpoint and a saved model carry."""

    type: Semantic[Literal["vit"]] = "vit"
    width: Semantic[int] = Field(gt=0)
    depth: Semantic[int] = Field(gt=0)
    num_heads: Semantic[int] = Field(gt=0)
    mlp_dim: Semantic[int] = Field(gt=0)
    patch_px: Semantic[int] = Field(gt=0)
    """Side of a patch in pixels of the image; with a stem, all that one token covers."""
    image_px: Semantic[tuple[int, int]]
    """Height and width of the input; each a multiple of `patch_px`."""
    num_classes: Semantic[int] = Field(ge=0)
    """0: no head, features alone."""
    stem: Semantic[ResNetStemSpec | None] = None
    """A hybrid: patches are cut from a ResNet's feature grid."""
    pool: Semantic[Pool] = "cls"
    """`cls`: the class token; `gap`: mean of patch tokens; `map`: attention with a learned query.
    The last two have no class token."""
    position: Semantic[Position] = "learned_1d"
    """`learned_2d`: a table for columns and one for rows, half the width each; `relative`: keys for
    the distance between two patches in reading order, in every attention; `sincos_2d`: fixed."""
    position_at: Semantic[PositionAt] = "stem"
    """Added before the first block; at every block's input, each with its own table; or one table
    at every block's input. Table 8 of the paper."""
    class_position: Semantic[bool] = True
    """With `cls` pooling: the class token has a position too, row 0 of the table."""
    position_resize: Semantic[PositionResize] = "timm"
    """How positions are interpolated when the grid changes. `jax`: linear, outermost patches stay;
    `timm`: bicubic, antialiased; `hf`: bicubic; `dinov2`: as `hf` on a grid larger by 0.1."""
    registers: Semantic[int] = Field(default=0, ge=0)
    """Extra tokens after the class token, without positions (Darcet et al. 2023)."""
    distillation_token: Semantic[bool] = False
    """A second class token with a head of its own (DeiT); logits are the mean of both heads."""
    layer_scale: Semantic[float | None] = Field(default=None, gt=0)
    """Initial factor of each residual branch, learned for each channel; null: no factors."""
    qk_norm: Semantic[bool] = False
    """LayerNorm over the queries and the keys of each head."""
    drop_path: Semantic[Ratio] = 0.0
    """Share of samples that skip a branch of the last block; linear in depth, from 0."""
    dropout: Semantic[Ratio] = 0.0
    """After adding positions and after every dense layer but query, key, value and the head."""
    patch_dropout: Semantic[Ratio] = 0.0
    """Share of patches left out in training."""
    axial: Semantic[bool] = False
    """Each block attends along rows, then along columns, each with an MLP (paper, D.6)."""
    gelu: Semantic[Gelu] = "erf"
    """timm and Hugging Face use `erf`, the authors' JAX code `tanh`."""
    norm_at: Semantic[NormAt] = "tokens"
    """Where the last LayerNorm is: on all tokens before pooling, or on what is pooled."""
    hidden_head: Semantic[bool] = False
    """A tanh layer before the head, as in the paper's pre-training; fine-tuning drops it."""
    layer_norm_eps: Semantic[float] = Field(default=1e-6, gt=0)
    pixel_mean: Semantic[RGB] = (0.5, 0.5, 0.5)
    """Of red, green, blue, for pixels in [0, 1]; the paper's code maps to [-1, 1]."""
    pixel_std: Semantic[Spread] = (0.5, 0.5, 0.5)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide width {self.width}")
        for side in self.image_px:
            if side <= 0 or side % self.patch_px:
                raise ValueError(
                    f"image_px {list(self.image_px)} must be multiples of patch_px {self.patch_px}"
                )
        if self.stem is not None and self.patch_px % self.stem.stride:
            raise ValueError(
                f"patch_px {self.patch_px} must be a multiple of {self.stem.stride}, the stride of "
                f"a stem with blocks {list(self.stem.blocks)}"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for sentence in (*_position_conflicts(self), *_token_conflicts(self)):
            raise ValueError(sentence)
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_px[0] // self.patch_px, self.image_px[1] // self.patch_px

    @property
    def patches(self) -> int:
        """Of one image."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_side(self) -> int:
        """Side of a patch where it is cut: in pixels, or in cells of the stem's grid."""
        return self.patch_px // (self.stem.stride if self.stem else 1)

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: channels x side x side."""
        return (self.stem.channels if self.stem else CHANNELS) * self.patch_side**2

    @property
    def leading(self) -> int:
        """Tokens before the patches: class token, distillation token, registers."""
        return int(self.pool == "cls") + int(self.distillation_token) + self.registers

    @property
    def slots(self) -> int:
        """Leading tokens that have a position: class token first, then distillation token."""
        return int(self.pool == "cls" and self.class_position) + int(self.distillation_token)

    @property
    def kept_patches(self) -> int:
        """How many patches `patch_dropout` leaves: rounded down, at least one."""
        return max(1, int(self.patches * (1.0 - self.patch_dropout)))

    @property
    def tables(self) -> int:
        """Tables of positions."""
        return self.depth if self.position_at == "every_layer" else 1


def _position_conflicts(spec: ViTSpec) -> Iterator[str]:
    """What does not go with these positions, one sentence each."""
    if spec.position_at != "stem" and spec.position in ("none", "relative"):
        yield f"position_at {spec.position_at} needs a table of positions, not {spec.position}"
    if spec.position_at == "every_layer" and spec.position == "sincos_2d":
        yield "position sincos_2d is the same at every layer; give position_at stem or shared"
    if spec.position == "learned_2d" and spec.width % 2:
        yield f"position learned_2d needs an even width, not {spec.width}"
    if spec.position == "sincos_2d" and (spec.width % 4 or spec.width < 8):
        yield f"position sincos_2d needs a width of 8 or more that 4 divides, not {spec.width}"


def _token_conflicts(spec: ViTSpec) -> Iterator[str]:
    """What does not go with these tokens, one sentence each."""
    if spec.pool != "cls" and (spec.distillation_token or not spec.class_position):
        part = "distillation_token" if spec.distillation_token else "class_position"
        yield f"{part} is about the class token, which pool {spec.pool} has not"
    if spec.distillation_token and (spec.hidden_head or spec.norm_at == "pooled"):
        yield "distillation_token goes with norm_at tokens and without hidden_head"
    if spec.axial and spec.leading:
        yield "axial needs pool gap or map and no registers: every token has a row and a column"
    if spec.patch_dropout and (spec.axial or spec.position == "relative"):
        part = "axial blocks" if spec.axial else "relative positions"
        yield f"patch_dropout cannot go with {part}, which need the whole grid"


class ModelChange(Spec):
    """Any part of a ViT; for a fine-tuning that starts from another stage's weights."""

    type: Semantic[Literal["vit"] | None] = None
    variant: Semantic[Variant | None] = None
    """A named size; the four fields below are its alternative."""
    width: Semantic[int | None] = None
    depth: Semantic[int | None] = None
    num_heads: Semantic[int | None] = None
    mlp_dim: Semantic[int | None] = None
    patch_px: Semantic[int | None] = None
    image_px: Semantic[int | tuple[int, int] | None] = None
    """One side of a square, or height and width."""
    stem: Semantic[ResNetStemSpec | None] = None
    pool: Semantic[Pool | None] = None
    position: Semantic[Position | None] = None
    position_at: Semantic[PositionAt | None] = None
    class_position: Semantic[bool | None] = None
    position_resize: Semantic[PositionResize | None] = None
    registers: Semantic[int | None] = None
    distillation_token: Semantic[bool | None] = None
    layer_scale: Semantic[float | None] = None
    qk_norm: Semantic[bool | None] = None
    drop_path: Semantic[Ratio | None] = None
    dropout: Semantic[Ratio | None] = None
    patch_dropout: Semantic[Ratio | None] = None
    axial: Semantic[bool | None] = None
    gelu: Semantic[Gelu | None] = None
    norm_at: Semantic[NormAt | None] = None
    hidden_head: Semantic[bool | None] = None
    layer_norm_eps: Semantic[float | None] = None
    pixel_mean: Semantic[RGB | None] = None
    pixel_std: Semantic[Spread | None] = None

    FREE_WITH_WEIGHTS: ClassVar[tuple[str, ...]] = (
        "image_px",
        "position_resize",
        "drop_path",
        "dropout",
        "patch_dropout",
    )
    """What may be changed where the weights are given."""

    def given(self) -> dict[str, Any]:
        """The fields that the user set."""
        return {name: value for name, value in dict(self).items() if value is not None}

    def applied_to(self, start: ViTSpec, *, num_classes: int) -> ViTSpec:
        """The model that goes on from the weights of `start`, with a plain new head."""
        return start.revise(**squared(self.given()), num_classes=num_classes, hidden_head=False)


class ModelSpec(ModelChange):
    """A whole ViT as a user writes it: a named size or four numbers, patch and image side."""

    type: Semantic[Literal["vit"]] = "vit"

    SIZE_FIELDS: ClassVar[tuple[str, ...]] = ("width", "depth", "num_heads", "mlp_dim")

    @model_validator(mode="after")
    def _is_whole(self) -> "ModelSpec":
        given = self.given()
        sizes = [name for name in self.SIZE_FIELDS if name in given]
        if ("variant" in given) == bool(sizes) or (sizes and len(sizes) < len(self.SIZE_FIELDS)):
            raise ValueError(
                f"give either variant ({', '.join(VARIANTS)}) "
                f"or all of {', '.join(self.SIZE_FIELDS)}"
            )
        missing = [name for name in ("patch_px", "image_px") if name not in given]
        if missing:
            raise ValueError(f"{' and '.join(missing)} must be given for a model from scratch")
        self.to_vit(num_classes=1)
        return self

    def resolved(self, *, num_classes: int) -> ViTSpec:
        """As models of any type have it."""
        return self.to_vit(num_classes=num_classes)

    def to_vit(self, *, num_classes: int) -> ViTSpec:
        """The resolved ViT with a head of `num_classes`."""
        given = squared(self.given())
        variant = given.pop("variant", None)
        sizes = VARIANTS[variant]._asdict() if variant else {}
        return ViTSpec(**sizes, **given, num_classes=num_classes)


def squared(given: dict[str, Any]) -> dict[str, Any]:
    """`image_px` as height and width."""
    side = given.get("image_px")
    return given | {"image_px": (side, side)} if isinstance(side, int) else given

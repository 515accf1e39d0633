"""The Vision Transformer as a value: sizes, and every convention on which code bases differ."""

from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from schemas.spec import Semantic, Spec

Variant = Literal["Ti", "S", "B", "L", "H"]


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
}
"""Dosovitskiy et al. 2020, Table 1; Ti and S as in the authors' code."""


class ViTSpec(Spec):
    """A fully resolved ViT, head included; what a checkpoint and a saved model carry."""

    width: Semantic[int] = Field(gt=0)
    depth: Semantic[int] = Field(gt=0)
    num_heads: Semantic[int] = Field(gt=0)
    mlp_dim: Semantic[int] = Field(gt=0)
    patch_px: Semantic[int] = Field(gt=0)
    image_px: Semantic[tuple[int, int]]
    """Height and width of the input; each a multiple of `patch_px`."""
    num_classes: Semantic[int] = Field(gt=0)
    pool: Semantic[Literal["cls", "gap"]] = "cls"
    """`cls`: the class token after the last norm; `gap`: mean of patch tokens, no class token."""
    position: Semantic[Literal["learned_1d"]] = "learned_1d"
    position_resize: Semantic[Literal["bilinear", "bicubic_antialias"]] = "bicubic_antialias"
    """How positions are interpolated in 2-D when the grid changes; the second is timm's way."""
    gelu: Semantic[Literal["erf", "tanh"]] = "erf"
    """timm and Hugging Face use `erf`, the authors' JAX code `tanh`."""
    layer_norm_eps: Semantic[float] = Field(default=1e-6, gt=0)
    pixel_mean: Semantic[float] = 0.5
    """Of all channels, for pixels in [0, 1]; the paper's code maps to [-1, 1]."""
    pixel_std: Semantic[float] = Field(default=0.5, gt=0)

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ViTSpec":
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide width {self.width}")
        for side in self.image_px:
            if side <= 0 or side % self.patch_px:
                raise ValueError(
                    f"image_px {list(self.image_px)} must be multiples of patch_px {self.patch_px}"
                )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_px[0] // self.patch_px, self.image_px[1] // self.patch_px


class ModelChange(Spec):
    """Any part of a model; for a fine-tuning that starts from another stage's weights."""

    variant: Semantic[Variant | None] = None
    """A named size; the four fields below are its alternative."""
    width: Semantic[int | None] = None
    depth: Semantic[int | None] = None
    num_heads: Semantic[int | None] = None
    mlp_dim: Semantic[int | None] = None
    patch_px: Semantic[int | None] = None
    image_px: Semantic[int | tuple[int, int] | None] = None
    """One side of a square, or height and width."""
    pool: Semantic[Literal["cls", "gap"] | None] = None
    position_resize: Semantic[Literal["bilinear", "bicubic_antialias"] | None] = None
    gelu: Semantic[Literal["erf", "tanh"] | None] = None
    layer_norm_eps: Semantic[float | None] = None

    def given(self) -> dict[str, Any]:
        """The fields that the user set."""
        return {name: value for name, value in dict(self).items() if value is not None}


class ModelSpec(ModelChange):
    """A whole model as a user writes it: a named size or four numbers, patch and image side."""

    SIZE_FIELDS: ClassVar[tuple[str, ...]] = ("width", "depth", "num_heads", "mlp_dim")

    @model_validator(mode="after")
    def _is_whole(self) -> "ModelSpec":
        given = self.given()
        sizes = [name for name in self.SIZE_FIELDS if name in given]
        if ("variant" in given) == bool(sizes) or (sizes and len(sizes) < len(self.SIZE_FIELDS)):
            raise ValueError(
                "give either variant (Ti, S, B, L, H) or all of width, depth, num_heads, mlp_dim"
            )
        missing = [name for name in ("patch_px", "image_px") if name not in given]
        if missing:
            raise ValueError(f"{' and '.join(missing)} must be given for a model from scratch")
        self.to_vit(num_classes=1)
        return self

    def to_vit(self, *, num_classes: int) -> ViTSpec:
        """The resolved ViT with a head of `num_classes`."""
        given = self.given()
        variant = given.pop("variant", None)
        sizes = VARIANTS[variant]._asdict() if variant else {}
        image_px = given.pop("image_px")
        square = (image_px, image_px) if isinstance(image_px, int) else image_px
        return ViTSpec(**sizes, **given, image_px=square, num_classes=num_classes)

"""The JSON documents beside foreign weights, as far as they are read.

They come from strangers: what is of another type than it should be is told by its name.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import SpecError

Count = Annotated[int, Field(gt=0)]
Sides = Count | tuple[Count, Count]
"""One side of a square, or height and width."""
RGB = tuple[float, float, float]
D = TypeVar("D", bound=BaseModel)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class HfConfig(_Document):
    """`config.json` of `transformers`; defaults are those of its classes."""

    hidden_size: Count = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    intermediate_size: Count | None = None
    mlp_ratio: float = Field(default=4, gt=0)
    hidden_act: str = "gelu"
    layer_norm_eps: float = Field(default=1e-12, gt=0)
    layerscale_value: float = Field(default=1.0, gt=0)
    use_swiglu_ffn: bool = False
    image_size: Sides = 224
    patch_size: Sides = 16
    num_channels: int = 3
    qkv_bias: bool = True
    id2label: dict[int, str] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of their numbers."""
        return tuple(self.id2label[key] for key in sorted(self.id2label))


class HfPreprocessor(_Document):
    """`preprocessor_config.json` of `transformers`."""

    image_mean: RGB | None = None
    image_std: RGB | None = None


class TimmArguments(_Document):
    """`model_args` of timm's `config.json`."""

    global_pool: str | None = None
    act_layer: str | None = None
    img_size: Sides | None = None
    num_heads: Count | None = None
    init_values: float | None = Field(default=None, gt=0)
    pool_include_prefix: bool = False


class TimmData(_Document):
    """`pretrained_cfg` of timm's `config.json`."""

    mean: RGB | None = None
    std: RGB | None = None
    input_size: tuple[Count, Count, Count] | None = None
    label_names: tuple[str, ...] | None = None


class TimmConfig(_Document):
    """`config.json` of timm's hub folders."""

    global_pool: str | None = None
    model_args: TimmArguments = TimmArguments()
    pretrained_cfg: TimmData = TimmData()


def read_document(kind: type[D], data: Mapping[str, Any], name: str) -> D:
    """The document that `data` is.

    Raises:
        SpecError: If a field is of another type or out of range; `name` is what it calls the file.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"{name}: {place}: {first['msg']}") from None


def sides(value: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width."""
    return (value, value) if isinstance(value, int) else value

"""What a user may say of a file of weights from elsewhere, and what is known of one once read."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from schemas.backbones import LIBRARIES
from schemas.model import RGB, Gelu, Pool, PositionResize, Spread
from schemas.sources import Uri
from schemas.spec import Execution, Semantic, Spec
from schemas.stage import StageSpec

ForeignLayout = Literal["google", "timm", "hf", "timm_backbone", "hf_backbone"]
"""Layouts that can be read: the ViT authors' `.npz`, timm state dicts, Hugging Face folders; and
folders of both whose model is no ViT of ours, but one of type `timm` or `hf`."""
Layout = Literal["google", "timm", "hf", "timm_backbone", "hf_backbone", "safetensors"]
"""Layouts of models that are read; `safetensors` is one file with our own names."""
ExportLayout = Literal["google", "timm", "hf", "safetensors", "onnx"]


class Assumptions(Spec):
    """What a file leaves open, said by the user; what is not given is taken from the layout.

    A value at odds with what the file does say is refused.
    """

    num_heads: Semantic[int | None] = Field(default=None, gt=0)
    image_px: Semantic[int | tuple[int, int] | None] = None
    """Input size that the positions belong to: one side of a square, or height and width."""
    pool: Semantic[Pool | None] = None
    gelu: Semantic[Gelu | None] = None
    layer_norm_eps: Semantic[float | None] = Field(default=None, gt=0)
    pixel_mean: Semantic[RGB | None] = None
    pixel_std: Semantic[Spread | None] = None
    position_resize: Semantic[PositionResize | None] = None

    def given(self) -> dict[str, Any]:
        """The fields that the user set, sides as height and width."""
        found = {name: value for name, value in dict(self).items() if value is not None}
        side = found.get("image_px")
        return found | ({"image_px": (side, side)} if isinstance(side, int) else {})


class WeightsSource(Spec):
    """A file or folder of weights."""

    layout: Semantic[ForeignLayout]
    uri: Execution[Uri]
    """On a disk that every worker can read. Not keyed: the fingerprint of what lies there is."""

    @field_validator("uri")
    @classmethod
    def _is_on_a_disk(cls, uri: str) -> str:
        if "://" in uri:
            raise ValueError(f"{uri} is no path; fetch the weights to a disk and name them there")
        return uri


class ImportSpec(StageSpec):
    """Make a model of weights from elsewhere: `init: NAME` then starts from them."""

    kind: Semantic[Literal["import"]] = "import"
    source: Semantic[WeightsSource]
    assume: Semantic[Assumptions] = Assumptions()
    """What the file leaves open."""

    revision: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "safetensors", "torch")

    def needed_libraries(self) -> tuple[str, ...]:
        """With the library that builds the model, for the layouts that ask for it."""
        library = LIBRARIES.get(self.source.layout.removesuffix("_backbone"))
        is_needed = library is not None and self.source.layout.endswith("_backbone")
        return (*self.libraries, str(library)) if is_needed else self.libraries

"""Models of timm and of `transformers` as backbones: the only importer of both.

Their parameters keep their names below `body.`; the head is ours. Weights are random, by the
library's own initialiser; nothing is ever fetched. Whatever a library refuses becomes a sentence.

B batch, C channels, H W pixels, R Q rows and columns of a grid, N T tokens, D features.
"""

import difflib
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipeline.model.backbone import Backbone, refuse_noise
from pipeline.model.layers import number_layers
from pipeline.model.noise import ForwardNoise
from schemas.backbones import INSTALL, HFSpec, Option, TimmSpec
from schemas.errors import SpecError

T = TypeVar("T")

_OURS_OF_TIMM = {
    "num_classes": "the data",
    "img_size": "image_px",
    "drop_path_rate": "drop_path",
    **dict.fromkeys(("in_chans", "features_only", "scriptable", "exportable", "no_jit"), "nothing"),
    **dict.fromkeys(("pretrained", "pretrained_cfg", "pretrained_cfg_overlay"), "init"),
    **dict.fromkeys(("checkpoint_path", "cache_dir"), "init"),
}
"""Settings of timm that are not options, and what says them here."""
OURS_OF_HF = {
    "num_labels": "the data",
    "id2label": "the data",
    "label2id": "the data",
    "image_size": "image_px",
    "drop_path_rate": "drop_path",
    "num_channels": "nothing",
    "dtype": "precision",
    "return_dict": "nothing",
}
_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_CLASS_TOKENS = 1
_HF_BLOCK = re.compile(r"\.(?:layers?|blocks?|stages?|h)\.\d+\.(?:(?:layers?|blocks?)\.\d+\.)?")
"""A block, or one of a stage."""


def build_foreign(spec: TimmSpec | HFSpec, *, seed: int) -> "ForeignBackbone":
    """A library's model on the CPU, fixed by (spec, seed) and the library's version; head zero.

    Raises:
        SpecError: If the library is not installed, has no such model, or refuses an option or the
            input size.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the libraries' own insides
        torch.manual_seed(seed)  # their initialisers draw from the global generator
        return TimmBackbone(spec) if isinstance(spec, TimmSpec) else HFBackbone(spec)


class ForeignBackbone(Backbone):
    """A library's model behind our head."""

    spec: TimmSpec | HFSpec

    def __init__(self, spec: TimmSpec | HFSpec, body: nn.Module) -> None:
        """Show `body` one black image: that tells what it gives, and whether it takes the size."""
        super().__init__()
        self.spec = spec
        self.body = body
        self._recomputes = False
        features = self._measure()
        self.head = nn.Linear(features, spec.num_classes) if spec.num_classes else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.train()

    def _measure(self) -> int:
        """Width of the features."""
        self.eval()
        black = torch.zeros(1, 3, *self.spec.image_px)
        with torch.no_grad():
            features = stated(self.spec, lambda: self.forward_features(black))
        if features.ndim != 2:
            raise SpecError(
                f"{in_words(self.spec)} gives features of shape {list(features.shape)}, not one "
                "vector for each image"
            )
        return features.shape[1]

    def forward_features(self, pixels_BCHW: Tensor, noise: ForwardNoise | None = None) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> what the library's own head would see, [B, D].

        Raises:
            ValueError: If noise is given: what is left to chance in here, the library draws.
        """
        refuse_noise(noise)
        return self._pooled(pixels_BCHW)

    def _pooled(self, pixels_BCHW: Tensor) -> Tensor:
        raise NotImplementedError

    def places(self, tokens: int) -> tuple[int, int, int]:
        """Tokens before the patches, and rows and columns of the patches, of so many tokens.

        Raises:
            ValueError: If the library does not say where its tokens belong.
        """
        raise NotImplementedError

    @property
    def recomputes(self) -> bool:
        """Whether blocks keep nothing for the backward pass and run twice instead."""
        return self._recomputes

    @recomputes.setter
    def recomputes(self, value: bool) -> None:
        if value != self._recomputes:
            self._recompute(value)
            self._recomputes = value

    def _recompute(self, value: bool) -> None:  # noqa: FBT001 - a setting
        raise NotImplementedError

    def _no_layers(self) -> SpecError:
        return SpecError(
            f"it is not known what the layers of {in_words(self.spec)} are; leave "
            "optim.layer_decay out"
        )


class TimmBackbone(ForeignBackbone):
    """A model of timm without its head."""

    def __init__(self, spec: TimmSpec) -> None:
        """The library's initial weights."""
        super().__init__(spec, stated(spec, lambda: timm_model(spec, num_classes=0)))

    def _pooled(self, pixels_BCHW: Tensor) -> Tensor:
        features_BD: Tensor = self.body(pixels_BCHW)
        return features_BD

    def layers(self) -> dict[str, int]:
        """Parameter -> number of its layer: timm's own, and one above them for our head.

        The last norm of a ViT then belongs to the last block.

        Raises:
            SpecError: If timm does not say what the layers of this model are.
        """
        body: Any = self.body
        library = timm()
        try:
            matcher = body.group_matcher(coarse=False)
            found = library.models.group_parameters(body, matcher, reverse=True)
        except (AttributeError, NotImplementedError, AssertionError) as error:
            raise self._no_layers() from error
        top = max(found.values()) + 1
        names = (name for name, _ in self.named_parameters())
        return {name: found.get(name.removeprefix("body."), top) for name in names}

    def forward_grid(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> features in their places, [B, R, Q, D].

        Raises:
            ValueError: If timm does not say where a model's tokens belong.
        """
        body: Any = self.body
        found: Tensor = body.forward_features(pixels_BCHW)
        if found.ndim == 4:
            return found if getattr(body, "output_fmt", None) == "NHWC" else found.movedim(1, 3)
        leading, rows, columns = self.places(found.shape[1])
        return found[:, leading:].reshape(len(found), rows, columns, -1)

    def places(self, tokens: int) -> tuple[int, int, int]:  # noqa: ARG002 - timm says it itself
        """As of any library's model; whatever the number of tokens."""
        body: Any = self.body
        grid = getattr(getattr(body, "patch_embed", None), "grid_size", None)
        if grid is None:
            raise ValueError(f"timm does not say where the tokens of {in_words(self.spec)} belong")
        return getattr(body, "num_prefix_tokens", 0), *grid

    def _recompute(self, value: bool) -> None:  # noqa: FBT001 - a setting
        body: Any = self.body
        with _recomputation(self.spec):
            body.set_grad_checkpointing(value)


class HFBackbone(ForeignBackbone):
    """A model of `transformers` without its head."""

    def __init__(self, spec: HFSpec) -> None:
        """The library's initial weights."""
        library = transformers()
        config = hf_config(spec)
        super().__init__(spec, stated(spec, lambda: library.AutoModel.from_config(config)))

    def _pooled(self, pixels_BCHW: Tensor) -> Tensor:
        """What the library pools; the mean over cells or tokens where it pools nothing."""
        seen = self.body(pixel_values=pixels_BCHW)
        pooled: Tensor | None = getattr(seen, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        last: Tensor = seen.last_hidden_state
        return last.mean(dim=(2, 3)) if last.ndim == 4 else last.mean(dim=1)

    def layers(self) -> dict[str, int]:
        """Parameter -> number of its layer, by the names that `transformers` gives to blocks.

        Raises:
            SpecError: If no name is one of a block.
        """
        found = number_layers((name for name, _ in self.named_parameters()), _HF_BLOCK)
        if max(found.values()) == 1:
            raise self._no_layers()
        return found

    def forward_grid(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> features in their places, [B, R, Q, D].

        Raises:
            ValueError: If the configuration does not say where a model's tokens belong.
        """
        body: Any = self.body
        last: Tensor = body(pixel_values=pixels_BCHW).last_hidden_state
        if last.ndim == 4:
            return last.movedim(1, 3)
        leading, rows, columns = self.places(last.shape[1])
        return last[:, leading:].reshape(len(last), rows, columns, -1)

    def places(self, tokens: int) -> tuple[int, int, int]:
        """As of any library's model; of a pyramid, the patches merged by its stages."""
        body: Any = self.body
        patch = getattr(body.config, "patch_size", None)
        merged = len(getattr(body.config, "depths", [0])) - 1
        registers = getattr(body.config, "num_register_tokens", 0)
        if isinstance(patch, int):
            height, width = self.spec.image_px
            rows, columns = height // (patch << merged), width // (patch << merged)
            leading = tokens - rows * columns
            if leading in (0, _CLASS_TOKENS + registers):
                return leading, rows, columns
        raise ValueError(f"it is not known where the tokens of {in_words(self.spec)} belong")

    def _recompute(self, value: bool) -> None:  # noqa: FBT001 - a setting
        body: Any = self.body
        with _recomputation(self.spec):
            if value:
                body.activation_checkpointing_enable({"use_reentrant": False})
            else:
                body.activation_checkpointing_disable()


def in_words(spec: TimmSpec | HFSpec) -> str:
    """The model as a person would call it."""
    if isinstance(spec, TimmSpec):
        return f"timm's {spec.name}"
    return f"{spec.model_type} of transformers"


def timm() -> Any:
    """The library.

    Raises:
        SpecError: If it is not installed.
    """
    return _imported("timm")


def transformers() -> Any:
    """The library.

    Raises:
        SpecError: If it is not installed.
    """
    return _imported("transformers")


def _imported(name: str) -> Any:
    try:
        _mend_torchvision()
        if name == "timm":
            import timm as library
        else:
            import transformers as library
    except ImportError as error:
        raise SpecError(
            f"the model needs the library {name}, which cannot be imported here ({error})",
            hint=INSTALL[name],
        ) from error
    return library


def _mend_torchvision() -> None:
    """Both libraries import torchvision, which does not start on torch without its operators."""
    if find_spec("torchvision") is None:
        return  # then timm says that it is missing, and transformers does without
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                torch.library.define(f"torchvision::{operator}", _BOXES)


def timm_model(spec: TimmSpec, *, num_classes: int) -> nn.Module:
    """The library's own with that many classes; told the input size where the library fixes it."""
    library = timm()
    if not library.is_model(spec.name):
        raise SpecError(
            f"timm has no model {spec.name!r}{_meant(spec.name, library.list_models())}"
        )
    _check_options(spec, _OURS_OF_TIMM, None)
    given: dict[str, Any] = dict(spec.options)
    said = library.models.get_pretrained_cfg(spec.name)
    if said is not None and said.fixed_input_size:
        given["img_size"] = spec.image_px
    rate = {"drop_path_rate": spec.drop_path}  # said even if 0: some models have another default
    given |= {"pretrained": False, "num_classes": num_classes}
    make = partial(library.create_model, spec.name, **given)
    try:
        body: nn.Module = make(**rate)
    except TypeError as error:
        if spec.drop_path or "drop_path_rate" not in str(error):
            raise
        body = make()
    return body


def hf_config(spec: HFSpec) -> Any:
    """The library's configuration of the model.

    Raises:
        SpecError: If the library has no such model of images, or no such option.
    """
    library = transformers()
    kinds = _kinds_of_images()
    if spec.model_type not in kinds:
        raise SpecError(
            f"transformers has no model of images of the type {spec.model_type!r}"
            f"{_meant(spec.model_type, kinds)}"
        )
    kind = library.CONFIG_MAPPING[spec.model_type]
    fields = set(kind().to_dict())
    _check_options(spec, OURS_OF_HF, fields)
    given = {name: _listed(value) for name, value in spec.options.items()}
    if "drop_path_rate" in fields:
        given["drop_path_rate"] = spec.drop_path
    elif spec.drop_path:
        raise SpecError(f"{in_words(spec)} has no drop_path; leave it out")
    if "image_size" in fields:
        height, width = spec.image_px
        given["image_size"] = height if height == width else [height, width]
    return stated(spec, lambda: kind(**given))


def _kinds_of_images() -> list[str]:
    """Model types that classify images or serve as backbones, and have a model without a head."""
    transformers()
    from transformers.models.auto import modeling_auto as auto

    seeing = {
        *auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        *auto.MODEL_FOR_BACKBONE_MAPPING_NAMES,
    }
    return sorted(seeing & set(auto.MODEL_MAPPING_NAMES))


def _check_options(
    spec: TimmSpec | HFSpec, ours: Mapping[str, str], fields: Collection[str] | None
) -> None:
    """Refuse what is said elsewhere and, where the library would take anything, what it has not."""
    for name in spec.options:
        if name in ours:
            raise SpecError(f"options.{name} is no option: here {ours[name]} decides it")
        if fields is not None and name not in fields:
            known = sorted(set(fields) - ours.keys())
            raise SpecError(f"{in_words(spec)} has no option {name!r}{_meant(name, known)}")


def _listed(value: Option) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _meant(word: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(allowed), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


@contextmanager
def _recomputation(spec: TimmSpec | HFSpec) -> Iterator[None]:
    """A library that cannot recompute the blocks of a model says so in a sentence."""
    try:
        yield
    except Exception as error:
        raise SpecError(
            f"{in_words(spec)} cannot run its blocks twice; leave resources.recompute out"
        ) from error


def stated(spec: TimmSpec | HFSpec, call: Callable[[], T]) -> T:
    """What the library answers; what it raises, as a sentence."""
    try:
        return call()
    except SpecError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise SpecError(
            f"{in_words(spec)} cannot be made for image_px {list(spec.image_px)} with the options "
            f"{spec.options}: {said}"
        ) from error

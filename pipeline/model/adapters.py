"""Low-rank adaptation (Hu et al. 2021): narrow matrices that learn beside frozen dense layers.

Axes in names: B any leading axes, I inputs, O outputs, R rank.

An adapter is saved in the form of the library peft, so that other programs find their way:

    adapter_model.safetensors   fp32: base_model.model.MODULE.lora_A.weight [R, I], .lora_B.weight
                                [O, R], and base_model.model.head.weight, .bias
    adapter_config.json         `schemas.tuning.AdapterConfig`
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.model.backbone import Backbone
from pipeline.model.freezing import did_you_mean
from pipeline.model.transfer import is_head
from schemas.backbones import ResNetSpec
from schemas.errors import SpecError
from schemas.model import ViTSpec
from schemas.spec import canonical_json
from schemas.tuning import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterConfig, LoraSpec

_NARROW, _WIDE = ".lora_a.weight", ".lora_b.weight"
_PEFT = "base_model.model."


class LoraLinear(nn.Linear):
    """A frozen dense layer, and beside it the product of two narrow ones, which learns."""

    def __init__(self, base: nn.Linear, spec: LoraSpec, narrow_RI: Tensor) -> None:
        """Take over the weights of `base`; what is beside it begins as zero.

        Args:
            base: The layer that this one replaces.
            spec: Factor and dropout.
            narrow_RI: Initial weight of the first narrow layer.
        """
        super().__init__(base.in_features, base.out_features, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scale = spec.scale
        self.dropout = nn.Dropout(spec.dropout)
        self.lora_a = _dense(narrow_RI)
        self.lora_b = _dense(torch.zeros(base.out_features, spec.rank))

    def forward(self, values_BI: Tensor) -> Tensor:
        """[B, I] -> [B, O]."""
        beside_BO: Tensor = self.lora_b(self.lora_a(self.dropout(values_BI)))
        return super().forward(values_BI) + self.scale * beside_BO


def _dense(weight_OI: Tensor) -> nn.Linear:
    layer = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight_OI)
    return layer


def add_lora(model: Backbone, spec: LoraSpec, *, seed: int) -> None:
    """Put narrow matrices beside the dense layers that `spec` names, and freeze all but the head.

    Raises:
        SpecError: If a name fits no dense layer, or fits one that its model never calls.
    """
    layers = _targets(model, spec)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(is_head(parameter_name))
    added = []
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        narrow_RI = _initial(name, (spec.rank, layer.in_features), seed=seed)
        added.append(LoraLinear(layer, spec, narrow_RI))
        setattr(model.get_submodule(parent), leaf, added[-1])
    if not isinstance(model.spec, ViTSpec | ResNetSpec):
        _check_calls(model, dict(zip(layers, added, strict=True)))


def _targets(model: Backbone, spec: LoraSpec) -> dict[str, nn.Linear]:
    # Subclasses may be read by their parents instead of being called, as in torch's own attention.
    dense = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and not is_head(name)
    }
    known = list(dict.fromkeys(name.rpartition(".")[2] for name in dense))
    for target in spec.targets:
        if not any(_ends(name, target) for name in dense):
            raise SpecError(
                f"lora.targets names {target}, and no dense layer of this model is called so",
                hint=did_you_mean(target, known) if known else "it has none but its head",
            )
    return {
        name: layer
        for name, layer in dense.items()
        if any(_ends(name, target) for target in spec.targets)
    }


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _initial(name: str, shape: tuple[int, int], *, seed: int) -> Tensor:
    """Even numbers in +-1 / sqrt(inputs), a function of (seed, name) alone."""
    digest = hashlib.blake2b(f"lora/{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _check_calls(model: Backbone, added: Mapping[str, LoraLinear]) -> None:
    """A library may read a layer's weights without calling the layer: that would learn nothing."""
    called: set[str] = set()
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, layer in added.items()
    ]
    trained = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, *model.spec.image_px))
    model.train(trained)
    for hook in hooks:
        hook.remove()
    silent = sorted(added.keys() - called)
    if silent:
        raise SpecError(
            f"the library reads the weights of {silent[0]} without calling it, so that nothing can "
            "learn beside it; take it out of lora.targets"
        )


def without_lora(weights: Mapping[str, Tensor], spec: LoraSpec) -> dict[str, Tensor]:
    """The weights of the plain model, with every product added to what it stood beside.

    Args:
        weights: Of a model after `add_lora`, by name.
        spec: That it was made by.
    """
    plain = {name: it for name, it in weights.items() if not name.endswith((_NARROW, _WIDE))}
    for name, narrow_RI in weights.items():
        if name.endswith(_NARROW):
            module = name.removesuffix(_NARROW)
            beside_OI = weights[f"{module}{_WIDE}"].double() @ narrow_RI.double()
            base_OI = plain[f"{module}.weight"]
            plain[f"{module}.weight"] = (base_OI.double() + spec.scale * beside_OI).to(base_OI)
    return plain


def save_adapter(folder: Path, weights: Mapping[str, Tensor], spec: LoraSpec) -> None:
    """Write what was learned, and no more, into `folder`, which is made; see above for the form."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith((_NARROW, _WIDE)) or is_head(name):
            theirs = name.replace(_NARROW, ".lora_A.weight").replace(_WIDE, ".lora_B.weight")
            tensors[f"{_PEFT}{theirs}"] = tensor.detach().cpu().contiguous()
    heads = sorted({name.partition(".")[0] for name in weights if is_head(name)})
    config = AdapterConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=spec.targets,
        modules_to_save=tuple(heads),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    (folder / ADAPTER_CONFIG).write_text(canonical_json(config.dump()) + "\n")

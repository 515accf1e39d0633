"""What of a model learns in a stage: how many numbers, and from which layer on."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from pipeline.cost.convolutions import root, units
from pipeline.cost.parameters import position_numbers, stem_parameters, trained_parameters
from schemas.backbones import ResNetSpec
from schemas.model import ViTSpec
from schemas.training import FinetuneSpec, TrainingSpec
from schemas.tuning import LoraSpec

_HEADS = ("head", "distillation_head", "hidden")


class Learning(NamedTuple):
    """Numbers of a model while it is trained."""

    learned: int
    """Those that learn, narrow matrices of LoRA included."""
    frozen: int
    first_layer: int
    """The lowest layer in which something learns, numbered as for `optim.layer_decay`."""

    @property
    def held(self) -> int:
        """All of them."""
        return self.learned + self.frozen


def learning(model: ViTSpec | ResNetSpec, spec: TrainingSpec) -> Learning:
    """What `freeze` or `lora` leave to learn; everything without them.

    Exact, but for a part named inside of a stem or of a ResNet's unit, which counts as the whole.
    """
    freeze = spec.freeze if isinstance(spec, FinetuneSpec) else None
    lora = spec.lora if isinstance(spec, FinetuneSpec) else None
    if freeze is None and lora is None:
        return Learning(trained_parameters(model, spec.objective), 0, 0)
    parts = vit_parts(model) if isinstance(model, ViTSpec) else resnet_parts(model)
    added = {} if lora is None else _narrow(parts, lora)
    if lora is not None:
        learns = {name for name in parts if name.partition(".")[0] in _HEADS}
    elif freeze is not None and freeze.up_to_layer is not None:
        learns = {name for name in parts if layer_of(name, model) > freeze.up_to_layer}
    else:
        learns = _named(parts, freeze.learning_parts if freeze is not None else ())
    learned = sum(parts[name] for name in learns) + sum(added.values())
    first = min((layer_of(name, model) for name in {*learns, *added}), default=0)
    return Learning(learned, sum(parts.values()) - sum(parts[name] for name in learns), first)


def _named(parts: Mapping[str, int], wanted: Collection[str]) -> set[str]:
    """The parts inside of what is named, or around it."""
    return {
        name
        for name in parts
        for each in wanted
        if name == each or name.startswith(f"{each}.") or each.startswith(f"{name}.")
    }


def _narrow(parts: Mapping[str, int], lora: LoraSpec) -> dict[str, int]:
    """Dense layer -> rank x (inputs + outputs), for those that are adapted."""
    found = {}
    for name, count in parts.items():
        module, _, leaf = name.rpartition(".")
        targeted = any(f".{module}".endswith(f".{target}") for target in lora.targets)
        if leaf == "weight" and targeted and module.partition(".")[0] not in _HEADS:
            outputs = parts[f"{module}.bias"]
            found[module] = lora.rank * (count // outputs + outputs)
    return found


def layer_of(name: str, model: ViTSpec | ResNetSpec) -> int:
    """Number of the layer of a part, as `Backbone.layers` numbers its parameters."""
    first, *rest = name.split(".")
    if isinstance(model, ViTSpec):
        last = model.depth + 1
        below = ("stem", "patch", "class_token", "distillation_token", "registers", "position")
        return 1 + int(rest[0]) if first == "blocks" else 0 if first in below else last
    if first == "stages":
        return 1 + sum(model.blocks[: int(rest[0])]) + int(rest[1])
    return 0 if first == "root" else sum(model.blocks) + 1


def vit_parts(spec: ViTSpec) -> dict[str, int]:
    """Numbers by the names that a ViT gives its parameters.

    A stem and all tables of positions count as one each.
    """
    width = spec.width
    parts = _before_blocks(spec)
    for layer in range(spec.depth):
        halves = ("rows.", "columns.") if spec.axial else ("",)
        for line, half in zip(_lines(spec), halves, strict=True):
            parts |= {f"blocks.{layer}.{half}{name}": it for name, it in _block(spec, line).items()}
    parts |= {"norm.weight": width, "norm.bias": width}
    if spec.pool == "map":
        parts |= {f"pooling.{name}": count for name, count in _pooling(spec).items()}
    if spec.hidden_head:
        parts |= _dense("hidden", width, width)
    for name in _HEADS[: 1 + spec.distillation_token] if spec.num_classes else ():
        parts |= _dense(name, width, spec.num_classes)
    return parts


def _before_blocks(spec: ViTSpec) -> dict[str, int]:
    width = spec.width
    parts = {"stem": stem_parameters(spec.stem)} if spec.stem else {}
    parts |= _dense("patch", spec.patch_values, width)
    if spec.pool == "cls":
        parts["class_token"] = width
    if spec.distillation_token:
        parts["distillation_token"] = width
    if spec.registers:
        parts["registers"] = spec.registers * width
    if spec.position.startswith("learned"):
        parts["position"] = position_numbers(spec)
    return parts


def _lines(spec: ViTSpec) -> tuple[int, ...]:
    """Patches of the sequences of each half of a block: rows are as long as the grid is wide."""
    return (spec.grid[1], spec.grid[0]) if spec.axial else (spec.patches,)


def _pooling(spec: ViTSpec) -> dict[str, int]:
    """A learned query, and a plain block without its first norm."""
    plain = spec.revise(position="none", qk_norm=False, layer_scale=None)
    found = {"probe": spec.width}
    for name, count in _block(plain, line=0).items():
        if not name.startswith("norm1."):
            found[name.replace("norm2.", "norm.")] = count
    return found


def _block(spec: ViTSpec, line: int) -> dict[str, int]:
    width, each = spec.width, spec.width // spec.num_heads
    parts: dict[str, int] = {}
    for name in ("norm1", "norm2"):
        parts |= {f"{name}.weight": width, f"{name}.bias": width}
    for name in ("query", "key", "value", "out"):
        parts |= _dense(f"attention.{name}", width, width)
    for name in ("query_norm", "key_norm") if spec.qk_norm else ():
        parts |= {f"attention.{name}.weight": each, f"attention.{name}.bias": each}
    if spec.position == "relative":
        parts["attention.relative"] = (2 * line - 1) * width
    for name in ("scale1", "scale2") if spec.layer_scale else ():
        parts[name] = width
    return parts | _dense("dense1", width, spec.mlp_dim) | _dense("dense2", spec.mlp_dim, width)


def _dense(name: str, inputs: int, outputs: int) -> dict[str, int]:
    return {f"{name}.weight": inputs * outputs, f"{name}.bias": outputs}


def resnet_parts(spec: ResNetSpec) -> dict[str, int]:
    """Numbers of the root, of each unit by its name, of the last norm and of the head."""
    parts = {"root.weight": root(spec, spec.image_px).kernel}
    inside = iter(units(spec, spec.image_px))
    for stage, count in enumerate(spec.blocks):
        for index in range(count):
            unit = next(inside)
            norms = 2 * (unit.first.source + unit.first.out + unit.middle.out)
            kernels = sum(layer.kernel for layer in unit.layers)
            parts[f"stages.{stage}.{index}"] = kernels + norms
    parts |= {"norm.weight": spec.features, "norm.bias": spec.features}
    return parts | (_dense("head", spec.features, spec.num_classes) if spec.num_classes else {})

"""Initial weights as in the authors' code, a function of names, shapes and a seed."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from schemas.model import ViTSpec

_UNIT_SPREAD = 0.87962566103423978
"""Deviation of a normal distribution that is cut at two of its own."""

Draw = Callable[[Tensor, torch.Generator], object]


def initial_weights(
    spec: ViTSpec, parameters: Iterable[tuple[str, Tensor]], *, seed: int
) -> dict[str, Tensor]:
    """New weights on the CPU for parameters of these names and shapes.

    Dense kernels: Xavier, even, with query, key and value on their own. Kernels of patches, of
    convolutions and of the hidden head: LeCun's normal, cut. Positions, distillation token and keys
    of distances: N(0, 0.02); registers N(0, 1e-6). Norms 1, but the last of each unit of a stem 0;
    residual factors `layer_scale`. Zero: biases, class token, heads.

    Args:
        spec: The model.
        parameters: In its order, which is the order of the draws.
        seed: Of a generator of their own.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    with torch.no_grad():
        for name, like in parameters:
            weights[name] = torch.empty(like.shape, dtype=like.dtype, device="cpu")
            _draw(name, spec)(weights[name], generator)
    return weights


def _draw(name: str, spec: ViTSpec) -> Draw:
    """How the parameter of this name begins."""
    module, _, leaf = name.rpartition(".")
    if leaf == "bias" or module in ("head", "distillation_head") or name == "class_token":
        return _constant(0.0)
    if leaf in ("scale1", "scale2"):
        return _constant(spec.layer_scale or 0.0)
    if "norm" in module.rpartition(".")[2]:
        return _constant(0.0 if name.startswith("stem.") and module.endswith("norm3") else 1.0)
    if leaf == "weight":
        narrow = module in ("patch", "hidden") or name.startswith("stem.")
        return lecun_normal if narrow else _xavier_uniform
    if leaf == "probe":
        return _xavier_uniform
    return _normal(1e-6 if leaf == "registers" else 0.02)


def _constant(value: float) -> Draw:
    return lambda tensor, _generator: nn.init.constant_(tensor, value)


def _normal(std: float) -> Draw:
    return lambda tensor, generator: nn.init.normal_(tensor, std=std, generator=generator)


def _xavier_uniform(tensor: Tensor, generator: torch.Generator) -> None:
    """A vector counts as a kernel from one number."""
    nn.init.xavier_uniform_(tensor if tensor.ndim > 1 else tensor[None], generator=generator)


def lecun_normal(tensor: Tensor, generator: torch.Generator) -> None:
    """JAX's: cut at two deviations, then widened to unit variance again."""
    std = math.sqrt(1.0 / tensor[0].numel()) / _UNIT_SPREAD
    nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std, generator=generator)

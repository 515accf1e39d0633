"""Parameter groups and the optimizer, built on the bare model before any engine wraps it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pipeline.model.backbone import Backbone
from pipeline.model.transfer import is_head
from schemas.optim import OptimSpec

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
"""Algorithm -> the names under which torch keeps first and second moment."""
AVERAGE = "average"
"""The name under which we keep a moving average beside the moments: whoever splits, gathers or
stores what belongs to a tensor then does the same with its average."""


def parameter_groups(model: nn.Module, optim: OptimSpec) -> list[dict[str, Any]]:
    """Two groups for each rate: with weight decay, and without (biases, norms, tokens, positions).

    Every parameter that learns is in exactly one; the order inside a group is that of the model. A
    group says what its rate and decay go by: whether it `decays`, how many layers `below_top` it
    is, and whether it `waits` while the head learns alone.

    Raises:
        SpecError: If layers should learn at rates of their own and are not known.
    """
    kernels = decayed_names(model)
    depths = _layers_below_top(model) if optim.layer_decay is not None else {}
    groups: dict[tuple[int, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            waits = bool(optim.linear_probe_steps) and not is_head(name)
            place = (depths.get(name, 0), name in kernels, waits)
            groups.setdefault(place, []).append(parameter)
    ordered = sorted(groups, key=lambda place: (-place[0], not place[1], not place[2]))
    return [
        {"params": groups[place], "below_top": place[0], "decays": place[1], "waits": place[2]}
        for place in ordered
    ]


def _layers_below_top(model: nn.Module) -> dict[str, int]:
    assert isinstance(model, Backbone), "the spec lets only such have rates by layer"  # noqa: S101
    layers = model.layers()
    top = max(layers.values())
    return {name: top - layer for name, layer in layers.items()}


def decayed_names(model: nn.Module) -> set[str]:
    """The parameters on which weight decay acts: kernels alone, whoever wrote the model.

    A kernel is the `weight` of a module that is neither a norm nor a table of embeddings, and is
    more than one vector stretched over a grid.
    """
    return {
        f"{path}.weight".removeprefix(".")
        for path, module in model.named_modules()
        if not _scales_or_looks_up(module)
        for leaf, parameter in module.named_parameters(recurse=False)
        if leaf == "weight" and parameter.ndim > 1 and not _is_stretched(parameter)
    }


def _scales_or_looks_up(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) or "norm" in type(module).__name__.lower()


def _is_stretched(parameter: nn.Parameter) -> bool:
    return parameter.ndim > 2 and parameter.numel() == max(parameter.shape)


def build_optimizer(model: nn.Module, optim: OptimSpec) -> torch.optim.Optimizer:
    """The optimizer of `optim`; the loop writes the learning rate before each step.

    One kernel for each tensor (no foreach, no fused), so that an update never depends on how
    tensors are grouped.
    """
    groups = parameter_groups(model, optim)
    optimizer: torch.optim.Optimizer
    if optim.algorithm == "sgd":
        optimizer = torch.optim.SGD(groups, lr=optim.peak_lr, momentum=optim.beta1, foreach=False)
    else:
        optimizer = torch.optim.AdamW(groups, lr=optim.peak_lr, foreach=False, fused=False)
    rewrite_groups(optimizer, optim)
    return optimizer


def rewrite_groups(optimizer: torch.optim.Optimizer, optim: OptimSpec) -> None:
    """Put the spec's hyper-parameters into the groups, again where a load may have left others."""
    for group in optimizer.param_groups:
        group["weight_decay"] = optim.weight_decay if group["decays"] else 0.0
        group["rate_ratio"] = (optim.layer_decay or 1.0) ** group["below_top"]
        if optim.algorithm == "sgd":
            group["momentum"] = optim.beta1
        else:
            group.update(betas=(optim.beta1, optim.beta2), eps=optim.eps)


def write_learning_rate(
    optimizer: torch.optim.Optimizer, rate: float, *, head_alone: bool = False
) -> None:
    """Set the rate of every group: its layer's share of `rate`, or zero where it waits."""
    for group in optimizer.param_groups:
        waits = head_alone and group["waits"]
        group["lr"] = 0.0 if waits else rate * group["rate_ratio"]


def materialise(state: dict[str, Any], like: torch.Tensor, optim: OptimSpec) -> None:
    """Zero moments in the optimizer state of one tensor, as the first step would make them."""
    for key in state_names(optim):
        state[key] = torch.zeros_like(like)
    if optim.algorithm == "adamw":
        state["step"] = torch.tensor(0.0)


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Put all that is kept back to zero, in place: engines have parts of it elsewhere too."""
    for kept in optimizer.state.values():
        for tensor in kept.values():
            tensor.zero_()


def moment_names(optim: OptimSpec) -> tuple[str, ...]:
    """The moments that this optimizer keeps; SGD without momentum keeps none."""
    return () if optim.algorithm == "sgd" and not optim.beta1 else MOMENTS[optim.algorithm]


def state_names(optim: OptimSpec) -> tuple[str, ...]:
    """All that is kept for a weight: its moments and, where the spec asks for it, its average."""
    return (*moment_names(optim), *(() if optim.ema_decay is None else (AVERAGE,)))


def has_average(optim: OptimSpec, updates: int) -> bool:
    """Whether there is an average after so many updates."""
    return optim.ema_decay is not None and updates > 0


@torch.no_grad()
def update_averages(
    optimizer: torch.optim.Optimizer,
    tensors: Iterable[torch.Tensor],
    optim: OptimSpec,
    *,
    done: int,
) -> None:
    """Take the weights after an update into their averages, number by number.

    Args:
        optimizer: Its state holds the averages.
        tensors: What it updates.
        optim: With `ema_decay`; without one there is nothing to do.
        done: Updates before this one. The first is copied, so that random weights never count.
    """
    if optim.ema_decay is None:
        return
    for tensor in tensors:
        average = optimizer.state[tensor][AVERAGE]
        average.lerp_(tensor, 1.0 - optim.ema_decay if done else 1.0)

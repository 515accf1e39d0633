"""Training loops as one writes them by hand, beside which ours is measured."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from pipeline.data.feed.batches import Batch
from pipeline.training.engine import EngineSpec
from schemas.optim import OptimSpec


def pictures(batch: Batch) -> Tensor:
    """Bytes as numbers around zero, [B, C, H, W]: what any loop has to do first."""
    pixels = torch.from_numpy(batch.pixels_BHWC).permute(0, 3, 1, 2).float()
    return pixels.div_(127.5).sub_(1.0).contiguous()


def torch_step(model: nn.Module, batch: Batch, optim: OptimSpec) -> Callable[[], float]:
    """One step of plain torch: forward, backward, clip, AdamW as torch chooses it."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.peak_lr, weight_decay=optim.weight_decay
    )
    labels = torch.from_numpy(batch.label_B)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(pictures(batch)), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own gap
        if optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        return loss.item()

    return as_torch_comes(step)


def deepspeed_step(model: nn.Module, batch: Batch, spec: EngineSpec) -> Callable[[], float]:
    """One step of DeepSpeed ZeRO-1 on one rank, with the configuration that our engine has."""
    import deepspeed

    from pipeline.training.zero import ZeroSpec, deepspeed_config

    # Compiled at first use, in minutes, and of no use to gloo; our engine does without it too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    optim = spec.optim
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.peak_lr, weight_decay=optim.weight_decay
    )
    numbers = sum(parameter.numel() for parameter in model.parameters())
    zero = ZeroSpec(stage=1, micro_batch=len(batch), accumulation=1)
    config = deepspeed_config(spec, zero, parameters=numbers, world_size=1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    labels = torch.from_numpy(batch.label_B)

    def step() -> float:
        loss = F.cross_entropy(engine(pictures(batch)), labels)
        engine.backward(loss)
        engine.step()
        return loss.item()

    return as_torch_comes(step)


def as_torch_comes(step: Callable[[], float]) -> Callable[[], float]:
    """Without the deterministic algorithms that our runs ask for."""

    def plain() -> float:
        torch.use_deterministic_algorithms(mode=False)
        try:
            return step()
        finally:
            torch.use_deterministic_algorithms(mode=True, warn_only=True)

    return plain

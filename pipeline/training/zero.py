"""DeepSpeed ZeRO 0-3 behind the `Engine` protocol: DeepSpeed's only door.

The caller's process has to set `DS_ACCELERATOR=cpu` before the import where there is no GPU, and
the torch process group exists already.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed import ops
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state
from torch import Tensor
from torch import distributed as dist

from pipeline.model.freezing import learned
from pipeline.training.checkpoint import ParameterState, named_tensors
from pipeline.training.engine import (
    EngineSpec,
    begin_step,
    buffers_of,
    clip_gradients,
    load_weights,
    probes,
    seed_dropout,
    to_cpu,
    with_honest_gradients,
)
from pipeline.training.objectives.common import LabelledBatch
from pipeline.training.optimizer import (
    AVERAGE,
    build_optimizer,
    has_average,
    materialise,
    moment_names,
    rewrite_groups,
    state_names,
    update_averages,
    write_learning_rate,
)
from pipeline.training.precision import HALF


@dataclass(frozen=True)
class ZeroSpec:
    """How the global batch and the state are spread over the ranks."""

    stage: int
    """0 keeps all on each rank; 1 spreads moments and master weights, 2 gradients, 3 weights."""
    micro_batch: int
    """Samples in one forward on one rank."""
    accumulation: int
    """Micro-batches in one optimizer step on one rank."""
    offload: bool = False
    """From stage 1 on: master weights and what the optimizer keeps are in the host's memory."""


_LARGEST_BUCKET = 50_000_000
"""Elements that are reduced at once."""
_GATHERED_TOGETHER = 16_000_000
"""Elements, about, that a checkpoint brings together at once, and holds whole on each rank."""


def deepspeed_config(
    spec: EngineSpec, zero: ZeroSpec, *, parameters: int, world_size: int
) -> dict[str, Any]:
    """DeepSpeed's dictionary, every value derived from the specs and none left to DeepSpeed.

    Args:
        spec: Optimizer and precision.
        zero: Stage and batches.
        parameters: Number of the model's parameters; no buffer is larger.
        world_size: Ranks.
    """
    bucket = min(-(-parameters // 1024) * 1024, _LARGEST_BUCKET)  # DeepSpeed wants it even
    samples = zero.micro_batch * zero.accumulation * world_size
    # Stage 0 clips without telling the norm, so we do that ourselves there.
    clip = spec.optim.clip_norm if zero.stage else None
    config: dict[str, Any] = {
        "train_batch_size": samples,
        "train_micro_batch_size_per_gpu": zero.micro_batch,
        "gradient_accumulation_steps": zero.accumulation,
        "gradient_clipping": clip or 0.0,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": zero.stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
            # Parameters stay partitioned from the first, so that every size goes the same way.
            "stage3_param_persistence_threshold": 0,
            # Gathered weights are given back soon: by DeepSpeed's own bounds, a thousand million,
            # any ViT would stay whole on every rank from its forward to its backward pass.
            "stage3_max_live_parameters": bucket,
            "stage3_max_reuse_distance": bucket,
        },
    }
    if zero.offload:
        pinned = spec.device.type == "cuda"
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
        # torch's own optimizer works on the host too; DeepSpeed's would have to be compiled.
        config["zero_force_ds_cpu_optimizer"] = False
    if spec.precision in HALF:
        name = str(HALF[spec.precision]).removeprefix("torch.")
        config["torch_autocast"] = {"enabled": True, "dtype": name}
    return config


class DeepSpeedEngine:
    """A model on all ranks of the process group, its state spread as `zero` says."""

    def __init__(self, model: torch.nn.Module, spec: EngineSpec, zero: ZeroSpec) -> None:
        """Own `model`; DeepSpeed takes it over at the first use, so that a load can come first."""
        self.model = model.to(spec.device)
        self.spec = spec
        self.zero = zero
        self.name = f"deepspeed-zero{zero.stage}"
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.scales_loss = spec.scales_loss
        self.updates = 0
        self._scale = 1.0

    @cached_property
    def _engine(self) -> Any:
        """DeepSpeed's engine, with moments that exist before the first step."""
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # Compiled at first use, in minutes, and of no use to gloo.
        ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        engine, *_ = deepspeed.initialize(
            model=self.model,
            optimizer=build_optimizer(self.model, self.spec.optim),
            config=deepspeed_config(
                self.spec,
                self.zero,
                parameters=sum(p.numel() for p in self.model.parameters()),
                world_size=self.world_size,
            ),
        )
        # DeepSpeed's own scalers double their factor once for each parameter group, leave the norm
        # and the clipping scaled, and are in no checkpoint of ours: the loop scales the loss.
        engine.torch_autocast_z0_gradscaler = None
        if self.zero.stage:
            engine.optimizer.torch_autocast_gradscaler = None
        for tensor in self._flat_tensors(engine):
            materialise(self._torch_optimizer(engine).state[tensor], tensor, self.spec.optim)
        if self.zero.stage in (1, 2):
            # DeepSpeed links parameters to moments while group 0 steps, when group 1 has none yet.
            engine.optimizer._hp_optimizer_states_linked = False  # noqa: SLF001 - no public way
            engine.optimizer._lazy_init_hp_params_optimizer_state()  # noqa: SLF001
        return engine

    def _torch_optimizer(self, engine: Any) -> torch.optim.Optimizer:
        """Ours, inside DeepSpeed's wrapper where there is one."""
        optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
        return optimizer

    def _flat_tensors(self, engine: Any) -> list[Tensor]:
        """The tensors on this rank that the optimizer really updates."""
        if self.zero.stage == 0:
            return list(learned(self.model))
        name = "fp32_partitioned_groups_flat" if self.zero.stage == 3 else None
        return list(getattr(engine.optimizer, name or "single_partition_of_fp32_groups"))

    def forward_backward(
        self, micro_batches: Sequence[LabelledBatch], *, step: int, scale: float = 1.0
    ) -> float:
        """See `Engine`."""
        engine = self._engine
        engine.train()
        self._scale = scale
        if self.zero.stage and self.scales_loss:
            engine.optimizer.override_loss_scale(scale)  # and it divides the gradients again
        if begin_step(self.model, self._torch_optimizer(engine), self.spec.optim, step):
            self.updates = 0
        total = torch.zeros((), device=self.spec.device)
        for index, batch in enumerate(micro_batches):
            if index:
                engine.step()  # off the boundary: only counts the micro-step
            seed_dropout(self.spec.seed, step=step, micro_step=index, rank=self.rank)
            loss = self.spec.objective(engine, batch)
            engine.backward(with_honest_gradients(loss) * (1.0 if self.zero.stage else scale))
            total += loss.detach()
        total /= len(micro_batches) * self.world_size
        dist.all_reduce(total)
        return float(total)

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        engine = self._engine
        norm = None if self.zero.stage else self._clipped()
        if norm is not None and not math.isfinite(norm):
            # The step then finds nothing to do; the other stages see it for themselves.
            engine.zero_grad()
        optimizer = self._torch_optimizer(engine)
        write_learning_rate(optimizer, learning_rate, head_alone=probes(self.model))
        engine.step()
        norm = float(engine.get_global_grad_norm()) if norm is None else norm
        if math.isfinite(norm):
            tensors = self._flat_tensors(engine)
            update_averages(optimizer, tensors, self.spec.optim, done=self.updates)
            self.updates += 1
        return norm

    def _clipped(self) -> float:
        """Clip what stage 0 leaves to us."""
        return clip_gradients(self.model, self.spec.optim.clip_norm, scale=self._scale)

    def loss(self, batch: LabelledBatch) -> float:
        """See `Engine`."""
        engine = self._engine
        engine.eval()
        with torch.no_grad():
            return float(self.spec.objective(engine, batch))

    def state(self) -> Iterator[tuple[str, ParameterState]]:
        """See `Engine`."""
        optim = self.spec.optim
        count, averaged = len(moment_names(optim)), optim.ema_decay is not None
        for bucket in self._buckets():
            weights = self._wholes([(parameter, None) for parameter in bucket.values()])
            learns = [parameter for parameter in bucket.values() if parameter.requires_grad]
            columns = [
                self._wholes([(parameter, key) for parameter in learns])
                for key in state_names(optim)
            ]
            rows = iter(zip(*columns, strict=True))
            for (name, parameter), weight in zip(bucket.items(), weights, strict=True):
                kept = next(rows, ()) if parameter.requires_grad else ()
                average = kept[count] if averaged and kept else None
                yield name, ParameterState(weight, tuple(kept[:count]), average)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Engine`."""
        key = AVERAGE if has_average(self.spec.optim, self.updates) else None
        for bucket in self._buckets():
            wanted = [(p, key if p.requires_grad else None) for p in bucket.values()]
            yield from zip(bucket, self._wholes(wanted), strict=True)

    def _buckets(self) -> Iterator[dict[str, Any]]:
        """The parameters by name, in the model's order, some together.

        All ranks must consume them. A call between ranks costs as much for one bias as for a
        million weights.
        """
        _ = self._engine
        bucket: dict[str, Any] = {}
        held = 0
        for name, parameter in self.model.named_parameters():
            bucket[name] = parameter
            held += _shape(parameter).numel()
            if held >= _GATHERED_TOGETHER:
                yield bucket
                bucket, held = {}, 0
        if bucket:
            yield bucket

    @torch.no_grad()
    def _wholes(self, wanted: Sequence[tuple[Any, str | None]]) -> list[Tensor]:
        """Parameters (None), or what the optimizer keeps for them under a key, on the CPU."""
        found = [self._own(parameter, key) for parameter, key in wanted]
        spread = [index for index, own in enumerate(found) if own is None]
        gathered = iter(self._gathered([wanted[index] for index in spread]) if spread else ())
        return [next(gathered) if own is None else own for own in found]

    def _own(self, parameter: Any, key: str | None) -> Tensor | None:
        """What this rank has whole; None where it has a part."""
        if key is None and self.zero.stage < 3:
            # Every rank has the weights: our models keep them in fp32.
            return to_cpu(parameter)
        if self.zero.stage == 0:
            return to_cpu(self._torch_optimizer(self._engine).state[parameter][key])
        return None

    def _gathered(self, wanted: Sequence[tuple[Any, str | None]]) -> list[Tensor]:
        """The same of what is spread over the ranks."""
        shapes = [_shape(parameter) for parameter, _ in wanted]
        sizes = [shape.numel() for shape in shapes]
        buffer = torch.zeros(sum(sizes), device=self.spec.device)
        for (parameter, key), room in zip(wanted, torch.split(buffer, sizes), strict=True):
            start, own = self._fragment(parameter, key, room.numel())
            room.narrow(0, start, own.numel()).copy_(own)
        dist.all_reduce(buffer)  # the others have zeros where one rank has numbers
        parts = zip(torch.split(buffer.cpu(), sizes), shapes, strict=True)
        return [part.reshape(shape).clone() for part, shape in parts]

    def _fragment(self, parameter: Any, key: str | None, size: int) -> tuple[int, Tensor]:
        """Where this rank's part of a flat parameter begins, and the part, which may be empty."""
        if self.zero.stage < 3:
            mapping = parameter._hp_mapping  # noqa: SLF001 - no public way
            if mapping is None:
                return 0, torch.empty(0)
            return mapping.lp_fragment_address.start, mapping.get_hp_fragment(key)
        if key is None and not parameter.requires_grad:
            part = parameter.ds_tensor
        elif key is None:
            part = safe_get_local_fp32_param(parameter)
        else:
            part = safe_get_local_optimizer_state(parameter, key)
        # The parts are equally large, so that the last ones may reach beyond the end.
        start = min(size, part.numel() * self.rank)
        return start, part[: size - start]

    def buffers(self) -> dict[str, Tensor]:
        """See `Engine`; those of this rank."""
        return buffers_of(self.model)

    def share(self) -> dict[str, Tensor]:
        """See `Engine`."""
        numbered = enumerate(self.state())
        own = [named for i, named in numbered if i % self.world_size == self.rank]
        return named_tensors(own, buffers=None if self.rank else self.buffers())

    def load(self, folder: Path, updates: int) -> None:
        """See `Engine`; must come before anything else, since ZeRO-3 gives weights away.

        Raises:
            RuntimeError: If the engine has been used.
        """
        if "_engine" in self.__dict__:
            raise RuntimeError("a checkpoint is loaded before the engine's first use")
        found = load_weights(self.model, folder)
        engine = self._engine
        optimizer = self._torch_optimizer(engine)
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            for key, tensor in zip(state_names(self.spec.optim), found[name], strict=True):
                self._place(parameter, key, tensor)
        for tensor in self._flat_tensors(engine):
            if "step" in optimizer.state[tensor]:
                optimizer.state[tensor]["step"].fill_(updates)
        self.updates = updates
        rewrite_groups(optimizer, self.spec.optim)

    def _place(self, parameter: Any, key: str, whole: Tensor) -> None:
        """Put this rank's part of a moment or an average where the optimizer keeps it."""
        whole = whole.to(self.spec.device)
        if self.zero.stage == 0:
            self._torch_optimizer(self._engine).state[parameter][key].copy_(whole)
        elif self.zero.stage < 3:
            parameter.set_full_hp_param(whole, key)
        else:
            # The public setter cannot place the padded end of a size that ranks do not divide.
            part = parameter.ds_tensor.numel()
            padded = torch.zeros(part * self.world_size, device=self.spec.device)
            padded[: whole.numel()] = whole.flatten()
            own = padded.narrow(0, part * self.rank, part)
            deepspeed.utils.safe_set_local_optimizer_state(parameter, own, key)

    def agree(self, flag: bool) -> bool:  # noqa: FBT001 - a vote
        """See `Engine`."""
        return bool(self.highest(int(flag)))

    def highest(self, number: int) -> int:
        """See `Engine`."""
        tensor = torch.tensor([number], dtype=torch.int64, device=self.spec.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

    def summed(self, numbers: Sequence[float]) -> list[float]:
        """See `Engine`."""
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.spec.device)
        dist.all_reduce(tensor)
        return tensor.tolist()


def _shape(parameter: Any) -> torch.Size:
    """Of the whole parameter: ZeRO-3 leaves an empty one where it was."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape

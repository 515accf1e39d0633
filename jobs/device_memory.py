"""How much memory a training process may count on."""

import os
from pathlib import Path

import psutil
import torch

from schemas.resources import ResourcesSpec

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container finds its own, of both generations of control groups."""
_WORKERS_RATIO = 0.5
"""Of a machine's memory: Ray's objects, the page cache of shards and loaders have the rest."""


def worker_bytes(resources: ResourcesSpec, device: torch.device) -> int:
    """Memory that one worker of the world has to itself.

    On a GPU its memory, or the worker's share of it; on the CPU an even part of what the machine,
    or the container, has. All of it counts and not what is free just now: a run that goes on must
    come to the same layout.
    """
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        return int(whole * min(1.0, resources.gpus_per_worker))
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(_WORKERS_RATIO * machine_bytes()) // beside


def machine_bytes() -> int:
    """Memory of this machine, or of the container."""
    limits = [Path(name).read_text().strip() for name in _LIMITS if Path(name).is_file()]
    known = [int(limit) for limit in limits if limit.isdigit()]
    return min([int(psutil.virtual_memory().total), *known])


def lowest_of_all(number: int) -> int:
    """The smallest number that any rank of the process group gives."""
    kind = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor([number], dtype=torch.int64, device=kind)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MIN)
    return int(tensor.item())

"""What the processes of a test's gang do; importable by name in every worker."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from schemas.errors import DataError, PausedError


def add_up(config: dict[str, Any]) -> dict[str, Any]:
    """Prove the process group and the environment."""
    rank = torch.distributed.get_rank()
    total = torch.tensor([rank + 1.0])
    torch.distributed.all_reduce(total)
    neighbours = psutil.Process(os.getppid()).children()
    return {
        "total": total.item(),
        "rank": rank,
        "said": os.environ.get("VITRAIL_TEST", ""),
        "node": [" ".join(process.cmdline()) for process in neighbours],
    }


def refuse(config: dict[str, Any]) -> dict[str, Any]:
    """One rank finds the data wrong while the other waits for it."""
    if torch.distributed.get_rank() == 1:
        raise DataError("the data is wrong", hint="look at it")
    torch.distributed.barrier()
    return {}


def pause(config: dict[str, Any]) -> dict[str, Any]:
    """All ranks agree to stop."""
    raise PausedError("stopped on request after step 7 of 9")


def die_once(config: dict[str, Any]) -> dict[str, Any]:
    """The first gang loses a process without a word; the second one ends well."""
    mark = Path(config["mark"])
    rank = torch.distributed.get_rank()
    if not mark.exists():
        torch.distributed.barrier()
        if rank == 1:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.barrier()
    return {"rank": rank}


def stumble(config: dict[str, Any]) -> dict[str, Any]:
    """A bug in our own code."""
    raise KeyError("no such thing")


def fill_memory(config: dict[str, Any]) -> dict[str, Any]:
    """Rank 1 wants more memory than there is, while the other waits for it."""
    if torch.distributed.get_rank() == 1:
        if config["how"] == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        torch.empty(1 << 60, dtype=torch.uint8)
    torch.distributed.barrier()
    return {}


def lose_once(config: dict[str, Any]) -> dict[str, Any]:
    """Every process writes down its pid; in the first gang one of those that matter is killed."""
    import ray
    from ray.train.v2._internal.execution.context import get_train_context

    folder, rank = Path(config["folder"]), torch.distributed.get_rank()
    pid = os.getpid()
    if rank == 0:
        controller = get_train_context().controller_actor
        pid = ray.get(controller.__ray_call__.remote(lambda _self: os.getpid()))
    torch.distributed.barrier()
    starts = len(list(folder.glob("pid-1-*"))) + 1
    torch.distributed.barrier()
    (folder / f"pid-{rank}-{os.getpid()}").touch()
    torch.distributed.barrier()
    if starts == 1:
        if rank == 0:
            os.kill(pid, signal.SIGKILL)
        time.sleep(3600)
    for mine in folder.glob(f"pid-*-{os.getpid()}"):
        mine.unlink()
    return {"starts": starts}


def alive(folder: Path) -> list[int]:
    """Processes that wrote down their pid and still live."""
    pids = [int(path.name.rpartition("-")[2]) for path in folder.glob("pid-*")]
    return [pid for pid in pids if psutil.pid_exists(pid)]


def train_and_die_once(config: dict[str, Any]) -> dict[str, Any]:
    """Train; the first gang loses rank 1 by a signal while steps after a checkpoint are done."""
    from jobs.train_worker import CHECKPOINTS, run_in_gang

    mark = Path(config["mark"])
    checkpoint = config["plan"].progress / CHECKPOINTS / config["after"]
    if torch.distributed.get_rank() == 1 and not mark.exists():
        words = (checkpoint, mark, config["signal"])
        threading.Thread(target=_die_after, args=words, daemon=True).start()
    return run_in_gang(config)


def stand(config: dict[str, Any]) -> dict[str, Any]:
    """Where each rank is, told to rank 0."""
    import ray

    names = ("LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")
    mine = [os.environ[name] for name in names]
    told: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, [ray.get_runtime_context().get_node_id(), *mine])
    return {"ranks": told}


def train_and_lose_a_node(config: dict[str, Any]) -> dict[str, Any]:
    """Train; in the first gang the node that is not `kept` goes down after a checkpoint."""
    import ray

    from jobs.train_worker import CHECKPOINTS, run_in_gang

    checkpoint = config["plan"].progress / CHECKPOINTS / config["after"]
    if ray.get_runtime_context().get_node_id() != config["kept"]:
        threading.Thread(target=_take_node_down, args=(checkpoint,), daemon=True).start()
    return run_in_gang(config)


def _take_node_down(checkpoint: Path) -> None:
    while not checkpoint.exists():
        time.sleep(0.005)
    os.kill(os.getppid(), signal.SIGKILL)  # what Ray runs on this node, and all that it started
    os.kill(os.getpid(), signal.SIGKILL)


def _die_after(checkpoint: Path, mark: Path, number: int) -> None:
    while not checkpoint.exists():
        time.sleep(0.005)
    mark.write_text(str(os.getpid()))
    os.kill(os.getpid(), number)

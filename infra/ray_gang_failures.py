"""What the failures of a training world mean: whose fault it is, and whether to try again.

Infrastructure (a process, a node or a connection is gone) is tried again from the last checkpoint;
memory once, with smaller micro-batches; all else is the user's or ours and is not tried again.
One of Ray's doors.
"""

import re
from collections.abc import Mapping

from schemas.errors import OutOfMemoryError, StageFailedError, VitrailError

_PEER = re.compile(r"connection|peer|socket|gloo|nccl|timed out|timeout|broken pipe", re.IGNORECASE)
"""In the text of torch's plain RuntimeErrors that mean a lost peer."""
_FULL = re.compile(
    r"DefaultCPUAllocator|out of memory|can't allocate memory|cannot allocate memory|ALLOC_FAILED",
    re.IGNORECASE,
)
"""In the text of torch's plain RuntimeErrors that mean that memory was refused."""


class LostError(Exception):
    """A process or a connection between processes is gone; another start may go well."""


class BusyError(Exception):
    """Others hold the resources; nothing has been started."""


def verdict(failures: Mapping[int, BaseException]) -> BaseException:
    """The failure that counts: a sentence for the user, memory, a bug as it was raised, or a loss.

    A rank that raises takes the others' connections with it, so the first rank that gives a reason
    of its own counts, whatever the others say.
    """
    # Ray Train may wrap what a worker raises, and has no public name for what is inside.
    causes = [getattr(failures[rank], "_base_exc", failures[rank]) for rank in sorted(failures)]
    own = [cause for cause in causes if isinstance(cause, VitrailError)]
    full = [cause for cause in causes if is_memory(cause)]
    died = any(_is_rays(cause) for cause in causes)
    bugs = [cause for cause in causes if not _is_loss(cause, died=died)]
    if own:
        return own[0]
    if full:
        return out_of_memory(full[0])
    return bugs[0] if bugs else LostError(first_line(causes[0]) if causes else "no reason given")


def is_memory(cause: BaseException) -> bool:
    """Whether `cause` means that a process wanted more memory than there was."""
    import torch
    from ray.exceptions import OutOfMemoryError as KilledForMemory

    # Ray says what ended a process in an attribute of its failed health check.
    cause = getattr(cause, "health_check_failure", cause)
    if isinstance(cause, torch.OutOfMemoryError | MemoryError | KilledForMemory):
        return True
    return isinstance(cause, RuntimeError) and _FULL.search(str(cause)) is not None


def out_of_memory(cause: BaseException) -> OutOfMemoryError:
    """The sentence of a failure that `is_memory`."""
    import torch

    which = "GPU memory" if isinstance(cause, torch.OutOfMemoryError) else "memory"
    cause = getattr(cause, "health_check_failure", cause)
    return OutOfMemoryError(
        f"a training process ran out of {which}: {first_line(cause)}",
        hint="set resources.micro_batch smaller (the steps stay the same), resources.recompute, or "
        "a higher resources.zero_stage",
    )


def _is_rays(cause: BaseException) -> bool:
    """Lost actors and failed health checks: a process has died."""
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError

    return isinstance(cause, RayError | RayTrainError)


def _is_loss(cause: BaseException, *, died: bool) -> bool:
    """Whether `cause` follows from a lost process: torch has RuntimeErrors for this and for bugs.

    Args:
        cause: What one rank raised.
        died: Whether another rank is known to have died.
    """
    import torch

    if _is_rays(cause) or isinstance(cause, ConnectionError | torch.distributed.DistError):
        return True
    if not isinstance(cause, RuntimeError):
        return False
    return died or _PEER.search(str(cause)) is not None


def not_begun(failure: Exception) -> BusyError | LostError:
    """What it means that Ray Train could not start the processes."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    busy = isinstance(failure, WorkerGroupStartupTimeoutError)
    return (BusyError if busy else LostError)(first_line(failure))


def as_sentence(cause: BaseException) -> StageFailedError:
    """A bug in one line."""
    what = f"a training process failed: {type(cause).__name__}: {first_line(cause)}"
    return StageFailedError(what, where="the traceback is in the run's log")


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says anything."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)

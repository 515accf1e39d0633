"""Start a world of training processes with Ray Train and bring back what they say. A Ray door.

Nothing is reported to Ray Train as a checkpoint: a restarted gang finds its own by stage key.
"""

import os
import re
import secrets
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.ray_cluster import import_ray
from schemas.errors import InfrastructureError, PausedError, StageFailedError, VitrailError

MAX_RESTARTS = 2
"""Times that a gang is started again after a process or a connection was lost."""
MAX_WAITS = 60
"""Times, of about a minute each, that a gang waits for room on a cluster that others use."""
_PEER = re.compile(r"connection|peer|socket|gloo|nccl|timed out|timeout|broken pipe", re.IGNORECASE)
"""In the text of torch's plain RuntimeErrors that mean a lost peer."""
_QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon an end is noticed
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths of a stage may be relative to the driver's folder
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


@dataclass(frozen=True)
class Gang:
    """The processes of one training world."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    name: str
    """Of this attempt at this stage; Ray Train must never meet it twice with other content."""
    storage: Path
    """Folder for Ray Train's own notes."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment of the processes, in place before they import anything."""


def run_gang(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    config: dict[str, Any],
    gang: Gang,
    *,
    say: Callable[[str], None],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Run `function(config)` in every process of `gang`, inside a torch process group.

    A lost process ends the gang, which then starts again; `function` goes on from what it has kept
    on disk itself.

    Args:
        function: Importable by name in a worker; called with `config`.
        config: Picklable.
        gang: Processes and their resources.
        say: Told when the gang has to wait or to start again, and the traceback of a bug.
        stop: Asked while the gang waits for room; the processes look for themselves later.

    Returns:
        What rank 0 returned.

    Raises:
        VitrailError: The one that a worker raised, as itself; it is not tried again.
        PausedError: If a worker raised it, or if asked to stop while waiting for room.
        StageFailedError: If the cluster can never hold the gang or had no room for an hour, or if
            a worker raised anything else that is no loss of a process.
        InfrastructureError: If processes were lost more often than `MAX_RESTARTS`.
    """
    require_room(gang, [node["Resources"] for node in import_ray().nodes() if node["Alive"]])
    for start in range(MAX_RESTARTS + 1):
        try:
            answer = _fit_in_turn(function, config, gang, say=say, stop=stop)
        except _LostError as lost:
            reason = str(lost)
            if start < MAX_RESTARTS:
                say(f"a training process was lost ({reason}); starting all of them again")
            continue
        if isinstance(answer, PausedError):
            raise answer
        return answer
    raise InfrastructureError(
        f"training processes of {gang.name} were lost {MAX_RESTARTS + 1} times, last so: {reason}",
        hint="run again; training goes on from the last checkpoint",
    )


def require_room(gang: Gang, nodes: Iterable[Mapping[str, float]]) -> None:
    """Refuse a gang that would wait for ever.

    Args:
        gang: Processes and their resources.
        nodes: The whole resources of every living node, busy or not.

    Raises:
        StageFailedError: Naming what was asked, what there is, and what to set.
    """
    held = list(nodes)
    asked = {"CPU": gang.cpus_per_worker, "GPU": gang.gpus_per_worker}
    needs = {name: amount for name, amount in asked.items() if amount > 0}
    # A worker lives on one node, so what is left over on several nodes cannot be added up.
    places = sum(
        min((int(node.get(name, 0.0) / need + 1e-6) for name, need in needs.items()), default=0)
        for node in held
    )
    if not needs or places >= gang.workers:
        return
    has = {name: sum(node.get(name, 0.0) for node in held) for name in asked}
    raise StageFailedError(
        f"{gang.workers} training worker(s) with {gang.cpus_per_worker:g} CPU and "
        f"{gang.gpus_per_worker:g} GPU each do not fit: the cluster has {has['CPU']:g} CPU and "
        f"{has['GPU']:g} GPU on {len(held)} node(s), which is room for {places}",
        hint=f"set resources.workers to {places} or less"
        if places
        else "set resources.cpus_per_worker and resources.gpus_per_worker to what one node has",
    )


class _LostError(Exception):
    """A process or a connection between processes is gone; another start may go well."""


class _BusyError(Exception):
    """Others hold the resources; nothing has been started."""


class _InWorker:
    """`function` as every process runs it: a pause is an answer, since all ranks agree on it.

    The traceback of anything else becomes a note, since only notes travel with an exception.
    """

    def __init__(self, function: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._function = function

    def __call__(self, config: dict[str, Any]) -> dict[str, Any] | PausedError:
        try:
            return self._function(config)
        except PausedError as paused:
            return paused
        except VitrailError:
            raise
        except Exception as error:
            error.add_note(traceback.format_exc())
            raise


def _fit_in_turn(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    config: dict[str, Any],
    gang: Gang,
    *,
    say: Callable[[str], None],
    stop: Callable[[], bool],
) -> dict[str, Any] | PausedError:
    """One start of the gang, as soon as the cluster has room for it."""
    for wait in range(MAX_WAITS):
        try:
            return _fit(function, config, gang, say=say)
        except _BusyError:
            if stop():
                return PausedError("stopped on request while waiting for room on the cluster")
            if wait == 0:
                say(f"the cluster is busy; waiting for room for {gang.workers} training worker(s)")
    raise StageFailedError(
        f"the cluster had no room for {gang.workers} training worker(s) in {MAX_WAITS} tries of "
        "about a minute",
        hint="run again when it is free (`ray status` tells), or ask for less in resources",
    )


def _fit(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    config: dict[str, Any],
    gang: Gang,
    *,
    say: Callable[[str], None],
) -> dict[str, Any] | PausedError:
    """Rank 0's answer from one start of the gang."""
    import_ray()
    os.environ.update(_QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's parts warn of each other
        from ray.train import ControllerError, WorkerGroupError
        from ray.train.torch import TorchConfig, TorchTrainer

        trainer = TorchTrainer(
            _InWorker(function),
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if gang.gpus_per_worker else "gloo"),
            scaling_config=_scaling(gang),
            run_config=_run_config(gang),
        )
        try:
            answer: dict[str, Any] | PausedError = trainer.fit().return_value
        except WorkerGroupError as error:
            blamed = _verdict(error.worker_failures)
            if isinstance(blamed, VitrailError | _LostError):
                raise blamed from None
            say("\n".join(getattr(blamed, "__notes__", [str(error)])))
            raise _as_sentence(blamed) from None
        except ControllerError as error:
            raise _not_begun(error.controller_failure) from error
        return answer


def _scaling(gang: Gang) -> Any:
    from ray.train import ScalingConfig

    resources = {"CPU": gang.cpus_per_worker}
    if gang.gpus_per_worker:
        resources["GPU"] = gang.gpus_per_worker
    return ScalingConfig(
        num_workers=gang.workers,
        use_gpu=gang.gpus_per_worker > 0,
        resources_per_worker=resources,
    )


def _run_config(gang: Gang) -> Any:
    from ray.train import FailureConfig, RunConfig
    from ray.train.v2.api.config import LoggingConfig

    return RunConfig(
        # An equal name would make Ray Train take up its notes on the run before.
        name=f"{gang.name}-{secrets.token_hex(4)}",
        storage_path=str(gang.storage.absolute()),
        # Ray Train would try for ever to find room, and say so nowhere.
        failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        worker_runtime_env={"env_vars": gang.env},
        logging_config=LoggingConfig(log_level="ERROR"),
    )


def _not_begun(failure: Exception) -> Exception:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    busy = isinstance(failure, WorkerGroupStartupTimeoutError)
    return (_BusyError if busy else _LostError)(_first_line(failure))


def _verdict(failures: Mapping[int, BaseException]) -> BaseException:
    """The failure that counts: a sentence for the user, a bug as it was raised, or a loss.

    A rank that raises takes the others' connections with it, so the first rank that gives a reason
    of its own counts, whatever the others say.
    """
    # Ray Train may wrap what a worker raises, and has no public name for what is inside.
    causes = [getattr(failures[rank], "_base_exc", failures[rank]) for rank in sorted(failures)]
    own = [cause for cause in causes if isinstance(cause, VitrailError)]
    died = any(_is_rays(cause) for cause in causes)
    bugs = [cause for cause in causes if not _is_loss(cause, died=died)]
    if own or bugs:
        return (own or bugs)[0]
    return _LostError(_first_line(causes[0]) if causes else "no reason given")


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
    if not isinstance(cause, RuntimeError) or isinstance(cause, torch.OutOfMemoryError):
        return False
    return died or _PEER.search(str(cause)) is not None


def _as_sentence(cause: BaseException) -> StageFailedError:
    import torch

    where = "the traceback is in the run's log"
    if isinstance(cause, torch.OutOfMemoryError):
        return StageFailedError(
            f"a training process ran out of GPU memory: {_first_line(cause)}",
            where=where,
            hint="set resources.micro_batch smaller (the steps stay the same), or a higher "
            "resources.zero_stage",
        )
    what = f"a training process failed: {type(cause).__name__}: {_first_line(cause)}"
    return StageFailedError(what, where=where)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)

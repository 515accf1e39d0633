"""Start a world of training processes with Ray Train and bring back what they say. A Ray door.

Nothing is reported to Ray Train as a checkpoint: a restarted gang finds its own by stage key.
"""

import os
import secrets
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.ray_cluster import import_ray
from schemas.errors import InfrastructureError, PausedError, StageFailedError, VitrailError

MAX_RESTARTS = 2
"""Times that a gang is started again after a process or a connection was lost."""
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
) -> dict[str, Any]:
    """Run `function(config)` in every process of `gang`, inside a torch process group.

    A lost process ends the gang, which then starts again; `function` goes on from what it has kept
    on disk itself.

    Args:
        function: Importable by name in a worker; called with `config`.
        config: Picklable.
        gang: Processes and their resources.
        say: Told when the gang has to start again.

    Returns:
        What rank 0 returned.

    Raises:
        VitrailError: The one that a worker raised, as itself; it is not tried again.
        StageFailedError: If a worker raised anything else that is no loss of a process.
        InfrastructureError: If processes were lost more often than `MAX_RESTARTS`.
    """
    for start in range(MAX_RESTARTS + 1):
        try:
            answer = _fit(function, config, gang)
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


class _LostError(Exception):
    """A process or a connection between processes is gone; another start may go well."""


class _InWorker:
    """`function` as every process runs it: a pause is an answer, since all ranks agree on it."""

    def __init__(self, function: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._function = function

    def __call__(self, config: dict[str, Any]) -> dict[str, Any] | PausedError:
        try:
            return self._function(config)
        except PausedError as paused:
            return paused


def _fit(
    function: Callable[[dict[str, Any]], dict[str, Any]], config: dict[str, Any], gang: Gang
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
            raise _verdict(error.worker_failures) from None
        except ControllerError as error:
            raise _LostError(_first_line(error.controller_failure)) from error
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
        failure_config=FailureConfig(max_failures=0),
        worker_runtime_env={"env_vars": gang.env},
        logging_config=LoggingConfig(log_level="ERROR"),
    )


def _verdict(failures: dict[int, Any]) -> BaseException:
    """What a failed start means: a sentence for the user, a bug, or a loss.

    A rank that raises takes the others' connections with it, so the first rank that gives a reason
    of its own counts, whatever the others say.
    """
    # Ray Train wraps what a worker raises, and has no public name for what is inside.
    causes = [getattr(error, "_base_exc", error) for _, error in sorted(failures.items())]
    for cause in causes:
        if isinstance(cause, VitrailError):
            return cause
    for cause, wrapped in zip(causes, (failures[rank] for rank in sorted(failures)), strict=True):
        if not _is_loss(cause):
            return StageFailedError(f"a training process failed: {_first_line(cause)}\n{wrapped}")
    return _LostError(_first_line(causes[0]) if causes else "no reason given")


def _is_loss(cause: BaseException) -> bool:
    """Lost actors and health checks are Ray's own errors; torch raises RuntimeError for peers."""
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError

    return isinstance(cause, RayError | RayTrainError | RuntimeError | ConnectionError)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""Start a world of training processes with Ray Train and bring back what they say. A Ray door.

Nothing is reported to Ray Train as a checkpoint: a restarted gang finds its own by stage key.
"""

import os
import secrets
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.gang_sizes import largest_that_fits, places
from infra.ray_cluster import import_ray
from infra.ray_gang_failures import (
    BusyError,
    LostError,
    as_sentence,
    first_line,
    not_begun,
    verdict,
)
from schemas.errors import InfrastructureError, PausedError, StageFailedError, VitrailError

MAX_RESTARTS = 2
"""Times in a row, without progress in between, that a gang is started again after a loss."""
MAX_WAITS = 60
"""Times, of about a minute each, that a gang waits for room on a cluster that others use."""
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon an end is noticed
    # A process that does not answer for so long is dead. Not the training thread answers, so that
    # neither a long step nor a slow disk looks like death.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths of a stage may be relative to the driver's folder
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
Work = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Gang:
    """The processes of one training world."""

    worlds: tuple[int, ...]
    """Permitted numbers of processes, the largest first; each start takes the first that fits."""
    cpus_per_worker: float
    gpus_per_worker: float
    name: str
    """Of this attempt at this stage; Ray Train must never meet it twice with other content."""
    storage: Path
    """Folder for notes of ours and Ray Train's; of this stage alone, and outlives an attempt."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment of the processes, in place before they import anything."""

    @property
    def needs(self) -> dict[str, float]:
        """Resources of one process, as Ray counts them."""
        asked = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        return {name: amount for name, amount in asked.items() if amount > 0}


@dataclass(frozen=True)
class Foreman:
    """Who sees a gang and may stop it."""

    say: Callable[[str], None]
    """Told when the gang waits, starts again or is smaller than it might be, and of a bug."""
    stop: Callable[[], bool]
    """Asked while the gang waits for room; the processes look for themselves later."""
    progress: Callable[[], int] = field(default=lambda: 0)
    """A number that has grown where something was kept since it was asked last."""


def run_gang(
    function: Work, config: dict[str, Any], gang: Gang, foreman: Foreman
) -> dict[str, Any]:
    """Run `function(config)` in every process of `gang`, inside a torch process group.

    A lost process ends the gang, which then starts again, with as many processes as fit by then;
    `function` goes on from what it has kept on disk itself.

    Args:
        function: Importable by name in a worker; called with `config`.
        config: Picklable.
        gang: Processes and their resources.
        foreman: Who is told and asked.

    Returns:
        What rank 0 returned.

    Raises:
        VitrailError: The one that a worker raised, as itself; it is not tried again.
        PausedError: If a worker raised it, or if asked to stop while waiting for room.
        OutOfMemoryError: If a process wanted more memory than there is.
        StageFailedError: If the cluster can never hold the gang or had no room for an hour, or if
            a worker raised anything else that is no loss of a process.
        InfrastructureError: If processes were lost more often than `MAX_RESTARTS`.
    """
    require_room(gang, _living_nodes())
    losses, kept = 0, foreman.progress()
    while True:
        try:
            answer = _fit_in_turn(function, config, gang, foreman)
        except LostError as lost:
            before, kept = kept, foreman.progress()
            losses = 1 if kept > before else losses + 1
            if losses > MAX_RESTARTS:
                raise InfrastructureError(
                    f"training processes of {gang.name} were lost {losses} times without a "
                    f"checkpoint in between, last so: {lost}",
                    hint="run again; training goes on from the last checkpoint",
                ) from lost
            foreman.say(f"a training process was lost ({lost}); starting all of them again")
            continue
        if isinstance(answer, PausedError):
            raise answer
        return answer


def require_room(gang: Gang, nodes: Iterable[Mapping[str, float]]) -> None:
    """Refuse a gang that would wait for ever.

    Args:
        gang: Processes and their resources.
        nodes: The whole resources of every living node, busy or not.

    Raises:
        StageFailedError: Naming what was asked, what there is, and what to set.
    """
    held, fewest = list(nodes), gang.worlds[-1]
    room = places(gang.needs, held)
    if not gang.needs or room >= fewest:
        return
    has = {name: sum(node.get(name, 0.0) for node in held) for name in ("CPU", "GPU")}
    raise StageFailedError(
        f"{fewest} training worker(s) with {gang.cpus_per_worker:g} CPU and "
        f"{gang.gpus_per_worker:g} GPU each do not fit: the cluster has {has['CPU']:g} CPU and "
        f"{has['GPU']:g} GPU on {len(held)} node(s), which is room for {room}",
        hint=f"set resources.workers to {room} or less"
        if room
        else "set resources.cpus_per_worker and resources.gpus_per_worker to what one node has",
    )


def _living_nodes() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in import_ray().nodes() if node["Alive"]]


class _InWorker:
    """`function` as every process runs it: a pause is an answer, since all ranks agree on it.

    The traceback of anything else becomes a note, since only notes travel with an exception.
    """

    def __init__(self, function: Work) -> None:
        self._function = function

    def __call__(self, config: dict[str, Any]) -> dict[str, Any] | PausedError:
        # DeepSpeed's name for what torch and Ray call the local world size: processes of this node.
        os.environ["LOCAL_SIZE"] = os.environ["LOCAL_WORLD_SIZE"]
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
    function: Work, config: dict[str, Any], gang: Gang, foreman: Foreman
) -> dict[str, Any] | PausedError:
    """One start of the gang, as soon as the cluster has room for it."""
    told = gang.worlds[0]
    for wait in range(MAX_WAITS):
        room = places(gang.needs, _living_nodes())
        # Where too few nodes are left, Ray itself waits for others to come.
        world = largest_that_fits(gang.worlds, room, busy=wait) or gang.worlds[-1]
        if world != told:
            foreman.say(f"starts {world} of at most {gang.worlds[0]} workers, with room for {room}")
            told = world
        try:
            return _fit(function, config, gang, world=world, say=foreman.say)
        except BusyError:
            if foreman.stop():
                return PausedError("stopped on request while waiting for room on the cluster")
            if wait == 0:
                foreman.say(f"the cluster is busy; waiting for room for {world} training worker(s)")
    raise StageFailedError(
        f"the cluster had no room for {world} training worker(s) in {MAX_WAITS} tries of "
        "about a minute",
        hint="run again when it is free (`ray status` tells), or ask for less in resources",
    )


def _fit(
    function: Work,
    config: dict[str, Any],
    gang: Gang,
    *,
    world: int,
    say: Callable[[str], None],
) -> dict[str, Any] | PausedError:
    """Rank 0's answer from one start of the gang."""
    ray = import_ray()
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's parts warn of each other
        from ray.train import ControllerError, WorkerGroupError
        from ray.train.torch import TorchConfig
        from ray.train.v2.api.exceptions import PreemptionError

        from infra.ray_leftovers import Trainer, free_places

        free_places(gang.storage)
        trainer = Trainer(
            _InWorker(function),
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if gang.gpus_per_worker else "gloo"),
            scaling_config=_scaling(gang, world),
            run_config=_run_config(gang),
        )
        try:
            answer: dict[str, Any] | PausedError = trainer.fit().return_value
        except WorkerGroupError as error:
            blamed = verdict(error.worker_failures)
            if isinstance(blamed, VitrailError | LostError):
                raise blamed from None
            say("\n".join(getattr(blamed, "__notes__", [str(error)])))
            raise as_sentence(blamed) from None
        except ControllerError as error:
            raise not_begun(error.controller_failure) from error
        except (PreemptionError, ray.exceptions.RayError) as error:
            raise LostError(first_line(error)) from error  # a node, or Ray Train's controller
        finally:
            free_places(gang.storage)
        return answer


def _scaling(gang: Gang, world: int) -> Any:
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=world,
        use_gpu=gang.gpus_per_worker > 0,
        resources_per_worker=gang.needs,
    )


def _run_config(gang: Gang) -> Any:
    from ray.train import FailureConfig, RunConfig
    from ray.train.v2.api.config import LoggingConfig

    from infra.ray_leftovers import NotePlaces

    return RunConfig(
        # An equal name would make Ray Train take up its notes on the run before.
        name=f"{gang.name}-{secrets.token_hex(4)}",
        storage_path=str(gang.storage.absolute()),
        # Ray Train would try for ever, with as many processes as before, and say so nowhere.
        failure_config=FailureConfig(
            max_failures=0, controller_failure_limit=0, max_preemption_failures=0
        ),
        callbacks=[NotePlaces(gang.storage.absolute())],
        worker_runtime_env={"env_vars": gang.env},
        logging_config=LoggingConfig(log_level="ERROR"),
    )

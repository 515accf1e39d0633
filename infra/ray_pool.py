"""`TaskPool` on Ray: many small pieces of work, bounded in flight. One of Ray's doors."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from infra.ray_cluster import import_ray
from schemas.errors import DataError, InfrastructureError, UnreachableError

X = TypeVar("X")
Y = TypeVar("Y")

_TASK_RETRIES = 3
"""How often a task is repeated that was lost with its process or node, or lacked something there;
other exceptions of the task itself are not."""
_TASKS_PER_CORE = 2
"""In flight: one that runs and one that waits, so that no core is idle between two."""


class RayPool:
    """Fulfils `pipeline.ports.TaskPool`: one Ray task for each item, one core for each task.

    What is in flight follows the cluster as it grows and shrinks; what is not is not drawn from
    the items yet. Tasks exchange files, so nothing but items and small results is in Ray's memory.
    """

    def map(
        self,
        function: Callable[[X], Y],
        items: Iterable[X],
        *,
        label: str,
        memory_bytes: int = 0,
        gpus: float = 0,
        at_once: int | None = None,
    ) -> Iterator[tuple[X, Y]]:
        """Yield `(item, result)` as they end; no more than two for each core are in flight.

        Raises:
            DataError: If no node has the GPUs of a task.
        """
        ray = import_ray()
        _check_gpus(ray, gpus, label)
        remote = ray.remote(
            num_cpus=1,
            num_gpus=gpus,
            memory=_reservation(ray, memory_bytes),
            max_retries=_TASK_RETRIES,
            retry_exceptions=[InfrastructureError, UnreachableError],
        )(function).options(name=label)
        running: dict[Any, X] = {}
        try:
            yield from _drive(ray, remote, iter(items), running, at_once)
        finally:
            for ref in running:  # the caller stopped early or a task failed: nothing runs on
                ray.cancel(ref, force=True)


def _reservation(ray: Any, memory_bytes: int) -> int | None:
    """What each task asks of its node: no more than the largest node has, or it would never run."""
    nodes = [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]]
    return min(memory_bytes, int(max(nodes, default=0))) or None


def _check_gpus(ray: Any, gpus: float, label: str) -> None:
    """Ray would wait for ever for a node that there is not."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((resources.get("GPU", 0) for resources in nodes), default=0)
    if gpus > most:
        raise DataError(
            f"each task of {label} is to have {gpus:g} GPU, and no node has more than {most:g}",
            hint="set gpus_per_worker to 0, or use a cluster with GPUs",
        )


def _drive(
    ray: Any, remote: Any, source: Iterator[X], running: dict[Any, X], at_once: int | None
) -> Iterator[tuple[X, Any]]:
    exhausted = False
    while running or not exhausted:
        limit = _TASKS_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
        limit = limit if at_once is None else min(limit, at_once)
        while not exhausted and len(running) < limit:
            try:
                item = next(source)
            except StopIteration:
                exhausted = True
            else:
                running[remote.remote(item)] = item
        if not running:
            return
        ready, _ = ray.wait(list(running), num_returns=1)
        for ref in ready:
            item = running.pop(ref)
            yield item, _result(ray, ref)


def _result(ray: Any, ref: Any) -> Any:
    """The value of a finished task; its own exceptions as themselves, Ray's as infrastructure."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise InfrastructureError(f"a Ray task could not finish: {error}") from error

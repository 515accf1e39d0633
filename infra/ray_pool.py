"""`TaskPool` on Ray: many small pieces of work, bounded in flight. One of Ray's doors."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from infra.ray_cluster import import_ray
from schemas.errors import InfrastructureError

X = TypeVar("X")
Y = TypeVar("Y")

_TASK_RETRIES = 3
"""How often a task is repeated whose process died; exceptions of the task itself are not."""


class RayPool:
    """Fulfils `pipeline.ports.TaskPool`: one Ray task for each item, one core for each task."""

    def map(
        self, function: Callable[[X], Y], items: Iterable[X], *, label: str
    ) -> Iterator[tuple[X, Y]]:
        """Yield `(item, result)` as they end; twice as many tasks as cores are in flight."""
        ray = import_ray()
        remote = ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)(function).options(name=label)
        limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        running: dict[Any, X] = {}
        try:
            yield from _drive(ray, remote, iter(items), running, limit)
        finally:
            for ref in running:  # the caller stopped early or a task failed: nothing runs on
                ray.cancel(ref, force=True)


def _drive(
    ray: Any, remote: Any, source: Iterator[X], running: dict[Any, X], limit: int
) -> Iterator[tuple[X, Any]]:
    exhausted = False
    while running or not exhausted:
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

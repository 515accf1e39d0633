"""`StageRunner` on Ray: each stage is one Ray task that costs no core of its own. A Ray door."""

from collections.abc import Callable, Sequence
from typing import Any

from infra.ray_cluster import import_ray
from schemas.artifacts import StageResult
from schemas.errors import InfrastructureError
from schemas.runs import StageRequest


class RayStageRunner:
    """Fulfils `pipeline.ports.StageRunner`.

    A stage that fans out (ingest, filter, training) takes no core itself, since its tasks and
    workers do; `cores_of` says what the others take.
    """

    def __init__(
        self,
        execute: Callable[[StageRequest], StageResult],
        *,
        cores_of: Callable[[StageRequest], float],
    ) -> None:
        """Run `execute` in the cluster that this process is connected to."""
        self._ray = import_ray()
        # Retries are decided by the controller, which knows the class of the failure.
        self._remote = self._ray.remote(max_retries=0)(execute)
        self._cores_of = cores_of
        self._running: dict[Any, StageRequest] = {}

    def submit(self, request: StageRequest) -> None:
        """Begin a stage; returns at once."""
        task = self._remote.options(num_cpus=self._cores_of(request), name=request.stage)
        self._running[task.remote(request)] = request

    def wait(
        self, timeout_seconds: float
    ) -> Sequence[tuple[StageRequest, StageResult | BaseException]]:
        """Stages that ended since the last call; empty when the time is over first."""
        if not self._running:
            return ()
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout_seconds)
        return [(self._running.pop(ref), self._outcome(ref)) for ref in ready]

    def close(self) -> None:
        """Cancel what still runs."""
        for ref in self._running:
            self._ray.cancel(ref, force=True)
        self._running.clear()

    def _outcome(self, ref: Any) -> StageResult | BaseException:
        exceptions = self._ray.exceptions
        try:
            result: StageResult = self._ray.get(ref)
        except exceptions.RayTaskError as error:
            cause: BaseException = error.cause
            return cause
        except exceptions.RayError as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            return InfrastructureError(f"the process of the stage was lost: {first}")
        return result

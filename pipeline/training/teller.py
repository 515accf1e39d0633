"""What people see of a run while it goes on: curves, lines and a bar, told by rank 0."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.ports import MetricLog, PaceLog, StopSignal
from pipeline.training.engine import Engine
from pipeline.training.guard import BAD_STEPS
from pipeline.training.meter import Gauge, Meter, in_words
from pipeline.training.objectives.common import LabelledBatch
from schemas.checkpoint import RunProgress
from schemas.runs import TrainingPace

CURVE_POINTS = 200
"""About this many points of each learning curve, at steps that only the length decides."""
LINES = 10
"""About as many lines are said of a run."""


class Batches(Protocol):
    """This rank's share of the data: from any step on, without end, a function of the step."""

    def batches(self, start_step: int) -> Iterator[tuple[LabelledBatch, ...]]:
        """One tuple of equally large micro-batches for each optimizer step."""
        ...

    def figures(self) -> dict[str, float]:
        """Metrics of the loading on this rank since they were asked for last."""
        ...


@dataclass(frozen=True)
class Watch:
    """Who sees and who may stop a run; of all but `gauge` only rank 0's is used."""

    metrics: MetricLog | None = None
    stop: StopSignal | None = None
    pace: PaceLog | None = None
    say: Callable[[str], None] = field(default=lambda _line: None)
    gauge: Gauge = field(default_factory=Gauge)
    clock: Callable[[], float] = time.perf_counter


class Teller:
    """Tells how training goes; every rank makes the same calls."""

    def __init__(self, engine: Engine, loader: Batches, watch: Watch, total_steps: int) -> None:
        """Begin to measure."""
        self._engine = engine
        self._loader = loader
        self._watch = watch
        self._total_steps = total_steps
        self._meter = Meter(watch.clock, watch.gauge, world_size=engine.world_size)

    def timed(self, stream: Iterator[tuple[LabelledBatch, ...]]) -> tuple[LabelledBatch, ...]:
        """The next batch; waiting for it counts."""
        waited_from = self._watch.clock()
        micro_batches = next(stream)
        self._meter.waited(self._watch.clock() - waited_from)
        return micro_batches

    def stepped(
        self,
        progress: RunProgress,
        micro_batches: tuple[LabelledBatch, ...],
        *,
        loss: float,
        rate: float,
        norm: float,
    ) -> None:
        """A step has been done."""
        step = progress.step
        self._meter.stepped(sum(len(b.label_B) for b in micro_batches) * self._engine.world_size)
        is_edge = step in (1, self._total_steps)
        points = {"train/loss": loss, "train/learning_rate": rate, "train/grad_norm": norm}
        if progress.loss_scale is not None:
            points["train/loss_scale"] = progress.scale
        if is_edge or step % max(1, self._total_steps // CURVE_POINTS) == 0:
            self._log(points | self._figures(step, at_once=is_edge), step)
        if self._engine.rank:
            return
        pace = self._pace(step, loss)
        if self._watch.pace:
            self._watch.pace.show(pace)
        if step == self._total_steps or step % max(1, self._total_steps // LINES) == 0:
            self._watch.say(", ".join([f"step {step} of {self._total_steps}", *in_words(pace)]))

    def scaled(self, before: RunProgress, progress: RunProgress) -> None:
        """What the loss is multiplied by was, and is."""
        if self._engine.rank == 0 and progress.scale < before.scale:
            self._watch.say(
                f"step {progress.step}: the gradients are too large for fp16 and nothing is "
                f"updated; loss scale {before.scale:g} -> {progress.scale:g}"
            )

    def bad_step(self, progress: RunProgress, *, loss: float, norm: float) -> None:
        """A step has updated nothing."""
        if self._engine.rank == 0:
            self._watch.say(
                f"step {progress.step}: loss {loss}, gradient norm {norm}: nothing is updated "
                f"({progress.bad_steps} of {BAD_STEPS} in a row)"
            )

    def validated(self, progress: RunProgress, figures: dict[str, float]) -> None:
        """The model has been measured."""
        self.pauses_over()
        self._log({f"validation/{name}": value for name, value in figures.items()}, progress.step)
        if self._engine.rank:
            return
        said = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        best = progress.standing.best_step
        mark = "the best so far" if best == progress.step else f"the best was at step {best}"
        self._watch.say(f"step {progress.step}: validation {said}; {mark}")

    def pauses_over(self) -> None:
        """What was done since the last step is not training."""
        self._meter.restart()

    def _figures(self, step: int, *, at_once: bool) -> dict[str, float]:
        """Speed, loading and memory; all ranks must ask."""
        memory = self._engine.highest(self._watch.gauge.memory_bytes())
        pace = self._meter.pace(self._total_steps - step)
        return {
            **self._meter.read(at_once=at_once),
            **({} if pace is None else {"train/eta_seconds": pace.eta_seconds}),
            **({"train/memory_bytes": float(memory)} if memory else {}),
            **self._loader.figures(),
        }

    def _pace(self, step: int, loss: float) -> TrainingPace:
        pace = self._meter.pace(self._total_steps - step)
        return TrainingPace(
            step=step,
            total_steps=self._total_steps,
            loss=loss if math.isfinite(loss) else None,
            images_per_second=None if pace is None else pace.images_per_second,
            eta_seconds=None if pace is None else pace.eta_seconds,
        )

    def _log(self, points: dict[str, float], step: int) -> None:
        if self._watch.metrics and not self._engine.rank:
            self._watch.metrics.log(points, step=step)

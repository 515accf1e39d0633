"""The one training loop: pre-training, fine-tuning and the search all run it. No Ray in here."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.ports import MetricLog, StopSignal
from pipeline.training.engine import Engine
from pipeline.training.guard import BAD_STEPS, give_up_or_roll_back
from pipeline.training.keeper import CheckpointKeeper
from pipeline.training.meter import Meter
from pipeline.training.objectives.common import LabelledBatch
from pipeline.training.schedule import learning_rate
from pipeline.training.validation import Validator
from schemas.checkpoint import RunProgress
from schemas.errors import PausedError
from schemas.optim import OptimSpec

CURVE_POINTS = 200
"""About this many points of each learning curve, at steps that only the length decides."""


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
    """Who sees and who may stop a run; only rank 0's is used."""

    metrics: MetricLog | None = None
    stop: StopSignal | None = None
    say: Callable[[str], None] = field(default=lambda _line: None)
    clock: Callable[[], float] = time.perf_counter


def train(  # noqa: PLR0913 - all are named where it is called
    engine: Engine,
    loader: Batches,
    *,
    optim: OptimSpec,
    total_steps: int,
    keeper: CheckpointKeeper | None,
    watch: Watch,
    validator: Validator | None = None,
    back: RunProgress | None = None,
) -> RunProgress:
    """Take `engine` from its last checkpoint, or from the start, to `total_steps` steps.

    Every rank runs it, with its own share of the batches; they stay in step because all decisions
    are functions of the step number or agreed among them.

    Args:
        engine: Model and optimizer, new; loads from `keeper` if there is something to load.
        loader: Batches of this rank.
        optim: The learning rate's schedule; the engine has the rest of it.
        total_steps: Length of the whole run, steps done before included.
        keeper: Where checkpoints go; None trains without.
        watch: Metrics, stop signal, progress lines and clock.
        validator: Measures the model now and then, and may end the run early.
        back: Of a run that is rolled back: what `RollBackError` says.

    Returns:
        Where the run ended.

    Raises:
        PausedError: On request, after a checkpoint.
        RollBackError: When the run is to be taken back, by a new engine.
        StageFailedError: When the loss is no longer finite.
        IntegrityError: When the checkpoint to go on from is not what was saved.
    """
    # ---- where we stand -----------------------------------------------------------------------
    progress = _start(engine, keeper, back)
    teller = _Teller(engine, loader, watch, total_steps)
    stream = loader.batches(progress.step)

    while not _is_over(progress, total_steps, validator):
        # ---- one optimizer step ---------------------------------------------------------------
        micro_batches = teller.timed(stream)
        loss = engine.forward_backward(micro_batches, step=progress.step)
        rate = learning_rate(progress.step, optim, total_steps)
        norm = engine.step(rate)  # updates nothing where it is not finite
        progress = progress.after_step(loss, norm)

        # ---- what people see ------------------------------------------------------------------
        teller.stepped(progress.step, micro_batches, loss=loss, rate=rate, norm=norm)
        if progress.bad_steps:
            teller.bad_step(progress, loss=loss, norm=norm)
            give_up_or_roll_back(progress, optim)

        # ---- what it is worth -----------------------------------------------------------------
        if validator and (progress.step == total_steps or validator.is_due(progress.step)):
            figures = validator.run(engine)
            progress = validator.judged(progress, figures)
            teller.validated(progress, figures)

        # ---- what outlives us -----------------------------------------------------------------
        ends = _is_over(progress, total_steps, validator)
        stops = not ends and engine.agree(_asked_to_stop(watch, leads=engine.rank == 0))
        if keeper and (ends or stops or keeper.is_due(progress)):
            keeper.save(engine, progress, waits=ends or stops)
            teller.pauses_over()
        if stops:
            kept = "with a checkpoint" if keeper else "without a checkpoint"
            raise PausedError(
                f"stopped on request after step {progress.step} of {total_steps}, {kept}"
            )

    return progress


def _start(
    engine: Engine, keeper: CheckpointKeeper | None, back: RunProgress | None
) -> RunProgress:
    """Load what there is to go on from."""
    if keeper is None:
        return RunProgress(step=0)
    return keeper.resume(engine) if back is None else keeper.roll_back(engine, back)


def _is_over(progress: RunProgress, total_steps: int, validator: Validator | None) -> bool:
    gives_up = validator is not None and validator.gives_up(progress.standing)
    return progress.step == total_steps or gives_up


def _asked_to_stop(watch: Watch, *, leads: bool) -> bool:
    return leads and watch.stop is not None and watch.stop.requested()


class _Teller:
    """What people see of a run: curves and lines, by rank 0 alone."""

    def __init__(self, engine: Engine, loader: Batches, watch: Watch, total_steps: int) -> None:
        self._engine = engine
        self._loader = loader
        self._watch = watch
        self._total_steps = total_steps
        self._meter = Meter(watch.clock)

    def timed(self, stream: Iterator[tuple[LabelledBatch, ...]]) -> tuple[LabelledBatch, ...]:
        """The next batch; waiting for it counts."""
        waited_from = self._watch.clock()
        micro_batches = next(stream)
        self._meter.waited(self._watch.clock() - waited_from)
        return micro_batches

    def stepped(
        self,
        step: int,
        micro_batches: tuple[LabelledBatch, ...],
        *,
        loss: float,
        rate: float,
        norm: float,
    ) -> None:
        """A step has been done."""
        self._meter.stepped(sum(len(b.label_B) for b in micro_batches) * self._engine.world_size)
        if self._engine.rank:
            return
        first, ends = step == 1, step == self._total_steps
        if first or ends or step % max(1, self._total_steps // CURVE_POINTS) == 0:
            points = {
                "train/loss": loss,
                "train/learning_rate": rate,
                "train/grad_norm": norm,
                **self._meter.read(at_once=first or ends),
                **self._loader.figures(),
            }
            self._log(points, step)
        if ends or step % max(1, self._total_steps // 10) == 0:
            self._watch.say(f"step {step} of {self._total_steps}, loss {loss:.4f}")

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
        if self._engine.rank:
            return
        self._log({f"validation/{name}": value for name, value in figures.items()}, progress.step)
        said = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        best = progress.standing.best_step
        mark = "the best so far" if best == progress.step else f"the best was at step {best}"
        self._watch.say(f"step {progress.step}: validation {said}; {mark}")

    def pauses_over(self) -> None:
        """What was done since the last step is not training."""
        self._meter.restart()

    def _log(self, points: dict[str, float], step: int) -> None:
        if self._watch.metrics:
            self._watch.metrics.log(points, step=step)

"""The one training loop: pre-training, fine-tuning and the search all run it. No Ray in here."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.ports import MetricLog, StopSignal
from pipeline.training.engine import Engine
from pipeline.training.keeper import CheckpointKeeper, Resumed
from pipeline.training.meter import Meter
from pipeline.training.objectives.common import LabelledBatch
from pipeline.training.schedule import learning_rate
from schemas.errors import PausedError, StageFailedError
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


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    steps: int
    train_loss: float
    """Mean loss of the global batch of the last step."""


def train(
    engine: Engine,
    loader: Batches,
    *,
    optim: OptimSpec,
    total_steps: int,
    keeper: CheckpointKeeper | None,
    watch: Watch,
) -> TrainResult:
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

    Raises:
        PausedError: On request, after a checkpoint.
        StageFailedError: When the loss is no longer finite.
        IntegrityError: When the checkpoint to go on from is not what was saved.
    """
    # ---- where we stand -----------------------------------------------------------------------
    resumed = keeper.resume(engine) if keeper else Resumed(0, math.nan)
    done, loss = resumed.step, resumed.train_loss
    leads = engine.rank == 0
    every = max(1, total_steps // CURVE_POINTS)
    meter = Meter(watch.clock)
    stream = loader.batches(done)

    while done < total_steps:
        # ---- one optimizer step ---------------------------------------------------------------
        waited_from = watch.clock()
        micro_batches = next(stream)
        meter.waited(watch.clock() - waited_from)

        loss = engine.forward_backward(micro_batches, step=done)
        if not math.isfinite(loss):
            # Checked before the update: the last checkpoint is still good.
            raise StageFailedError(
                f"the training loss became {loss} at step {done + 1} of {total_steps}",
                hint="lower optim.peak_lr, lengthen optim.warmup_steps or set optim.clip_norm",
            )
        rate = learning_rate(done, optim, total_steps)
        norm = engine.step(rate)
        done += 1
        meter.stepped(sum(len(b.label_B) for b in micro_batches) * engine.world_size)

        # ---- what people see ------------------------------------------------------------------
        ends = done == total_steps
        if leads and (done == 1 or ends or done % every == 0):
            points = {
                "train/loss": loss,
                "train/learning_rate": rate,
                "train/grad_norm": norm,
                **meter.read(at_once=done == 1 or ends),
                **loader.figures(),
            }
            if watch.metrics:
                watch.metrics.log(points, step=done)
        if leads and (ends or done % max(1, total_steps // 10) == 0):
            watch.say(f"step {done} of {total_steps}, loss {loss:.4f}")

        # ---- what outlives us -----------------------------------------------------------------
        stops = not ends and engine.agree(_asked_to_stop(watch, leads=leads))
        if keeper and (ends or stops or keeper.is_due(done)):
            keeper.save(engine, done, loss, waits=ends or stops)
            meter.restart()  # copying a checkpoint is not training
        if stops:
            kept = "with a checkpoint" if keeper else "without a checkpoint"
            raise PausedError(f"stopped on request after step {done} of {total_steps}, {kept}")

    return TrainResult(done, loss)


def _asked_to_stop(watch: Watch, *, leads: bool) -> bool:
    return leads and watch.stop is not None and watch.stop.requested()

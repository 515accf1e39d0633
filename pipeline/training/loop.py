"""The one training loop: pre-training, fine-tuning and the search all run it. No Ray in here."""

from pipeline.training.engine import Engine
from pipeline.training.guard import give_up_or_roll_back
from pipeline.training.keeper import CheckpointKeeper
from pipeline.training.schedule import learning_rate
from pipeline.training.teller import Batches, Teller, Watch
from pipeline.training.validation import Validator
from schemas.checkpoint import LossScale, RunProgress
from schemas.errors import PausedError, SpecError
from schemas.optim import OptimSpec

__all__ = ["Watch", "train"]


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
        SpecError: When more steps are done than there are to be.
        StageFailedError: When the loss is no longer finite.
        IntegrityError: When the checkpoint to go on from is not what was saved.
    """
    # ---- where we stand -----------------------------------------------------------------------
    progress = _start(engine, keeper, back)
    if progress.step > total_steps:
        raise SpecError(
            f"{progress.step} steps are done already, and duration says {total_steps}",
            hint="give a longer duration",
        )
    teller = Teller(engine, loader, watch, total_steps)
    stream = loader.batches(progress.step)

    while not _is_over(progress, total_steps, validator):
        # ---- one optimizer step ---------------------------------------------------------------
        micro_batches = teller.timed(stream)
        loss = engine.forward_backward(micro_batches, step=progress.step, scale=progress.scale)
        rate = learning_rate(progress.step, optim, total_steps)
        norm = engine.step(rate)  # updates nothing where it is not finite
        before, progress = progress, progress.after_step(loss, norm)

        # ---- what people see ------------------------------------------------------------------
        teller.stepped(progress, micro_batches, loss=loss, rate=rate, norm=norm)
        teller.scaled(before, progress)
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
        found = RunProgress(step=0)
    else:
        found = keeper.resume(engine) if back is None else keeper.roll_back(engine, back)
    scale = (found.loss_scale or LossScale()) if engine.scales_loss else None
    return found.revise(loss_scale=scale)


def _is_over(progress: RunProgress, total_steps: int, validator: Validator | None) -> bool:
    gives_up = validator is not None and validator.gives_up(progress.standing)
    return progress.step == total_steps or gives_up


def _asked_to_stop(watch: Watch, *, leads: bool) -> bool:
    return leads and watch.stop is not None and watch.stop.requested()

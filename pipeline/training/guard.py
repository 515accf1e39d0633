"""What a run may go back to, and when. Pure functions of its progress.

A step whose loss or gradients are not finite updates nothing: engines see to that. A checkpoint of
a run that was taken back says so, so that a kill at any moment ends in the same weights.
"""

from schemas.checkpoint import RunProgress
from schemas.errors import StageFailedError
from schemas.optim import OptimSpec
from schemas.validation import ValidationSpec

BAD_STEPS = 3
"""So many in a row are no accident."""


class RollBackError(Exception):
    """The run is to be taken back, by a new engine."""

    def __init__(self, progress: RunProgress) -> None:
        """Say how the run goes on: `step` as it was, tensors of `rolled_back_to`."""
        super().__init__(f"back to step {progress.rolled_back_to}")
        self.progress = progress


def give_up_or_roll_back(progress: RunProgress, optim: OptimSpec) -> None:
    """Return while there are few bad steps in a row.

    Raises:
        RollBackError: If the spec wants the run taken back and it was not taken there before.
        StageFailedError: Otherwise.
    """
    if progress.bad_steps < BAD_STEPS:
        return
    failed = StageFailedError(
        f"the loss or its gradients were not finite in {BAD_STEPS} steps in a row, up to step "
        f"{progress.step}",
        hint="lower optim.peak_lr, lengthen optim.warmup_steps, set optim.clip_norm, or look at "
        "the images of these steps (`vitrail data which`)",
    )
    if optim.roll_back_steps is None:
        raise failed
    first_bad = progress.step - BAD_STEPS
    target = first_bad - first_bad % optim.roll_back_steps
    if progress.rolled_back_to == target:
        raise failed
    raise RollBackError(progress.revise(bad_steps=0, rolled_back_to=target))


def needed_again(
    progress: RunProgress, optim: OptimSpec, validation: ValidationSpec | None
) -> set[int]:
    """Steps whose checkpoints may be wanted again: the best one's, and what a run goes back to."""
    needed = {progress.standing.best_step} if validation and validation.keep_best else set()
    every = optim.roll_back_steps
    if every is not None:
        # Should the last steps go on to be bad, what counts is where they began.
        needed |= {
            step - step % every for step in (progress.step, progress.step - progress.bad_steps)
        }
    return needed

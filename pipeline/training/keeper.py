"""When a checkpoint is written, who writes what, and how a run goes on from one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.training import checkpoint
from pipeline.training.engine import Engine
from pipeline.training.objectives.common import LabelledBatch
from pipeline.training.writing import ShareWriter
from schemas.backbones import BackboneSpec
from schemas.checkpoint import CHECKPOINT_STATE, CheckpointState, RunProgress
from schemas.errors import IntegrityError, SpecError
from schemas.resources import CheckpointSpec

PROBE_TOLERANCE = 1e-4
"""Largest relative difference of the probe batch's loss before a save and after a load."""

_WORDS = {
    "data_digest": "the data is",
    "global_samples": "batch.global_samples is",
    "model": "the model is",
}


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint belongs to."""

    key: str
    data_digest: str
    global_samples: int
    model: BackboneSpec
    versions: dict[str, str]


class CheckpointKeeper:
    """Writes the checkpoints of one run into one folder and finds the newest good one there."""

    def __init__(  # noqa: PLR0913 - all are named where it is called
        self,
        root: Path,
        *,
        identity: RunIdentity,
        when: CheckpointSpec,
        probe: LabelledBatch,
        say: Callable[[str], None],
        needed: Callable[[RunProgress], set[int]] = lambda _progress: set(),
        start: Path | None = None,
    ) -> None:
        """Hold a folder of checkpoints.

        Args:
            root: Folder that every rank can write; shared by all attempts at the same key.
            identity: Checked against what is found there.
            when: Interval and retention.
            probe: A fixed batch, equal on every rank; its loss proves that a load was faithful.
            say: Told, on rank 0, what a person should know.
            needed: The steps whose checkpoints may be wanted again, now or later: they are
                written and kept whatever `when` says.
            start: Folder of another stage's checkpoints, from which a run without its own goes on.
        """
        self._root = root
        self._identity = identity
        self._when = when
        self._probe = probe
        self._say = say
        self._needed = needed
        self._start = start
        self._writer: ShareWriter | None = None

    def is_due(self, progress: RunProgress) -> bool:
        """Whether a checkpoint belongs here, apart from the last."""
        return (
            progress.step in self._needed(progress) or progress.step % self._when.every_steps == 0
        )

    def resume(self, engine: Engine) -> RunProgress:
        """Load the newest complete checkpoint into `engine`, if there is one; all ranks call it.

        Raises:
            IntegrityError: If it belongs to another run, or the probe's loss is not as stored.
        """
        step = self._newest_step(engine, self._root, self._identity.key)
        if step == 0:
            return RunProgress(step=0) if self._start is None else self._go_on(engine, self._start)
        folder = self.folder(step)
        state = _state_of(folder)
        self._check_identity(folder, state)
        self._load(engine, folder, state)
        if engine.rank == 0:
            self._say(f"goes on from step {step}, written by {state.engine} x{state.world_size}")
        return state.progress()

    def _go_on(self, engine: Engine, start: Path) -> RunProgress:
        """Take over what another stage ended with: its tensors and its step."""
        step = self._newest_step(engine, start, None)
        if step == 0:
            raise IntegrityError(
                f"{start} holds no whole checkpoint to continue from",
                hint="vitrail run SPEC --force STAGE, with the stage that is continued",
            )
        folder = start / checkpoint.step_folder(step)
        state = _state_of(folder)
        for name in ("data_digest", "global_samples", "model"):
            if getattr(state, name) != getattr(self._identity, name):
                raise SpecError(
                    f"continue goes on with the same model, data and batch, and {_WORDS[name]} "
                    "another than that of the stage it continues",
                    hint="make them equal, or start from its weights alone: kind finetune, init",
                )
        self._load(engine, folder, state)
        if engine.rank == 0:
            self._say(f"goes on from step {step} of the stage that it continues")
        return RunProgress(step=step, train_loss=state.train_loss, loss_scale=state.loss_scale)

    def roll_back(self, engine: Engine, back: RunProgress) -> RunProgress:
        """Load the tensors of step `back.rolled_back_to`; all ranks call it.

        Those of the newest whole checkpoint before it where that one is damaged, and the first
        weights, which a new engine has, where there is none.

        Returns:
            Where the run goes on: `back`, with the step whose tensors were found.

        Raises:
            IntegrityError: As `resume`.
        """
        # It may be the very one that is still being written.
        self._writer_of(engine).wait()
        engine.highest(0)
        target = self._newest_step(
            engine, self._root, self._identity.key, until=back.rolled_back_to
        )
        if engine.rank == 0:
            self._say(f"back to the weights of step {target}, on with the batch of {back.step + 1}")
        if target:
            folder = self.folder(target)
            self._load(engine, folder, _state_of(folder))
        return back.revise(rolled_back_to=target)

    def _load(self, engine: Engine, folder: Path, state: CheckpointState) -> None:
        engine.load(folder, state.updates)
        self._check_probe(folder, state.probe_loss, engine.loss(self._probe))

    def keep(self, step: int, target: Path) -> None:
        """Put the checkpoint of the last step, and those that are kept for good, below `target`."""
        checkpoint.keep(self._root, target, newest=step, when=self._when)

    def folder(self, step: int) -> Path:
        """Where the checkpoint after `step` steps is."""
        return self._root / checkpoint.step_folder(step)

    def save(self, engine: Engine, progress: RunProgress, *, waits: bool) -> None:
        """Copy the state as it is now and begin to write it; all ranks call it.

        Training may go on at once. It waits here where the checkpoint before is not written yet, so
        that at most one more copy of the state is held; and, with `waits`, for the commit.
        """
        writer = self._writer_of(engine)
        writer.wait()
        probe_loss = engine.loss(self._probe)
        tensors = engine.share()
        if engine.rank == 0:
            checkpoint.begin(self._root, progress.step)
        engine.highest(0)  # nobody writes before the folder is there
        state = CheckpointState(
            **dict(progress),
            updates=engine.updates,
            **self._identity.__dict__,
            world_size=engine.world_size,
            engine=engine.name,
            probe_loss=probe_loss,
        )
        kept = self._needed(progress)
        writer.start(tensors, state, lambda: checkpoint.prune(self._root, self._when, kept=kept))
        if waits:
            writer.wait()
            engine.highest(0)  # nobody goes on before it is committed

    def _writer_of(self, engine: Engine) -> ShareWriter:
        if self._writer is None:
            self._writer = ShareWriter(self._root, rank=engine.rank, world_size=engine.world_size)
        return self._writer

    def _newest_step(
        self, engine: Engine, root: Path, key: str | None, *, until: int | None = None
    ) -> int:
        """Of the newest complete checkpoint, 0 if there is none: rank 0 reads, and tells all."""
        found = None
        if engine.rank == 0:
            found = checkpoint.newest_complete(root, key, self._say, until=until)
        return engine.highest(0 if found is None else found[1].step)

    def _check_identity(self, folder: Path, state: CheckpointState) -> None:
        for name in ("key", "data_digest", "global_samples", "model"):
            if getattr(state, name) != getattr(self._identity, name):
                raise IntegrityError(
                    f"checkpoint {folder} was written with another {name.replace('_', ' ')}",
                    hint=f"remove {self._root}",
                )

    def _check_probe(self, folder: Path, stored: float, found: float) -> None:
        if not abs(found - stored) <= PROBE_TOLERANCE * max(abs(stored), 1e-8):
            raise IntegrityError(
                f"after loading {folder} the probe batch has loss {found:.6g} instead of "
                f"{stored:.6g}; the weights are not what was saved",
                hint=f"remove {folder}; training then goes on from the checkpoint before it",
            )


def _state_of(folder: Path) -> CheckpointState:
    return CheckpointState.model_validate_json((folder / CHECKPOINT_STATE).read_text())

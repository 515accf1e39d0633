"""Steps that are not finite: skipped, given up, or gone back from; with kills in between."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.training import checkpoint
from pipeline.training.engine import TorchEngine
from pipeline.training.guard import BAD_STEPS, RollBackError, give_up_or_roll_back, needed_again
from pipeline.training.loop import Watch, train
from pipeline.training.schedule import learning_rate
from schemas.checkpoint import RunProgress, Standing
from schemas.errors import PausedError, StageFailedError
from schemas.optim import OptimSpec
from schemas.validation import ValidationSpec
from tests.support.training import (
    OPTIM,
    FakeLoader,
    Recorded,
    Spoiled,
    StopAfter,
    engine_spec,
    keeper,
    model,
)

STEPS = 20
BACK = OPTIM.revise(roll_back_steps=4)


def follow(
    root: Path,
    bad: tuple[int, ...],
    *,
    optim: OptimSpec = OPTIM,
    said: list[str] | None = None,
    stop: StopAfter | None = None,
) -> tuple[RunProgress, dict[str, torch.Tensor], Recorded]:
    """A run whose steps `bad` are spoiled, taken back as often as it wants to be."""
    back, log = None, Recorded()
    lines = [] if said is None else said
    keep = keeper(
        root,
        every_steps=3,
        keep_last=1,
        said=lines,
        needed=lambda progress: needed_again(progress, optim, None),
    )
    while True:
        spec = engine_spec(optim=optim)
        spoiled = Spoiled(spec.objective, gradients=bad[::2], losses=bad[1::2])
        engine = TorchEngine(model(), replace(spec, objective=spoiled))
        try:
            progress = train(
                engine,
                FakeLoader(),
                optim=optim,
                total_steps=STEPS,
                keeper=keep,
                watch=Watch(metrics=log, stop=stop, say=lines.append),
                back=back,
            )
        except RollBackError as error:
            back = error.progress
        else:
            return progress, dict(engine.weights()), log


def test_a_bad_step_is_skipped_named_and_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    progress, _, log = follow(tmp_path, (5, 6), said=said)
    assert progress.step == STEPS
    assert progress.train_loss == log.points["train/loss"][STEPS]
    told = [line for line in said if "nothing is updated" in line]
    assert [line.split(":")[0] for line in told] == ["step 6", "step 7"]
    assert told[1].endswith("(2 of 3 in a row)")


def test_three_bad_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(StageFailedError, match="3 steps in a row, up to step 8"):
        follow(tmp_path, (5, 6, 7))
    assert follow(tmp_path / "apart", (5, 6, 8, 9))[0].step == STEPS


def test_a_run_is_taken_back_and_goes_on_after_the_bad_steps(tmp_path: Path) -> None:
    said: list[str] = []
    progress, weights, _ = follow(tmp_path, (9, 10, 11), optim=BACK, said=said)
    assert (progress.step, progress.rolled_back_to) == (STEPS, 8)
    assert "back to the weights of step 8, on with the batch of 13" in said
    by_hand = TorchEngine(model(), engine_spec(optim=BACK))
    stream = FakeLoader().batches(0)
    for step in range(STEPS):
        batch = next(stream)
        if 8 <= step < 12:
            continue  # step 8 was good, and is gone with what came after
        by_hand.forward_backward(batch, step=step)
        by_hand.step(learning_rate(step, BACK, STEPS))
    assert all(torch.equal(weights[name], weight) for name, weight in by_hand.weights())


def test_bad_steps_at_the_very_beginning_lead_back_to_the_first_weights(tmp_path: Path) -> None:
    progress, _, _ = follow(tmp_path, (0, 1, 2), optim=BACK)
    assert (progress.step, progress.rolled_back_to) == (STEPS, 0)


def test_twice_to_the_same_place_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(StageFailedError, match="3 steps in a row, up to step 16"):
        follow(tmp_path, (9, 10, 11, 13, 14, 15), optim=OPTIM.revise(roll_back_steps=8))


@pytest.mark.parametrize("stop_after", [8, 9, 11, 12, 14])
@pytest.mark.parametrize("bad", [(9, 10, 11), (7, 8, 9), (5, 6)])
def test_a_kill_changes_nothing_in_a_run_that_is_taken_back(
    tmp_path: Path, stop_after: int, bad: tuple[int, ...]
) -> None:
    expected, weights, _ = follow(tmp_path / "undisturbed", bad, optim=BACK)
    with pytest.raises(PausedError):
        follow(tmp_path / "stopped", bad, optim=BACK, stop=StopAfter(stop_after))
    found, again, _ = follow(tmp_path / "stopped", bad, optim=BACK)
    assert found == expected
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


def test_a_checkpoint_that_is_still_being_written_can_be_gone_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves, begun = checkpoint.save_file, threading.Event()

    def slow(*args: Any) -> None:
        begun.set()
        time.sleep(0.3)
        saves(*args)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    keep = keeper(tmp_path)
    written = TorchEngine(model(), engine_spec())
    keep.save(written, RunProgress(step=4, train_loss=1.0), waits=False)
    assert begun.wait(10)
    engine = TorchEngine(model(), engine_spec())
    back = RunProgress(step=7, train_loss=1.0, rolled_back_to=4)
    assert keep.roll_back(engine, back) == back
    assert all(torch.equal(dict(written.weights())[name], it) for name, it in engine.weights())


def test_the_decision_is_a_function_of_the_progress() -> None:
    bad = RunProgress(step=10, bad_steps=BAD_STEPS, train_loss=1.0)
    give_up_or_roll_back(bad.revise(bad_steps=2), OPTIM)
    with pytest.raises(StageFailedError):
        give_up_or_roll_back(bad, OPTIM)
    with pytest.raises(RollBackError) as caught:
        give_up_or_roll_back(bad, BACK)
    expected = RunProgress(step=10, train_loss=1.0, rolled_back_to=4)
    assert caught.value.progress == expected
    with pytest.raises(StageFailedError):
        give_up_or_roll_back(bad.revise(rolled_back_to=4), BACK)


def test_checkpoints_that_may_be_wanted_again_are_known() -> None:
    progress = RunProgress(step=10, bad_steps=2, standing=Standing(best_step=6, best_value=1.0))
    keeps = ValidationSpec(every_steps=3, keep_best=True)
    assert needed_again(progress, OPTIM, None) == set()
    assert needed_again(progress, OPTIM, ValidationSpec(every_steps=3)) == set()
    assert needed_again(progress, OPTIM, keeps) == {6}
    assert needed_again(progress, OPTIM.revise(roll_back_steps=5), keeps) == {5, 6, 10}


def test_a_rotted_checkpoint_is_gone_back_past_and_named(tmp_path: Path) -> None:
    said: list[str] = []
    keep = keeper(tmp_path, said=said, keep_last=3)
    engine = TorchEngine(model(), engine_spec())
    stream = FakeLoader().batches(0)
    kept = {}
    for step in (2, 4, 6):
        engine.forward_backward(next(stream), step=step)
        engine.step(1e-3)
        keep.save(engine, RunProgress(step=step, train_loss=1.0), waits=True)
        kept[step] = dict(engine.weights())
    share = tmp_path / "step-00000004" / "rank-0000.safetensors"
    share.write_bytes(share.read_bytes()[:-1] + b"?")
    back = RunProgress(step=9, train_loss=1.0, rolled_back_to=4)
    again = TorchEngine(model(), engine_spec())
    assert keep.roll_back(again, back) == back.revise(rolled_back_to=2)
    assert all(torch.equal(kept[2][name], weight) for name, weight in again.weights())
    assert any("step-00000004 is passed over: rank-0000.safetensors" in line for line in said)
    for folder in tmp_path.glob("step-*"):
        (folder / "state.json").unlink()
    fresh = TorchEngine(model(), engine_spec())
    assert keep.roll_back(fresh, back).rolled_back_to == 0
    first = dict(TorchEngine(model(), engine_spec()).weights())
    assert all(torch.equal(first[name], weight) for name, weight in fresh.weights())

"""Checkpoints torn in every way: the one before counts, and the damage is named."""

from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoint import begin, newest_complete, read_parameters
from pipeline.training.loop import Watch, train
from pipeline.training.writing import ShareWriter
from schemas.checkpoint import CHECKPOINT_MANIFEST, CheckpointState, RunProgress
from schemas.errors import DiskFullError, IntegrityError
from tests.support.training import (
    KEY,
    OPTIM,
    FakeLoader,
    Recorded,
    identity,
    keeper,
    torch_engine,
)

FILES = ["MANIFEST.json", "rank-0000.safetensors", "state.json"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Checkpoints after steps 5 and 10."""
    train(
        torch_engine(),
        FakeLoader(),
        optim=OPTIM,
        total_steps=10,
        keeper=keeper(tmp_path),
        watch=Watch(),
    )
    return tmp_path


def newest(root: Path) -> tuple[int | None, list[str]]:
    said: list[str] = []
    found = newest_complete(root, KEY, said.append)
    return (found[1].step if found else None), said


def test_the_newest_whole_checkpoint_counts(root: Path) -> None:
    assert newest(root) == (10, [])
    assert sorted(path.name for path in (root / "step-00000010").iterdir()) == FILES


def test_no_folder_means_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere") == (None, [])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["delete", "empty", "cut", "flip", "grow"])
def test_any_damage_to_any_file_falls_back_and_is_named(root: Path, file: str, damage: str) -> None:
    path = root / "step-00000010" / file
    whole = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "flip":
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-1], "grow": whole + b"}"}[damage])
    if file == CHECKPOINT_MANIFEST and damage == "cut":
        return  # only its last newline is gone: the manifest is still whole
    step, said = newest(root)
    assert step == 5
    assert len(said) == 1
    assert "step-00000010" in said[0]
    assert file in said[0]


def test_what_was_being_written_does_not_count(root: Path) -> None:
    (root / "step-00000010").rename(root / ".writing-step-00000010")
    assert newest(root) == (5, [])


def test_all_damaged_means_a_fresh_start(root: Path) -> None:
    for folder in root.iterdir():
        (folder / "state.json").unlink()
    step, said = newest(root)
    assert step is None
    assert len(said) == 2


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    keep = keeper(tmp_path, every_steps=2, keep_last=3)
    train(torch_engine(), FakeLoader(), optim=OPTIM, total_steps=11, keeper=keep, watch=Watch())
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-00000008", "step-00000010", "step-00000011"]


def test_checkpoints_at_whole_multiples_are_kept_too(tmp_path: Path) -> None:
    keep = keeper(tmp_path, every_steps=2, keep_last=1, keep_every_steps=4)
    train(torch_engine(), FakeLoader(), optim=OPTIM, total_steps=11, keeper=keep, watch=Watch())
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-00000004", "step-00000008", "step-00000011"]


def test_a_failure_of_the_writing_thread_reaches_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pipeline.training.checkpoint.save_file", broken)
    keep = keeper(tmp_path, every_steps=2)
    with pytest.raises(OSError, match="Input/output error"):
        train(torch_engine(), FakeLoader(), optim=OPTIM, total_steps=9, keeper=keep, watch=Watch())
    assert newest(tmp_path) == (None, [])


def test_the_commit_waits_for_every_rank(tmp_path: Path) -> None:
    engine = torch_engine()
    tensors = engine.share()
    names = sorted(tensors)
    halves = [{name: tensors[name] for name in names[rank::2]} for rank in (0, 1)]
    state = CheckpointState(
        step=5,
        updates=5,
        **identity().__dict__,
        world_size=2,
        engine="x",
        train_loss=1.0,
        probe_loss=1.0,
    )
    begin(tmp_path, 5)
    committed: list[bool] = []
    first, second = (ShareWriter(tmp_path, rank=rank, world_size=2) for rank in (0, 1))
    first.start(halves[0], state, lambda: committed.append(True))
    assert newest(tmp_path) == (None, [])
    second.start(halves[1], state, lambda: committed.append(False))
    second.wait()
    first.wait()
    assert newest(tmp_path) == (5, [])
    assert committed == [True], "rank 0 alone commits"
    assert dict(read_parameters(tmp_path / "step-00000005")).keys() == dict(engine.state()).keys()


def test_a_checkpoint_of_another_key_is_refused(root: Path) -> None:
    with pytest.raises(IntegrityError, match="not bbbbbbbbbbbb"):
        newest_complete(root, "b" * 64, print)


def test_every_parameter_is_stored_with_its_moments(root: Path) -> None:
    stored = dict(read_parameters(root / "step-00000010"))
    engine = torch_engine()
    engine.load(root / "step-00000010", 10)
    own = dict(engine.state())
    assert stored.keys() == own.keys()
    for name, state in stored.items():
        assert state.weight.dtype == torch.float32
        assert len(state.moments) == 2
        assert torch.equal(state.weight, own[name].weight)
        pairs = zip(state.moments, own[name].moments, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_load_that_changes_the_loss_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = torch_engine()
    load = engine.load

    def unfaithful(folder: Path, step: int) -> None:
        load(folder, step)
        with torch.no_grad():
            engine.model.norm.weight.mul_(1.01)

    monkeypatch.setattr(engine, "load", unfaithful)
    with pytest.raises(IntegrityError, match="the weights are not what was saved"):
        keeper(root).resume(engine)


def test_a_full_disk_is_a_sentence_and_the_last_checkpoint_survives(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.training.checkpoint.save_file", full)
    with pytest.raises(DiskFullError, match="no space left for a checkpoint"):
        keeper(root).save(torch_engine(), RunProgress(step=15), waits=True)
    assert newest(root) == (10, [])


def test_points_of_a_curve_do_not_depend_on_checkpoints(root: Path, tmp_path: Path) -> None:
    curves = []
    for keep in (None, keeper(tmp_path / "other", every_steps=3)):
        log = Recorded()
        watch = Watch(metrics=log)
        train(torch_engine(), FakeLoader(), optim=OPTIM, total_steps=9, keeper=keep, watch=watch)
        curves.append(log.points["train/loss"])
    assert curves[0] == curves[1]

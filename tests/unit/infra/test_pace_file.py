"""Where a training stage stands, as a file that is written now and then and read at any time."""

from pathlib import Path

from infra.pace_file import PaceFile, pace_path, read_pace
from schemas.runs import TrainingPace

VARIANT = "pretrain[optim.peak_lr=1e-3,source=a/b]"


def pace(step: int, **fields: float) -> TrainingPace:
    return TrainingPace(step=step, total_steps=100, loss=0.5, **fields)


def test_what_was_shown_last_is_read_back(tmp_path: Path) -> None:
    path = pace_path(tmp_path, VARIANT)
    assert path.parent.parent == tmp_path, "no part of a name opens a folder"
    assert read_pace(path) is None
    shown = pace(3, images_per_second=532.0, eta_seconds=12.5)
    PaceFile(path).show(shown)
    assert read_pace(path) == shown
    assert [it.name for it in path.parent.iterdir()] == [path.name]


def test_it_is_written_once_a_second_and_at_the_end(tmp_path: Path) -> None:
    path, now = pace_path(tmp_path, "pretrain"), 0.0
    file = PaceFile(path, clock=lambda: now)
    seen = []
    for step, at in ((1, 0.0), (2, 0.5), (3, 0.99), (4, 1.0), (5, 1.5), (100, 1.6)):
        now = at
        file.show(pace(step))
        found = read_pace(path)
        assert found is not None
        seen.append(found.step)
    assert seen == [1, 1, 1, 4, 4, 100]


def test_a_file_that_cannot_be_written_or_read_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "now").write_text("a file where a folder has to be")
    path = pace_path(tmp_path, "pretrain")
    PaceFile(path).show(pace(1))
    assert read_pace(path) is None
    (tmp_path / "now").unlink()
    PaceFile(path).show(pace(1))
    path.write_text('{"step": ')
    assert read_pace(path) is None

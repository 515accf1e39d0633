"""What a person sees of a run while it goes on."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from infra.pace_file import PaceFile, pace_path
from jobs import progress
from jobs.progress import RunView, bar
from jobs.stage_task import append_line
from schemas.runs import TrainingPace

PACE = TrainingPace(
    step=250, total_steps=1000, loss=0.51234, images_per_second=1532.4, eta_seconds=3723.4
)


def drawn(pace: TrainingPace) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    console.print(bar(pace))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_bar_tells_place_loss_rate_and_what_is_left() -> None:
    text = drawn(PACE)
    assert "250/1,000  loss 0.5123  1,532 images/s  1:02:03 left" in text
    assert text.count("━") == 6, "a quarter of 24"


def test_a_bar_of_the_first_step_knows_no_rate() -> None:
    text = drawn(TrainingPace(step=1, total_steps=1000, loss=2.0))
    assert "1/1,000  loss 2.0000" in text
    assert "images/s" not in text


def test_a_terminal_shows_the_bar_of_each_stage_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "stderr", lambda: terminal)
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    log = tmp_path / "log.txt"
    assert isinstance(terminal.file, io.StringIO)
    with RunView(log) as view:
        for stage in ("pretrain", "corpus"):
            view.stage_started(stage)
        view.refresh()
        append_line(log, "corpus: 120 of 360 images")
        PaceFile(pace_path(tmp_path, "pretrain")).show(PACE)
        view.refresh()
    text = terminal.file.getvalue()
    assert "250/1,000" in text
    assert "120 of 360 images" in text


def test_without_a_terminal_there_are_lines_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.txt"
    with RunView(log) as view:
        view.stage_started("pretrain")
        PaceFile(pace_path(tmp_path, "pretrain")).show(PACE)
        append_line(log, "pretrain: step 250 of 1000, loss 0.5123")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("s  ")[2] for line in lines] == [
        "pretrain: started",
        "pretrain: step 250 of 1000, loss 0.5123",
    ]

"""States and events of runs, for tests of what reads them."""

from pathlib import Path

from infra.metric_segments import SegmentLog
from infra.run_folder import RunFolder, create_run, this_process
from schemas.runs import Event, RunState


def run_state(run: str = "run-1", *, started_at: str = "2026-01-01T00:00:00+00:00") -> RunState:
    """A run that this process owns."""
    host, pid, since = this_process()
    return RunState(
        run=run,
        experiment="tests",
        status="running",
        host=host,
        pid=pid,
        process_started=since,
        started_at=started_at,
    )


def new_run(runs: Path, run: str = "run-1") -> RunFolder:
    """A fresh run folder."""
    return create_run(runs, run_state(run))


def begin_training(folder: RunFolder, *, steps: int) -> SegmentLog:
    """A run whose stage `pretrain` has begun and has logged `steps` steps."""
    path = folder.path / "metrics.jsonl"
    folder.append(
        Event(
            type="run_started",
            at_ms=1000,
            params={"seed": "17"},
            tags={"mlflow.note.content": "# A run"},
        )
    )
    folder.append(
        Event(
            type="stage_started",
            at_ms=2000,
            stage="pretrain",
            kind="pretrain",
            params={"optim.peak_lr": "0.001"},
            tags={"vitrail.key": "k" * 64},
            metrics_path=str(path),
        )
    )
    log = SegmentLog(path)
    add_steps(log, range(steps))
    return log


def add_steps(log: SegmentLog, steps: range) -> None:
    """Log a falling loss."""
    for step in steps:
        log.log({"train/loss_nats": 1 / (1 + step)}, step=step)


def end_training(folder: RunFolder, *, status: str = "finished") -> None:
    """The stage ends with a model, a figure and final metrics; then the run ends."""
    files = folder.path / "attempt" / "files"
    (files / "model").mkdir(parents=True)
    (files / "model" / "model.json").write_text("{}")
    (files / "figures").mkdir()
    (files / "figures" / "curve.svg").write_text("<svg/>")
    data = {"name": "digits", "digest": "ab" * 32, "context": "train", "path": "/data/digits"}
    folder.append(
        Event(
            type="stage_finished",
            at_ms=3000,
            stage="pretrain",
            kind="pretrain",
            status=status,
            tags={"vitrail.digest": "cd" * 32},
            metrics={"test/top1_ratio": 0.75, "train/loss_nats": 0.1},
            datasets=(data,),
            artifacts=(str(files / "model"), str(files / "figures")),
            register_as="tests-pretrain",
        )
    )
    folder.append(Event(type="run_finished", at_ms=4000, status=status))

import threading
import time
from pathlib import Path

import pytest

from infra.metric_segments import SegmentLog, read_points
from infra.run_folder import RunFolder
from pipeline.dag.mirror import Mirror, MirrorThread
from schemas.errors import UnreachableError
from schemas.runs import Event
from tests.support.runs import add_steps, begin_training, end_training, new_run
from tests.support.tracking import MemoryTracker


class Clock:
    """Milliseconds that a test moves by hand."""

    def __init__(self) -> None:
        self.now_ms = 10_000

    def __call__(self) -> int:
        return self.now_ms


def mirror_of(
    folder: RunFolder,
    tracker: MemoryTracker,
    *,
    said: list[str] | None = None,
    clock: Clock | None = None,
) -> Mirror:
    """A new mirror over the files of a run, as a new process would make it."""
    return Mirror(
        RunFolder(folder.path),
        lambda: tracker,
        read_points=read_points,
        clock_ms=clock or Clock(),
        say=(said if said is not None else []).append,
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return new_run(tmp_path)


def test_a_run_arrives_whole(folder: RunFolder) -> None:
    tracker = MemoryTracker()
    begin_training(folder, steps=5)
    end_training(folder)
    mirror = mirror_of(folder, tracker)
    assert mirror.replay()
    parent, child = tracker.run_of(None), tracker.run_of("pretrain")
    assert parent.params == {"seed": "17"}
    assert (parent.status, parent.start_ms, parent.end_ms) == ("finished", 1000, 4000)
    assert child.parent_id == "run-1/None"
    assert child.params == {"optim.peak_lr": "0.001"}
    assert child.tags["vitrail.key"] == "k" * 64
    assert child.steps("train/loss_nats") == [0, 1, 2, 3, 4]
    assert child.steps("test/top1_ratio") == [4]
    assert child.datasets[0]["digest"] == "ab" * 32
    assert set(child.files) == {"model/model.json", "figures/curve.svg"}
    assert (child.status, child.end_ms) == ("finished", 3000)
    assert tracker.models == {("tests-pretrain", "cd" * 32): "run-1/pretrain@candidate"}
    assert mirror.url() == "memory:run-1/None"


def test_points_arrive_while_the_stage_still_runs(folder: RunFolder) -> None:
    tracker = MemoryTracker()
    log = begin_training(folder, steps=2)
    mirror = mirror_of(folder, tracker)
    assert mirror.replay()
    assert tracker.run_of("pretrain").steps("train/loss_nats") == [0, 1]
    assert tracker.run_of("pretrain").status == "running"
    add_steps(log, range(2, 4))
    assert mirror.replay()
    assert tracker.run_of("pretrain").steps("train/loss_nats") == [0, 1, 2, 3]


def test_nothing_is_told_twice_without_need(folder: RunFolder) -> None:
    tracker = MemoryTracker()
    begin_training(folder, steps=5)
    end_training(folder)
    assert mirror_of(folder, tracker).replay()
    calls = tracker.calls
    assert mirror_of(folder, tracker).replay()
    assert tracker.calls == calls


def test_a_run_that_reuses_everything_is_not_told(folder: RunFolder) -> None:
    tracker = MemoryTracker()
    folder.append(Event(type="run_started", at_ms=1))
    folder.append(Event(type="stage_finished", at_ms=2, stage="corpus", status="reused"))
    folder.append(Event(type="run_finished", at_ms=3, status="finished"))
    mirror = mirror_of(folder, tracker)
    assert mirror.replay(final=True)
    assert tracker.runs == {}
    assert mirror.url() is None


def test_a_tracker_that_is_away_misses_nothing(folder: RunFolder) -> None:
    tracker, said, clock = MemoryTracker(), [], Clock()
    tracker.away = True
    begin_training(folder, steps=5)
    mirror = mirror_of(folder, tracker, said=said, clock=clock)
    assert not mirror.replay()
    assert not mirror.replay(final=True)
    assert len(said) == 1
    assert "the run goes on" in said[0]
    end_training(folder)
    tracker.away = False
    assert not mirror.replay(), "it is left alone for a while"
    clock.now_ms += 60_000
    assert mirror.replay()
    assert tracker.run_of("pretrain").steps("train/loss_nats") == [0, 1, 2, 3, 4]
    assert tracker.run_of(None).status == "finished"


def test_a_connection_lost_at_any_call_leaves_the_same_picture(tmp_path: Path) -> None:
    def picture(fails_at: int | None) -> tuple[MemoryTracker, int]:
        folder, tracker = new_run(tmp_path / str(fails_at)), MemoryTracker()
        log = begin_training(folder, steps=3)
        tracker.fails_at = fails_at
        replays = 1
        while not mirror_of(folder, tracker).replay(final=True):
            replays += 1
        add_steps(log, range(3, 6))
        end_training(folder)
        while not mirror_of(folder, tracker).replay(final=True):
            replays += 1
        return tracker, replays

    whole, _ = picture(None)
    assert whole.calls > 10
    for call in range(1, whole.calls + 1):
        tracker, replays = picture(call)
        assert replays == 2, "it failed once"
        assert tracker.models == whole.models
        for run_id, run in tracker.runs.items():
            expected = whole.runs[run_id]
            assert run.steps("train/loss_nats") == expected.steps("train/loss_nats")
            assert run.steps("test/top1_ratio") == expected.steps("test/top1_ratio")
            assert (run.status, run.params, run.tags) == (
                expected.status,
                expected.params,
                expected.tags,
            )
            assert (run.files, run.datasets) == (expected.files, expected.datasets)


def test_a_lost_cursor_costs_a_repetition_and_nothing_else(folder: RunFolder) -> None:
    tracker = MemoryTracker()
    begin_training(folder, steps=5)
    end_training(folder)
    assert mirror_of(folder, tracker).replay()
    (folder.path / "mirror.json").unlink()
    assert mirror_of(folder, tracker).replay()
    assert tracker.run_of("pretrain").steps("train/loss_nats") == [0, 1, 2, 3, 4]
    assert tracker.run_of("pretrain").status == "finished"


def test_a_stage_tried_again_does_not_repeat_steps(folder: RunFolder, tmp_path: Path) -> None:
    tracker = MemoryTracker()
    begin_training(folder, steps=4)
    folder.append(Event(type="stage_finished", at_ms=5, stage="pretrain", status="failed"))
    second = tmp_path / "second.jsonl"
    add_steps(SegmentLog(second), range(2, 6))
    folder.append(Event(type="stage_started", at_ms=6, stage="pretrain", metrics_path=str(second)))
    mirror = mirror_of(folder, tracker)
    assert mirror.replay()
    assert tracker.run_of("pretrain").steps("train/loss_nats") == [0, 1, 2, 3, 4, 5]
    assert tracker.run_of("pretrain").status == "running"


def test_what_the_tracker_refuses_is_said_and_the_rest_arrives(folder: RunFolder) -> None:
    tracker, said = MemoryTracker(), []
    begin_training(folder, steps=1)
    gone = str(folder.path / "gone")
    folder.append(
        Event(type="stage_finished", at_ms=3, stage="pretrain", status="failed", artifacts=(gone,))
    )
    assert mirror_of(folder, tracker, said=said).replay()
    assert said == [f"not in the tracker: the folder {gone} is gone"]
    assert tracker.run_of("pretrain").status == "failed"


@pytest.mark.parametrize(
    ("told", "shown"),
    [("ran", "finished"), ("failed", "failed"), ("paused", "killed"), ("killed", "killed")],
)
def test_each_end_of_a_stage_has_a_status_in_the_tracker(
    folder: RunFolder, told: str, shown: str
) -> None:
    tracker = MemoryTracker()
    begin_training(folder, steps=1)
    folder.append(
        Event(type="stage_finished", at_ms=3, stage="pretrain", status=told, message="why")
    )
    assert mirror_of(folder, tracker).replay()
    assert tracker.run_of("pretrain").status == shown
    assert tracker.run_of("pretrain").tags["vitrail.message"] == "why"


def test_a_run_whose_process_died_is_closed_as_killed_with_all_its_points(
    folder: RunFolder,
) -> None:
    tracker = MemoryTracker()
    begin_training(folder, steps=3)
    assert mirror_of(folder, tracker).replay()
    assert mirror_of(folder, tracker).close_orphan()
    assert tracker.run_of("pretrain").status == "killed"
    assert tracker.run_of("pretrain").steps("train/loss_nats") == [0, 1, 2]
    assert (tracker.run_of(None).status, tracker.run_of(None).end_ms) == ("killed", 10_000)
    events = len(folder.read_events(0))
    assert mirror_of(folder, tracker).close_orphan()
    assert len(folder.read_events(0)) == events, "once is enough"


def test_an_orphan_is_closed_later_when_the_tracker_is_away(folder: RunFolder) -> None:
    tracker = MemoryTracker()
    begin_training(folder, steps=3)
    tracker.away = True
    assert not mirror_of(folder, tracker).close_orphan()
    tracker.away = False
    assert mirror_of(folder, tracker).replay()
    assert tracker.run_of(None).status == "killed"


def test_a_tracker_is_connected_only_when_there_is_news(folder: RunFolder) -> None:
    def refuse() -> MemoryTracker:
        raise UnreachableError("nobody asked for a tracker")

    mirror = Mirror(folder, refuse, read_points=read_points, clock_ms=Clock(), say=print)
    assert mirror.replay(final=True)


def test_the_thread_delivers_what_is_left_when_it_stops(folder: RunFolder) -> None:
    tracker = MemoryTracker()
    thread = MirrorThread(mirror_of(folder, tracker), interval_seconds=0.01, say=print)
    thread.start()
    begin_training(folder, steps=5)
    while not tracker.runs:
        time.sleep(0.01)
    end_training(folder)
    assert thread.stop(deadline_seconds=60)
    assert tracker.run_of(None).status == "finished"


def test_the_thread_says_what_it_did_not_foresee_and_the_run_goes_on(folder: RunFolder) -> None:
    said: list[str] = []
    folder.events_path.write_text("nonsense\n")
    mirror = mirror_of(folder, MemoryTracker())
    thread = MirrorThread(mirror, interval_seconds=0.01, say=said.append)
    thread.start()
    while not said:
        time.sleep(0.01)
    assert not thread.stop(deadline_seconds=60)
    assert "not an event" in said[0]


def test_the_thread_ends_undelivered_when_the_tracker_stays_away(folder: RunFolder) -> None:
    tracker = MemoryTracker()
    tracker.away = True
    begin_training(folder, steps=1)
    thread = MirrorThread(mirror_of(folder, tracker), interval_seconds=0.01, say=print)
    thread.start()
    assert not thread.stop(deadline_seconds=60)


def test_a_tracker_that_hangs_holds_up_nobody(folder: RunFolder) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class HangingTracker(MemoryTracker):
        def log_params(self, run_id: str, params: dict[str, str]) -> None:
            entered.set()
            go_on.wait()
            super().log_params(run_id, params)

    begin_training(folder, steps=1)
    mirror = mirror_of(folder, HangingTracker())
    thread = MirrorThread(mirror, interval_seconds=0.01, say=print)
    thread.start()
    entered.wait()
    assert not thread.stop(deadline_seconds=0.01)
    assert mirror.url() is None
    go_on.set()
    assert thread.stop(deadline_seconds=60)
    assert mirror.url() == "memory:run-1/None"


def finish_with(folder: RunFolder, curve: Path) -> None:
    """The stage ends; `curve` is the committed copy of its points."""
    folder.append(
        Event(
            type="stage_finished",
            at_ms=3000,
            stage="pretrain",
            status="ran",
            metrics_path=str(curve),
        )
    )


@pytest.mark.parametrize("told_before", [True, False])
def test_the_committed_curve_ends_it_once_when_the_work_in_progress_is_gone(
    folder: RunFolder, told_before: bool
) -> None:
    tracker = MemoryTracker()
    log = begin_training(folder, steps=3)
    if told_before:
        assert mirror_of(folder, tracker).replay()
    add_steps(log, range(3, 6))
    kept = (folder.path / "metrics.jsonl").rename(folder.path / "kept.jsonl")
    finish_with(folder, kept)
    assert mirror_of(folder, tracker).replay()
    assert tracker.run_of("pretrain").steps("train/loss_nats") == [0, 1, 2, 3, 4, 5]


def test_a_committed_curve_that_lies_beside_its_origin_is_told_once(folder: RunFolder) -> None:
    tracker = MemoryTracker()
    begin_training(folder, steps=4)
    kept = folder.path / "kept.jsonl"
    kept.write_bytes((folder.path / "metrics.jsonl").read_bytes())
    finish_with(folder, kept)
    assert mirror_of(folder, tracker).replay()
    assert tracker.run_of("pretrain").steps("train/loss_nats") == [0, 1, 2, 3]


def test_a_committed_curve_that_is_missing_leaves_what_was_told(folder: RunFolder) -> None:
    tracker = MemoryTracker()
    begin_training(folder, steps=2)
    finish_with(folder, folder.path / "gone.jsonl")
    assert mirror_of(folder, tracker).replay()
    assert tracker.run_of("pretrain").steps("train/loss_nats") == [0, 1]
    assert tracker.run_of("pretrain").status == "finished"


def test_the_end_of_a_run_closes_what_is_open_still(folder: RunFolder) -> None:
    tracker = MemoryTracker()
    begin_training(folder, steps=3)
    folder.append(Event(type="run_finished", at_ms=4000, status="failed"))
    assert mirror_of(folder, tracker).replay()
    child = tracker.run_of("pretrain")
    assert (child.status, child.end_ms) == ("failed", 4000)
    assert child.steps("train/loss_nats") == [0, 1, 2]
    assert tracker.run_of(None).status == "failed"


def test_tags_of_the_end_stand_on_the_run_of_the_pipeline(folder: RunFolder) -> None:
    tracker = MemoryTracker()
    begin_training(folder, steps=1)
    tags = {"vitrail.gates": "not met: accuracy has test/top1_ratio 0.5"}
    folder.append(Event(type="run_finished", at_ms=4000, status="finished", tags=tags))
    assert mirror_of(folder, tracker).replay()
    parent = tracker.run_of(None)
    assert parent.tags["vitrail.gates"] == tags["vitrail.gates"]
    assert (parent.status, parent.end_ms) == ("finished", 4000)

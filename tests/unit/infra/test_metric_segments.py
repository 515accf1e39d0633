import math
from pathlib import Path

import pytest

from infra.metric_segments import SegmentLog, read_points
from schemas.errors import IntegrityError


def _steps(path: Path, key: str = "train/loss_nats") -> list[int]:
    return [point.step for point in read_points(path, 0)[0] if point.key == key]


def test_points_come_back_as_they_were_logged(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path / "deep" / "metrics.jsonl")
    log.log({"train/loss_nats": 0.1, "train/lr_ratio": 1e-4}, step=1)
    log.close()
    points, offset = read_points(tmp_path / "deep" / "metrics.jsonl", 0)
    assert [(p.key, p.value, p.step) for p in points] == [
        ("train/loss_nats", 0.1, 1),
        ("train/lr_ratio", 1e-4, 1),
    ]
    assert offset == (tmp_path / "deep" / "metrics.jsonl").stat().st_size


def test_a_point_that_stands_is_not_written_again_by_this_or_a_later_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for last_step in (3, 5):
        log = SegmentLog(path)
        for step in range(last_step + 1):
            log.log({"train/loss_nats": 1.0}, step=step)
            log.log({"train/loss_nats": 2.0}, step=step)
        log.close()
    assert _steps(path) == [0, 1, 2, 3, 4, 5]


def test_each_key_has_steps_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = SegmentLog(path)
    log.log({"train/loss_nats": 1.0}, step=5)
    log.log({"train/loss_nats": 1.0, "val/loss_nats": 2.0}, step=4)
    assert _steps(path) == [5]
    assert _steps(path, "val/loss_nats") == [4]


def test_a_torn_last_line_is_cut_off_and_its_point_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = SegmentLog(path)
    for step in range(3):
        log.log({"train/loss_nats": float(step)}, step=step)
    log.close()
    path.write_bytes(path.read_bytes()[:-10])
    assert _steps(path) == [0, 1]
    log = SegmentLog(path)
    for step in range(3):
        log.log({"train/loss_nats": float(step)}, step=step)
    assert _steps(path) == [0, 1, 2]


def test_reading_goes_on_from_an_offset_and_leaves_a_torn_tail_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = SegmentLog(path)
    log.log({"train/loss_nats": 1.0}, step=1)
    _, offset = read_points(path, 0)
    whole = path.read_bytes()
    log.log({"train/loss_nats": 2.0}, step=2)
    both = path.read_bytes()
    path.write_bytes(both[: len(whole) + 7])
    assert read_points(path, offset) == ([], offset)
    path.write_bytes(both)
    points, after = read_points(path, offset)
    assert [point.step for point in points] == [2]
    assert after == len(both)


def test_figures_of_a_diverged_run_are_kept(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path / "metrics.jsonl")
    log.log({"train/loss_nats": math.nan, "train/norm": math.inf}, step=1)
    values = [point.value for point in read_points(tmp_path / "metrics.jsonl", 0)[0]]
    assert math.isnan(values[0])
    assert values[1] == math.inf


def test_a_missing_segment_has_no_points(tmp_path: Path) -> None:
    assert read_points(tmp_path / "metrics.jsonl", 0) == ([], 0)


def test_a_whole_line_that_is_no_point_is_an_integrity_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    with pytest.raises(IntegrityError, match="not a metric point"):
        read_points(path, 0)


def test_a_file_that_was_begun_anew_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = SegmentLog(path)
    for step in range(9):
        log.log({"train/loss_nats": 1 / 3}, step=step)
    log.close()
    _, offset = read_points(path, 0)
    path.unlink()
    assert read_points(path, offset) == ([], offset)
    log = SegmentLog(path)
    log.log({"train/top1_ratio": 1.0}, step=0)
    log.close()
    points, after = read_points(path, offset)
    assert [point.key for point in points] == ["train/top1_ratio"]
    assert after == path.stat().st_size
    assert read_points(path, 7) == (points, after)

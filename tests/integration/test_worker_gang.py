"""A gang of real processes under Ray Train: answers, errors, pauses and losses come back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.worker_gang import Foreman, Gang, run_gang
from schemas.errors import DataError, OutOfMemoryError, PausedError, StageFailedError
from tests.support import gang as work

pytestmark = pytest.mark.ray


def a_gang(folder: Path, *, cpus_per_worker: float = 0.5) -> Gang:
    return Gang(
        worlds=(2,),
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=0,
        name="test",
        storage=folder,
        env={"VITRAIL_TEST": "before the first import"},
    )


def run(function: Any, folder: Path, **config: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    gang = a_gang(folder)
    return run_gang(function, config, gang, told(said)), said


def told(said: list[str]) -> Foreman:
    return Foreman(say=said.append, stop=lambda: False)


def test_all_ranks_work_together_and_rank_0_answers(ray_session: Any, tmp_path: Path) -> None:
    answer, said = run(work.add_up, tmp_path)
    node = answer.pop("node")
    assert answer == {"total": 3.0, "rank": 0, "said": "before the first import"}
    assert said == []
    # Another Ray on the machine makes Ray Train's own cleaner end a healthy gang.
    assert any("TrainController" in process for process in node)
    assert not any("PlacementGroupCleaner" in process for process in node)


def test_an_error_of_any_rank_comes_back_as_itself(ray_session: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run(work.refuse, tmp_path)
    assert (caught.value.what, caught.value.hint) == ("the data is wrong", "look at it")


def test_a_pause_comes_back_as_a_pause(ray_session: Any, tmp_path: Path) -> None:
    with pytest.raises(PausedError, match="after step 7 of 9"):
        run(work.pause, tmp_path)


def test_a_lost_process_starts_the_gang_again(ray_session: Any, tmp_path: Path) -> None:
    answer, said = run(work.die_once, tmp_path, mark=str(tmp_path / "mark"))
    assert answer == {"rank": 0}
    assert len(said) == 1
    assert said[0].startswith("a training process was lost")


def test_a_bug_is_not_tried_again(ray_session: Any, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(StageFailedError) as caught:
        run_gang(work.stumble, {}, a_gang(tmp_path), told(said))
    assert caught.value.what == "a training process failed: KeyError: 'no such thing'"
    assert len(said) == 1
    assert "in stumble" in said[0]  # the traceback of the worker, whole


def test_a_gang_that_never_fits_is_refused_at_once(ray_session: Any, tmp_path: Path) -> None:
    gang = a_gang(tmp_path, cpus_per_worker=3)
    with pytest.raises(StageFailedError, match=r"has 4 CPU .* room for 1"):
        run_gang(work.add_up, {}, gang, told([]))


def test_a_gang_that_waits_for_room_says_so_and_can_be_stopped(
    ray_session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    said: list[str] = []
    foreman = Foreman(say=said.append, stop=lambda: bool(said))
    others = placement_group([{"CPU": 4}])
    assert others.wait(120)
    try:
        with pytest.raises(PausedError, match="waiting for room"):
            run_gang(work.add_up, {}, a_gang(tmp_path), foreman)
    finally:
        remove_placement_group(others)
    assert said == ["the cluster is busy; waiting for room for 2 training worker(s)"]


@pytest.mark.parametrize("how", ["gpu", "torch"])
def test_a_rank_without_memory_is_told_from_a_bug_and_from_a_loss(
    how: str, ray_session: Any, tmp_path: Path
) -> None:
    with pytest.raises(OutOfMemoryError, match="a training process ran out of") as caught:
        run(work.fill_memory, tmp_path, how=how)
    assert "resources.micro_batch" in (caught.value.hint or "")
    assert ("GPU memory" in caught.value.what) == (how == "gpu")


def test_a_gang_takes_the_largest_permitted_world_that_fits_and_says_so(
    ray_session: Any, tmp_path: Path
) -> None:
    said: list[str] = []
    gang = replace(a_gang(tmp_path, cpus_per_worker=1.5), worlds=(4, 3, 2, 1))
    assert run_gang(work.add_up, {}, gang, told(said))["total"] == 3.0
    assert said == ["starts 2 of at most 4 workers, with room for 2"]


def test_a_lost_controller_of_ray_train_starts_the_gang_again_in_the_same_places(
    ray_session: Any, tmp_path: Path
) -> None:
    # With 4 cores the second gang fits only where the places of the first are free.
    gang = a_gang(tmp_path, cpus_per_worker=1.5)
    said: list[str] = []
    config = {"folder": str(tmp_path), "whose": "controller"}
    assert run_gang(work.lose_once, config, gang, told(said)) == {"starts": 2}
    assert [line.partition(" (")[0] for line in said] == ["a training process was lost"]
    assert not work.alive(tmp_path), "processes of the first gang"

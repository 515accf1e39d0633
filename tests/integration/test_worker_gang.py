"""A gang of real processes under Ray Train: answers, errors, pauses and losses come back."""

from pathlib import Path
from typing import Any

import pytest

from infra.worker_gang import Gang, run_gang
from schemas.errors import DataError, PausedError, StageFailedError
from tests.support import gang as work

pytestmark = pytest.mark.ray


def run(function: Any, folder: Path, **config: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    gang = Gang(
        workers=2,
        cpus_per_worker=0.5,
        gpus_per_worker=0,
        name="test",
        storage=folder,
        env={"VITRAIL_TEST": "before the first import"},
    )
    return run_gang(function, config, gang, say=said.append), said


def test_all_ranks_work_together_and_rank_0_answers(ray_session: Any, tmp_path: Path) -> None:
    answer, said = run(work.add_up, tmp_path)
    assert answer == {"total": 3.0, "rank": 0, "said": "before the first import"}
    assert said == []


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
    with pytest.raises(StageFailedError, match="no such thing"):
        run(work.stumble, tmp_path)

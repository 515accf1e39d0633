"""What the failures of a training world mean, and which worlds a cluster can hold."""

from pathlib import Path

import pytest
import torch
from ray.exceptions import RayActorError

from infra.worker_gang import Gang, _as_sentence, _LostError, _verdict, require_room
from schemas.errors import DataError, StageFailedError

CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
SHAPES = RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")


def a_gang(workers: int, *, cpus: float = 1.0, gpus: float = 0.0) -> Gang:
    return Gang(
        workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus, name="test", storage=Path()
    )


def test_a_lost_connection_is_a_loss() -> None:
    assert isinstance(_verdict({0: CLOSED, 1: CLOSED}), _LostError)


def test_a_runtime_error_of_its_own_is_a_bug_whoever_lost_the_connection_after() -> None:
    assert _verdict({0: CLOSED, 1: SHAPES}) is SHAPES


def test_a_runtime_error_beside_a_dead_process_is_a_loss() -> None:
    assert isinstance(_verdict({0: SHAPES, 1: RayActorError()}), _LostError)


def test_another_error_beside_a_dead_process_is_still_a_bug() -> None:
    bug = KeyError("no such thing")
    assert _verdict({0: bug, 1: RayActorError()}) is bug


def test_a_sentence_of_any_rank_comes_before_everything_else() -> None:
    sentence = DataError("the data is wrong")
    assert _verdict({0: SHAPES, 1: RayActorError(), 2: sentence}) is sentence


def test_out_of_memory_is_not_tried_again_and_says_what_to_set() -> None:
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore\nlines")
    assert _verdict({0: full, 1: CLOSED}) is full
    sentence = _as_sentence(full)
    assert "\n" not in sentence.what
    assert "resources.micro_batch" in (sentence.hint or "")


def test_a_bug_is_told_in_one_line() -> None:
    sentence = _as_sentence(ValueError("first\nsecond"))
    assert sentence.what == "a training process failed: ValueError: first"


@pytest.mark.parametrize(
    ("gang", "nodes"),
    [
        (a_gang(4), [{"CPU": 4.0}]),
        (a_gang(2, cpus=0.5), [{"CPU": 1.0}]),
        (a_gang(10, cpus=0.1), [{"CPU": 1.0}]),
        (a_gang(2, gpus=1), [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}]),
    ],
)
def test_a_world_that_fits_is_let_through(gang: Gang, nodes: list[dict[str, float]]) -> None:
    require_room(gang, nodes)


def test_a_world_too_large_is_refused_with_what_would_fit() -> None:
    with pytest.raises(StageFailedError) as caught:
        require_room(a_gang(3, gpus=1), [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}])
    assert caught.value.what == (
        "3 training worker(s) with 1 CPU and 1 GPU each do not fit: the cluster has 16 CPU and "
        "2 GPU on 2 node(s), which is room for 2"
    )
    assert caught.value.hint == "set resources.workers to 2 or less"


def test_a_worker_larger_than_every_node_is_refused_although_the_sum_would_do() -> None:
    with pytest.raises(StageFailedError, match="room for 0") as caught:
        require_room(a_gang(1, cpus=3), [{"CPU": 2.0}, {"CPU": 2.0}])
    assert "resources.cpus_per_worker" in (caught.value.hint or "")

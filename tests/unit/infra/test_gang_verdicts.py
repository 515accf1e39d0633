"""What the failures of a training world mean, and which worlds a cluster can hold."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray.exceptions import OutOfMemoryError as KilledForMemory
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from infra.gang_sizes import largest_that_fits, places
from infra.ray_gang_failures import LostError, as_sentence, verdict
from infra.worker_gang import Gang, require_room
from schemas.errors import DataError, OutOfMemoryError, StageFailedError

CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
SHAPES = RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")


def a_gang(workers: int, *, cpus: float = 1.0, gpus: float = 0.0) -> Gang:
    return Gang(
        worlds=(workers,), cpus_per_worker=cpus, gpus_per_worker=gpus, name="test", storage=Path()
    )


def test_a_lost_connection_is_a_loss() -> None:
    assert isinstance(verdict({0: CLOSED, 1: CLOSED}), LostError)


def test_a_runtime_error_of_its_own_is_a_bug_whoever_lost_the_connection_after() -> None:
    assert verdict({0: CLOSED, 1: SHAPES}) is SHAPES


def test_a_runtime_error_beside_a_dead_process_is_a_loss() -> None:
    assert isinstance(verdict({0: SHAPES, 1: RayActorError()}), LostError)


def test_another_error_beside_a_dead_process_is_still_a_bug() -> None:
    bug = KeyError("no such thing")
    assert verdict({0: bug, 1: RayActorError()}) is bug


def test_a_sentence_of_any_rank_comes_before_everything_else() -> None:
    sentence = DataError("the data is wrong")
    assert verdict({0: SHAPES, 1: RayActorError(), 2: sentence}) is sentence


def killed_for_memory() -> WorkerHealthCheckFailedError:
    why = KilledForMemory("Task was killed due to the node running low on memory.\nmore\nlines")
    return WorkerHealthCheckFailedError("A worker health check failed.", failure=why)


@pytest.mark.parametrize(
    "full",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore\nlines"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate "),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        killed_for_memory(),
    ],
    ids=["gpu", "python", "cpu", "cublas", "killed by Ray"],
)
def test_out_of_memory_is_a_class_of_its_own_and_says_what_to_set(full: Exception) -> None:
    sentence = verdict({0: CLOSED, 1: full, 2: SHAPES})
    assert isinstance(sentence, OutOfMemoryError)
    assert "\n" not in sentence.what
    assert "resources.micro_batch" in (sentence.hint or "")


def test_a_bug_is_told_in_one_line() -> None:
    sentence = as_sentence(ValueError("first\nsecond"))
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


def test_a_range_fits_where_its_smallest_world_does() -> None:
    gang = replace(a_gang(4), worlds=(4, 2))
    require_room(gang, [{"CPU": 3.0}])
    with pytest.raises(StageFailedError, match=r"2 training worker.*room for 1"):
        require_room(gang, [{"CPU": 1.0}])


@pytest.mark.parametrize(
    ("worlds", "room", "busy", "taken"),
    [
        ((8, 4, 2, 1), 100, 0, 8),
        ((8, 4, 2, 1), 7, 0, 4),
        ((8, 4, 2), 1, 0, None),
        ((8, 4, 2), 8, 1, 4),  # others hold a part: one size less at each try
        ((8, 4, 2), 8, 9, 2),
        ((3,), 3, 5, 3),
    ],
)
def test_the_world_is_the_largest_permitted_one_with_room(
    worlds: tuple[int, ...], room: int, busy: int, taken: int | None
) -> None:
    assert largest_that_fits(worlds, room, busy=busy) == taken


def test_a_worker_lives_on_one_node() -> None:
    nodes = [{"CPU": 1.5, "GPU": 2.0}, {"CPU": 0.5, "GPU": 8.0}, {"CPU": 64.0}]
    assert places({"CPU": 1.0, "GPU": 1.0}, nodes) == 1
    assert places({"CPU": 0.1}, [{"CPU": 1.0}]) == 10

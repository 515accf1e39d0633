"""The layout that a training process chooses by the memory it finds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from jobs import train
from jobs.device_memory import machine_bytes, worker_bytes
from jobs.train_plan import TrainPlan
from jobs.train_worker import laid_out, layout_of
from pipeline.cost import USABLE_RATIO, training_memory
from schemas.model import ViTSpec
from schemas.resources import ResourcesSpec
from schemas.runs import InputArtifact
from schemas.training import PretrainSpec
from tests.support.stages import run_stage

CPU = torch.device("cpu")


def plan_of(**resources: Any) -> TrainPlan:
    spec = PretrainSpec.parse(
        {
            "data": "corpus",
            "model": {"variant": "Ti", "patch_px": 16, "image_px": 64},
            "optim": {"peak_lr": 1e-3},
            "batch": {"global_samples": 64},
            "duration": {"steps": 2},
            "resources": resources,
        }
    )
    request: Any = None  # nothing of the request is asked for
    return TrainPlan(request, spec, spec.model.resolved(num_classes=3), Path(), Path())


def bytes_for(plan: TrainPlan, micro_batch: int) -> float:
    """A device that has just room for this micro-batch on one worker."""
    assert isinstance(plan.model, ViTSpec)
    found = training_memory(plan.model, plan.spec, zero_stage=0, world=1, micro_batch=micro_batch)
    return found.peak / USABLE_RATIO


def test_workers_on_one_machine_share_its_memory_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < machine_bytes() <= psutil.virtual_memory().total
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    whole = worker_bytes(ResourcesSpec(), CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_bytes(ResourcesSpec(workers=4), CPU) == whole // 4
    assert whole < machine_bytes()


def test_once_memory_was_short_half_of_what_was_chosen_is_taken() -> None:
    plan = plan_of(micro_batch="auto")
    room = int(bytes_for(plan, 16)) + 1
    assert layout_of(plan, 1, room).micro_batch == 16
    again = replace(plan, largest_micro_batch=32)  # the driver knows of the whole share alone
    assert layout_of(again, 1, room).micro_batch == 8
    assert layout_of(replace(plan_of(), largest_micro_batch=32), 1, room).micro_batch == 32


def test_a_plan_that_is_laid_out_leaves_nothing_open() -> None:
    plan = plan_of(workers={"min": 1, "max": 2}, micro_batch="auto")
    done = laid_out(plan, layout_of(plan, 2, 10**12))
    assert (done.spec.resources.zero_stage, done.spec.resources.micro_batch) == (1, 32)
    assert done.micro_batch(2) == 32


def test_the_log_says_what_was_chosen_and_why(corpus: InputArtifact, tmp_path: Path) -> None:
    alone = plan_of(engine="torch", micro_batch="auto").spec
    short = {"batch": {"global_samples": 8}, "duration": {"steps": 1}}
    spec = PretrainSpec.parse({**alone.dump(), **short})
    run = run_stage(train.run, spec, tmp_path / "pretrain", inputs={"data": corpus})
    log = "".join(path.read_text() for path in tmp_path.rglob("log.txt"))
    assert "layout: ZeRO-0, 1 x 8 samples a step on each of 1 worker(s)" in log
    assert "by the estimate" in log
    assert run.output.metrics["train/steps_count"] == 1

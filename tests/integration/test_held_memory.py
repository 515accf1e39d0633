"""The state that engines hold against the formulas of `pipeline.cost`."""

from pathlib import Path

import pytest

from pipeline.cost import state_bytes
from schemas.optim import OptimSpec
from tests.support.held import WORLD, held_alone, held_in_world

ADAMW = OptimSpec(peak_lr=1e-3, ema_decay=0.9)
SGD = OptimSpec(peak_lr=1e-3, algorithm="sgd")
PLAIN = OptimSpec(peak_lr=1e-3, algorithm="sgd", beta1=0.0)
COUNTER_BYTES = 4


@pytest.mark.parametrize("optim", [ADAMW, SGD, PLAIN], ids=["adamw", "sgd", "plain"])
def test_the_reference_holds_what_is_stated(optim: OptimSpec) -> None:
    held = held_alone(optim)
    stated = state_bytes(held.parameters, optim, zero_stage=0, world=1)
    counters = COUNTER_BYTES * held.tensors if optim.algorithm == "adamw" else 0
    assert held.after_backward == stated.held + counters
    assert held.after_update == stated.held - stated.gradients + counters


def test_every_zero_stage_holds_what_is_stated(tmp_path: Path) -> None:
    for stage, held in held_in_world(tmp_path, ADAMW, [0, 1, 2, 3]).items():
        stated = state_bytes(held.parameters, ADAMW, zero_stage=stage, world=WORLD)
        most = held.most_besides(stated, stage)
        assert 0 <= held.without_gradients(stated, stage) <= most
        assert 0 <= held.with_gradients(stated) <= most + held.most_cut(stage)

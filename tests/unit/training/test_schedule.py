"""Learning rates and lengths of runs, against numbers worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.schedule import learning_rate, total_steps
from schemas.errors import SpecError
from schemas.training import DurationSpec, OptimSpec


def optim(schedule: str = "cosine", warmup_steps: int = 10, peak_lr: float = 1e-3) -> OptimSpec:
    return OptimSpec.parse({"schedule": schedule, "warmup_steps": warmup_steps, "peak_lr": peak_lr})


@pytest.mark.parametrize(
    ("schedule", "step", "rate"),
    [
        ("cosine", 0, 0.0),
        ("cosine", 5, 5e-4),
        ("cosine", 10, 1e-3),
        ("cosine", 55, 0.5e-3),
        ("cosine", 109, 0.5e-3 * (1 + math.cos(math.pi * 0.99))),
        ("linear", 10, 1e-3),
        ("linear", 60, 0.5e-3),
        ("linear", 109, 1e-5),
        ("constant", 109, 1e-3),
    ],
)
def test_rates_are_those_of_the_formula(schedule: str, step: int, rate: float) -> None:
    total = 110 if schedule != "cosine" or step != 55 else 100
    assert learning_rate(step, optim(schedule), total) == pytest.approx(rate, abs=1e-15)


@given(st.integers(1, 300), st.data())
def test_a_rate_is_never_above_the_peak_nor_below_zero(total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, total - 1))
    rates = [learning_rate(step, optim(warmup_steps=warmup), total) for step in range(total)]
    assert all(0 <= rate <= 1e-3 for rate in rates)
    assert max(rates) == 1e-3
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_a_warm_up_that_does_not_end_is_refused() -> None:
    with pytest.raises(SpecError, match="warmup_steps is 10 but the run has only 10 steps"):
        learning_rate(0, optim(), 10)


def test_a_step_beyond_the_run_has_no_rate() -> None:
    with pytest.raises(ValueError, match="step must be in"):
        learning_rate(20, optim(), 20)


def test_durations_are_whole_steps() -> None:
    assert total_steps(DurationSpec(steps=7), steps_per_epoch=3) == 7
    assert total_steps(DurationSpec(epochs=2.5), steps_per_epoch=3) == 8
    assert total_steps(DurationSpec(epochs=0.01), steps_per_epoch=3) == 1
    with pytest.raises(SpecError, match="fewer samples than one global batch"):
        total_steps(DurationSpec(steps=7), steps_per_epoch=0)

"""Learning rates and lengths of runs, against numbers worked out by hand."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.training.schedule import learning_rate, total_steps
from schemas.errors import SpecError
from schemas.optim import DurationSpec, OptimSpec


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


RSQRT = {"schedule": "rsqrt", "timescale_steps": 40, "warmup_steps": 10, "peak_lr": 2e-3}
TRAPEZIUM = {"schedule": "constant", "warmup_steps": 10, "cooldown_steps": 25, "peak_lr": 2e-3}


@pytest.mark.parametrize(
    ("fields", "step", "rate"),
    [
        (RSQRT, 0, 0.0),
        (RSQRT, 9, 1.8e-3),
        (RSQRT, 10, 2e-3),
        (RSQRT, 50, 2e-3 / math.sqrt(2)),
        (RSQRT, 99, 2e-3 / math.sqrt((99 + 40 - 10) / 40)),
        (RSQRT | {"cooldown_steps": 20}, 79, 2e-3 / math.sqrt((79 + 40 - 10) / 40)),
        (RSQRT | {"cooldown_steps": 20}, 90, 1e-3 / math.sqrt((90 + 40 - 10) / 40)),
        (RSQRT | {"cooldown_steps": 20}, 99, 2e-3 / math.sqrt((99 + 40 - 10) / 40) / 20),
        (TRAPEZIUM, 5, 1e-3),
        (TRAPEZIUM, 74, 2e-3),
        (TRAPEZIUM, 75, 2e-3),
        (TRAPEZIUM, 85, 2e-3 * 15 / 25),
        (TRAPEZIUM, 99, 2e-3 / 25),
    ],
)
def test_schedules_without_an_end_of_their_own_cool_down(
    fields: dict[str, Any], step: int, rate: float
) -> None:
    assert learning_rate(step, OptimSpec.parse(fields), 100) == pytest.approx(rate, rel=1e-12)


def test_phases_and_durations_can_be_said_in_samples() -> None:
    fields = TRAPEZIUM | {"warmup_samples": 81, "cooldown_samples": 160}
    said = {**fields, "warmup_steps": 0, "cooldown_steps": 0}
    in_steps = OptimSpec.parse(said).in_steps(8)
    assert (in_steps.warmup_steps, in_steps.cooldown_steps) == (11, 20)
    assert in_steps.warmup_samples is in_steps.cooldown_samples is None
    assert OptimSpec.parse(TRAPEZIUM).in_steps(8) == OptimSpec.parse(TRAPEZIUM)
    assert DurationSpec(samples=100).in_steps(8) == DurationSpec(steps=12)
    assert DurationSpec(samples=1).in_steps(8) == DurationSpec(steps=1)
    assert DurationSpec(epochs=2).in_steps(8) == DurationSpec(epochs=2)
    with pytest.raises(ValueError, match="samples are turned into steps before"):
        learning_rate(0, OptimSpec.parse(said), 100)
    with pytest.raises(ValueError, match="samples are turned into steps before"):
        total_steps(DurationSpec(samples=100), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_samples": 5}, "give warmup_steps or warmup_samples, not both"),
        ({"cooldown_samples": 5}, "give cooldown_steps or cooldown_samples, not both"),
        ({"schedule": "rsqrt"}, "timescale_steps goes with schedule: rsqrt"),
        ({"timescale_steps": 10}, "timescale_steps goes with schedule: rsqrt"),
        ({"schedule": "cosine"}, "schedule cosine reaches zero by itself"),
    ],
)
def test_what_does_not_make_a_schedule_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptimSpec.parse(TRAPEZIUM | changes)


def test_warm_up_and_cool_down_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SpecError, match="of 10 and 25 steps do not fit into a run of 34 steps"):
        learning_rate(0, OptimSpec.parse(TRAPEZIUM), 34)
    assert learning_rate(33, OptimSpec.parse(TRAPEZIUM), 35) == pytest.approx(2e-3 * 2 / 25)


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


def test_a_linear_probe_has_a_rate_of_its_own_and_the_schedule_begins_after_it() -> None:
    plain = optim()
    probed = plain.revise(linear_probe_steps=40, linear_probe_lr=0.2)
    assert learning_rate(0, probed, 150) == 0.2
    assert learning_rate(20, probed, 150) == pytest.approx(0.1)
    assert learning_rate(39, probed, 150) == pytest.approx(0.1 * (1 + math.cos(math.pi * 0.975)))
    for step in (0, 5, 10, 55, 109):
        assert learning_rate(40 + step, probed, 150) == learning_rate(step, plain, 110)
    with pytest.raises(SpecError, match="has only 10 steps after its linear probe"):
        learning_rate(0, probed, 50)
    for half in ({"linear_probe_steps": 3}, {"linear_probe_lr": 0.1}):
        with pytest.raises(ValidationError, match="linear_probe_lr together"):
            plain.revise(**half)

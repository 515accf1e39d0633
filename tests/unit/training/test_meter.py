"""The meter: figures of a window of the run, and its pace as a whole."""

import pytest
import torch

from pipeline.training.meter import Gauge, Meter, Pace
from pipeline.training.peak import measured_peak


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_meter_reads_what_happened_since_the_last_reading() -> None:
    clock = Clock()
    meter = Meter(clock, Gauge(), world_size=1)
    meter.stepped(10)
    meter.waited(0.1)
    clock.now = 0.4
    assert meter.read(at_once=False) == {}, "too short to say anything"
    clock.now = 0.5
    assert meter.read(at_once=False) == {
        "train/images_per_second": 20.0,
        "train/data_wait_ratio": pytest.approx(0.2),
    }
    clock.now = 2.0
    assert meter.read(at_once=True) == {}, "nothing was done"


def test_the_share_of_the_peak_is_that_of_all_workers() -> None:
    clock = Clock()
    meter = Meter(clock, Gauge(flops_per_image=3e9, peak_flops=50e9), world_size=2)
    meter.stepped(40)
    clock.now = 2.0
    assert meter.read(at_once=False)["train/mfu_ratio"] == pytest.approx(20 * 3e9 / 100e9)


@pytest.mark.parametrize("gauge", [Gauge(flops_per_image=1e9), Gauge(peak_flops=1e9)])
def test_a_share_of_what_nobody_knows_is_not_told(gauge: Gauge) -> None:
    clock = Clock()
    meter = Meter(clock, gauge, world_size=1)
    meter.stepped(40)
    clock.now = 2.0
    assert "train/mfu_ratio" not in meter.read(at_once=False)


def test_the_pace_leaves_the_first_step_out_and_pauses_in() -> None:
    clock = Clock()
    meter = Meter(clock, Gauge(), world_size=1)
    clock.now = 60.0
    meter.stepped(8)
    assert meter.pace(3) is None
    clock.now = 61.0
    meter.stepped(8)
    clock.now = 63.0
    meter.restart()
    clock.now = 64.0
    meter.stepped(8)
    assert meter.pace(6) == Pace(images_per_second=4.0, eta_seconds=12.0)


def test_a_cpu_computes_and_is_measured_once() -> None:
    threads = torch.get_num_threads()
    peak = measured_peak("fp32", threads)
    assert peak > 0
    assert measured_peak("fp32", threads) == peak

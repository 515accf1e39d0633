"""The meter: figures of a window of the run."""

import pytest

from pipeline.training.meter import Meter


def test_a_meter_reads_what_happened_since_the_last_reading() -> None:
    now = 0.0
    meter = Meter(lambda: now)
    meter.stepped(10)
    meter.waited(0.1)
    now = 0.4
    assert meter.read(at_once=False) == {}, "too short to say anything"
    now = 0.5
    assert meter.read(at_once=False) == {
        "train/images_per_second": 20.0,
        "train/data_wait_ratio": pytest.approx(0.2),
    }
    now = 2.0
    assert meter.read(at_once=True) == {}, "nothing was done"

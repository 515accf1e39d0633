"""What a device can compute at most: known for GPUs, measured on a CPU."""

import time
from collections.abc import Callable
from functools import lru_cache

import torch

from pipeline.training.precision import HALF

_SIDE = 768
_MEASURED_SECONDS = 0.05
"""Once in a process; the fastest product counts, so that other work on the machine does not."""


@lru_cache(maxsize=8)
def measured_peak(
    precision: str, threads: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOPs in a second of square matrix products on this CPU.

    Args:
        precision: `fp32`, `bf16` or `fp16`.
        threads: As many as torch uses; another number is another measurement.
        clock: Counts seconds.
    """
    assert threads == torch.get_num_threads(), "the peak is that of the run's own threads"  # noqa: S101
    dtype = HALF.get(precision, torch.float32)
    square = torch.ones(_SIDE, _SIDE, dtype=dtype)
    out = square @ square
    began, fastest = clock(), float("inf")
    while clock() - began < _MEASURED_SECONDS:
        since = clock()
        torch.matmul(square, square, out=out)
        fastest = min(fastest, clock() - since)
    return 2 * _SIDE**3 / fastest

"""[model_speed] Forward and backward of our ViT-S/16 at 224 px beside timm's, fp32 on the CPU.

Same weights, images, loss and threads; both in training mode. In each pair the two sides alternate,
three passes each, and their fastest count: other work on the machine only ever adds time. Pairs
take turns at who is first. The median of their ratios counts, with its 95 % bootstrap interval,
whose upper end must hold.
"""

import os
import statistics
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.turns import median_interval
from pipeline.model import build
from pipeline.model.interchange_names import read_weights
from pipeline.model.interchange_timm import rules
from schemas.model import ModelSpec
from tests.support.foreign import noise, randomise, timm

_PAIRS = 15
_PASSES = 3
_SAMPLES = 8
_CLASSES = 1000
_GOAL = 1.03
_NAME = "vit_small_patch16_224"
_SPEC = ModelSpec(variant="S", patch_px=16, image_px=224).to_vit(num_classes=_CLASSES)


def main() -> int:
    """Time the pairs."""
    options = arguments(__doc__, trials=_PAIRS)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    ours, theirs = _models(options.seed)
    images = noise(_SPEC.image_px, samples=_SAMPLES, seed=options.seed)
    labels = torch.arange(_SAMPLES) % _CLASSES
    _same_answers(ours, theirs, images)
    seconds: dict[nn.Module, list[float]] = {ours: [], theirs: []}
    for warm in seconds:
        _seconds(warm, images, labels)
    for index in range(options.trials):
        pair = (ours, theirs) if index % 2 else (theirs, ours)
        passes = [[_seconds(model, images, labels) for model in pair] for _ in range(_PASSES)]
        for model, own in zip(pair, zip(*passes, strict=True), strict=True):
            seconds[model].append(min(own))
    ratios = np.divide(seconds[ours], seconds[theirs])
    low, high = median_interval(ratios.tolist(), options.seed)
    return conclude(
        Figure(
            name="model_speed",
            figure=round(float(np.median(ratios)), 4),
            unit="time of ours over timm's, forward and backward of ViT-S/16 at 224 px",
            goal=f"at most {_GOAL} within the 95 % interval",
            holds=high <= _GOAL,
            conditions=conditions(
                seed=options.seed,
                pairs=options.trials,
                passes_per_pair=2 * _PASSES,
                samples=_SAMPLES,
                threads=torch.get_num_threads(),
                timm=timm().__version__,
            ),
            details={
                "interval_95": [round(low, 4), round(high, 4)],
                "ratio_spread": [round(float(ratios.min()), 4), round(float(ratios.max()), 4)],
                "our_seconds": round(statistics.median(seconds[ours]), 4),
                "timm_seconds": round(statistics.median(seconds[theirs]), 4),
            },
        )
    )


def _models(seed: int) -> tuple[nn.Module, nn.Module]:
    """Ours and timm's, with the same random weights."""
    theirs = timm().create_model(_NAME, num_classes=_CLASSES)
    randomise(theirs, seed=seed)
    ours = build(_SPEC, seed=seed)
    ours.load_state_dict(read_weights(theirs.state_dict(), rules(_SPEC), _SPEC, layout="timm"))
    return ours.train(), theirs.train()


def _same_answers(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=0)


def _seconds(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Of one forward and backward pass."""
    model.zero_grad(set_to_none=True)
    began = time.perf_counter()
    F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]  # torch's own gap
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())

"""[step] Whole steps of our ViT-S/16 at 224 px beside timm's in a bare torch loop, on the CPU.

A step is forward, backward, clipping and AdamW in fp32. Ours is the loop of a stage with the torch
engine, metrics, stop signal and progress file included; timm's is a loop as one writes it by hand,
with torch's own choice of AdamW. Two steps each in turns, the fastest counts; the median of the
rounds' ratios counts, with its 95 % bootstrap interval, whose lower end must hold.
"""

import os
import statistics
import sys

from benchmarks.bare_loops import torch_step
from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.our_loop import OPTIM, run_loop, supervised_spec
from benchmarks.turns import OURS, Turns, held_batch, median_interval
from jobs.train_worker import prepare_torch
from pipeline.model import build
from pipeline.training.engine import TorchEngine
from schemas.model import ModelSpec
from tests.support.foreign import timm

_ROUNDS = 15
_STEPS = 2
_SAMPLES = 8
_CLASSES = 1000
_GOAL = 0.97
_NAME = "vit_small_patch16_224"
_SPEC = ModelSpec(variant="S", patch_px=16, image_px=224).to_vit(num_classes=_CLASSES)


def main() -> int:
    """Time the rounds."""
    options = arguments(__doc__, trials=_ROUNDS)
    prepare_torch(threads := len(os.sched_getaffinity(0)))
    batch = held_batch(_SPEC.image_px, samples=_SAMPLES, classes=_CLASSES, seed=options.seed)
    theirs = timm().create_model(_NAME, num_classes=_CLASSES).train()
    turns = Turns(batch, {"timm": torch_step(theirs, batch, OPTIM)}, options.trials, _STEPS)
    engine = TorchEngine(build(_SPEC, seed=options.seed), supervised_spec(_SPEC, seed=options.seed))
    run_loop(engine, turns, turns.total_steps)
    ratios = turns.fastest("timm") / turns.fastest(OURS)
    low, high = median_interval(ratios.tolist(), options.seed)
    return conclude(
        Figure(
            name="step",
            figure=round(statistics.median(ratios), 4),
            unit="images/s of our whole step over those of timm's model in a bare torch loop",
            goal=f"at least {_GOAL} within the 95 % interval",
            holds=low >= _GOAL,
            conditions=conditions(
                seed=options.seed,
                rounds=options.trials,
                steps_per_round=_STEPS,
                samples=_SAMPLES,
                threads=threads,
                timm=timm().__version__,
            ),
            details={
                "interval_95": [round(low, 4), round(high, 4)],
                **{
                    f"{side}_images_per_second": round(
                        _SAMPLES / statistics.median(turns.fastest(side)), 2
                    )
                    for side in (OURS, "timm")
                },
            },
        )
    )


if __name__ == "__main__":
    sys.exit(main())

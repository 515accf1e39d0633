"""[engine_overhead] Our loop over a bare DeepSpeed loop: ViT-Ti/16, batch 8, ZeRO-1, one process.

The loop is a stage's own, with metrics, the stop signal and the progress file. The bare side is
DeepSpeed with the same configuration, forward, backward and step, and nothing else; plain torch
stands beside both. All do three steps a round in turns, and their fastest counts: other work on the
machine only ever adds time. The median of the rounds' ratios counts, with its 95 % bootstrap
interval, whose upper end must hold.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path

from torch import distributed as dist

from benchmarks.bare_loops import deepspeed_step, torch_step
from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.our_loop import OPTIM, run_loop, supervised_spec
from benchmarks.turns import OURS, Turns, held_batch, median_interval
from jobs.train_worker import prepare_torch
from pipeline.model import build
from schemas.model import ModelSpec

_ROUNDS = 15
_STEPS = 3
_SAMPLES = 8
_CLASSES = 1000
_GOAL_PERCENT = 3.0
_SPEC = ModelSpec(variant="Ti", patch_px=16, image_px=224).to_vit(num_classes=_CLASSES)


def main() -> int:
    """Time the rounds."""
    options = arguments(__doc__, trials=_ROUNDS)
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
    prepare_torch(threads := len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", f"file://{Path(folder) / 'meet'}", rank=0, world_size=1)
        turns = _run(options.seed, options.trials)
        dist.destroy_process_group()
    ours, bare, plain = (turns.fastest(side) for side in (OURS, "deepspeed", "torch"))
    ratios = 100 * (ours / bare - 1)
    low, high = median_interval(ratios.tolist(), options.seed)
    return conclude(
        Figure(
            name="engine_overhead",
            figure=round(statistics.median(ratios), 2),
            unit="percent of a step that our loop adds to DeepSpeed's own",
            goal=f"at most {_GOAL_PERCENT:g} within the 95 % interval",
            holds=high <= _GOAL_PERCENT,
            conditions=conditions(
                seed=options.seed,
                rounds=options.trials,
                steps_per_round=_STEPS,
                samples=_SAMPLES,
                threads=threads,
            ),
            details={
                "interval_95": [round(low, 2), round(high, 2)],
                "deepspeed_over_torch_percent": round(
                    100 * (statistics.median(bare / plain) - 1), 2
                ),
                "our_seconds": round(statistics.median(ours), 4),
                "deepspeed_seconds": round(statistics.median(bare), 4),
                "torch_seconds": round(statistics.median(plain), 4),
            },
        )
    )


def _run(seed: int, rounds: int) -> Turns:
    from pipeline.training.zero import DeepSpeedEngine, ZeroSpec

    spec = supervised_spec(_SPEC, seed=seed)
    zero = ZeroSpec(stage=1, micro_batch=_SAMPLES, accumulation=1)
    engine = DeepSpeedEngine(build(_SPEC, seed=seed), spec, zero)
    batch = held_batch(_SPEC.image_px, samples=_SAMPLES, classes=_CLASSES, seed=seed)
    others = {
        "deepspeed": deepspeed_step(build(_SPEC, seed=seed), batch, spec),
        "torch": torch_step(build(_SPEC, seed=seed), batch, OPTIM),
    }
    turns = Turns(batch, others, rounds, _STEPS)
    run_loop(engine, turns, turns.total_steps)
    return turns


if __name__ == "__main__":
    sys.exit(main())

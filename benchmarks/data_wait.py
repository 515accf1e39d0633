"""[data_wait] A step that gets its batch from the loader over the same step on a held batch.

The model is small enough for far more than 1,000 images/s: one thread trains, as many as there are
further cores decode. Both kinds of steps alternate in one run of our loop, in blocks; the first
steps of a block are left out, since the loader has decoded them ahead. The median over blocks of
the ratio of their means counts.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.loading import photos, shard_set
from benchmarks.our_loop import run_loop, supervised_spec
from benchmarks.turns import held_batch, median_interval
from jobs.train_worker import prepare_torch
from pipeline.data.feed.batches import STEPS_AHEAD, Batch
from pipeline.data.feed.loader import TrainLoader
from pipeline.model import build
from pipeline.training.engine import TorchEngine
from schemas.model import ViTSpec
from schemas.samples import AugmentSpec, BatchSpec

_ROUNDS = 15
_SAMPLES = 64
_BLOCK = 20
_SKIPPED = STEPS_AHEAD + 2
_IMAGES = 2000
_PX = 64
_GOAL = 1.05
_RATE = 1000
_SPEC = ViTSpec(
    width=96, depth=4, num_heads=3, mlp_dim=384, patch_px=16, image_px=(_PX, _PX),
    num_classes=2,
)  # fmt: skip
_AUGMENT = AugmentSpec(crop="inception", flip=True)


@dataclass
class _Alternating:
    """Blocks of steps from a loader and of steps on one batch, and what each step took."""

    loaded: Iterator[tuple[Batch, ...]]
    held: Batch
    rounds: int
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"loader": [], "held": []})
    """Mean of each block."""

    @property
    def total_steps(self) -> int:
        return 2 * (self.rounds + 1) * _BLOCK + 1

    def batches(self, start_step: int) -> Iterator[tuple[Batch, ...]]:
        assert not start_step, "nothing goes on here"
        for _ in range(self.rounds + 1):
            for side, blocks in self.seconds.items():
                spent = []
                for _ in range(_BLOCK):
                    began = time.perf_counter()
                    yield next(self.loaded) if side == "loader" else (self.held,)
                    spent.append(time.perf_counter() - began)
                blocks.append(statistics.mean(spent[_SKIPPED:]))
        for blocks in self.seconds.values():
            del blocks[0]  # warms up
        yield (self.held,)

    def figures(self) -> dict[str, float]:
        return {}


def main() -> int:
    """Alternate the two kinds of steps."""
    options = arguments(__doc__, trials=_ROUNDS)
    prepare_torch(threads=1)
    decoding = max(1, len(os.sched_getaffinity(0)) - 1)
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        raw = photos(options.corpus, where / "raw", limit=_IMAGES)
        source = {"type": "image_folder", "uri": str(raw)}
        split = shard_set(source, where / "set", image={"max_side_px": 72}).split("train")
        loader = TrainLoader(
            split,
            augment=_AUGMENT,
            image_px=_SPEC.image_px,
            batch=BatchSpec(global_samples=_SAMPLES),
            seed=options.seed,
            rank=0,
            world_size=1,
            micro_batch=_SAMPLES,
            threads=decoding,
        )
        model = _SPEC.revise(num_classes=len(split.class_names))
        held = held_batch(
            model.image_px, samples=_SAMPLES, classes=model.num_classes, seed=options.seed
        )
        engine = TorchEngine(
            build(model, seed=options.seed), supervised_spec(model, seed=options.seed)
        )
        with loader:
            steps = _Alternating(loader.batches(0), held, options.trials)
            run_loop(engine, steps, steps.total_steps)
    ratios = np.divide(steps.seconds["loader"], steps.seconds["held"])
    low, high = median_interval(ratios.tolist(), options.seed)
    rates = {side: _SAMPLES / statistics.median(it) for side, it in steps.seconds.items()}
    figure = float(np.median(ratios))
    return conclude(
        Figure(
            name="data_wait",
            figure=round(figure, 4),
            unit="time of a step with the loader over a step on a held batch",
            goal=f"at most {_GOAL}, at {_RATE} images/s or more on the held batch",
            holds=figure <= _GOAL and rates["held"] >= _RATE,
            conditions=conditions(
                seed=options.seed,
                rounds=options.trials,
                steps_per_round=2 * (_BLOCK - _SKIPPED),
                samples=_SAMPLES,
                image_px=_PX,
                threads=torch.get_num_threads(),
                loader_threads=decoding,
            ),
            details={
                "interval_95": [round(low, 4), round(high, 4)],
                **{f"{side}_images_per_second": round(rate, 1) for side, rate in rates.items()},
            },
        )
    )


if __name__ == "__main__":
    sys.exit(main())

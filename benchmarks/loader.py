"""[loader] The loader beside the same decode, crop and resize run bare on all cores at once.

The bare side is one process for each core, with the bytes and the crops of its images in memory:
nothing is read, checked, drawn, ordered or handed over. The decoder, its flags and the crops are
the loader's. Rounds alternate; each gives a ratio, and the median of the ratios counts.
"""

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.loading import one_rank_loader, photos, shard_set
from benchmarks.processes import one_torch_thread
from pipeline.data.feed.augment import Draws
from pipeline.data.feed.course import Passes
from pipeline.data.images.render import render
from pipeline.data.order import EpochOrder
from pipeline.data.shards.shard_set import Split
from schemas.samples import AugmentSpec, BatchSpec

_SAMPLES = 64
_STEPS = 12
_PX = (224, 224)
_ROUNDS = 9
_IMAGES = 1200
_GOAL = 0.90
_AUGMENT = AugmentSpec(crop="inception", flip=True)

Job = tuple[bytes, tuple[int, int, int, int], bool]
"""Stored bytes, what is cut out of them, and whether it is mirrored."""


@dataclass(frozen=True)
class Round:
    """One measurement of both sides."""

    loader: float
    """Images per second."""
    bare: float

    @property
    def ratio(self) -> float:
        """Share of the bare rate that the loader has."""
        return self.loader / self.bare


def main() -> int:
    """Alternate the two sides."""
    options = arguments(__doc__, trials=_ROUNDS)
    one_torch_thread()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        raw = photos(options.corpus, Path(folder) / "raw", limit=_IMAGES)
        source = {"type": "image_folder", "uri": str(raw)}
        split = shard_set(source, Path(folder) / "set").split("train")
        jobs = _jobs(split, options.seed)
        _loader_rate(split, seed=options.seed)  # brings the files into memory
        rounds = [
            Round(_loader_rate(split, seed=options.seed), bare_rate(jobs, cores))
            for _ in range(options.trials)
        ]
    ratios = [each.ratio for each in rounds]
    figure = statistics.median(ratios)
    return conclude(
        Figure(
            name="loader",
            figure=round(figure, 3),
            unit="images/s of the loader over those of the bare work",
            goal=f"at least {_GOAL}",
            holds=figure >= _GOAL,
            conditions=conditions(
                seed=options.seed,
                rounds=options.trials,
                images_per_round=_SAMPLES * _STEPS,
                image_kib=round(statistics.mean(len(data) for data, _, _ in jobs) / 1024, 1),
                input_px=_PX,
            ),
            details={
                "loader_images_per_second": round(statistics.median(r.loader for r in rounds), 1),
                "bare_images_per_second": round(statistics.median(r.bare for r in rounds), 1),
                "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
            },
        )
    )


def _jobs(split: Split, seed: int) -> list[Job]:
    """What the loader does to the images of a round, after its first step."""
    batch = BatchSpec(global_samples=_SAMPLES)
    places = Passes(split.num_rows, batch).places(range(1, _STEPS + 1), rank=0, world_size=1)
    draws = Draws(_AUGMENT, places, seed=seed)
    jobs = []
    for epoch in range(int(places.epoch.max()) + 1):
        order = EpochOrder(split.shard_rows, digest=split.order_digest, seed=seed, epoch=epoch)
        mine = np.flatnonzero(places.epoch == epoch)
        where = order.locate(places.position[mine])
        for index, shard, row in zip(mine, *where, strict=True):
            stored = split.read(int(shard), int(row))
            drawn = draws.params(int(index), (stored.height_px, stored.width_px), _PX)
            jobs.append((stored.image, drawn.box, drawn.mirror))
    return jobs


def _loader_rate(split: Split, *, seed: int) -> float:
    """Images per second of the steps after the first, which finds the pipeline empty."""
    with one_rank_loader(split, _AUGMENT, samples=_SAMPLES, image_px=_PX, seed=seed) as loader:
        steps = loader.batches(0)
        next(steps)
        began = time.perf_counter()
        images = sum(len(batch) for (batch,) in itertools.islice(steps, _STEPS))
        return images / (time.perf_counter() - began)


def bare_rate(jobs: list[Job], cores: int) -> float:
    """Images per second of as many processes as there are cores, begun at the same moment."""
    context = get_context("fork")
    barrier = context.Barrier(cores + 1)
    workers = [
        context.Process(target=_work, args=(jobs[first::cores], barrier.wait))
        for first in range(cores)
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    return len(jobs) / seconds


def _work(jobs: list[Job], meet: Callable[[], int]) -> None:
    out = np.empty((*_PX, 3), np.uint8)
    for data, box, mirror in jobs[:2]:
        render(data, box, out, mirror=mirror)
    meet()
    for data, box, mirror in jobs:
        render(data, box, out, mirror=mirror)
    meet()


if __name__ == "__main__":
    sys.exit(main())

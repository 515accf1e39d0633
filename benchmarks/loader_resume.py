"""[loader_resume] Ranks killed with SIGKILL; three resumes with another world; nothing is lost.

Real processes, one for each rank, write the uids of every step that they get. At a random moment
all of them are killed; the next world, of another size and with another number of threads, goes on
from the first step that not every rank has written. What the last word on each step is must be
what a run without interruption reads.
"""

import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.loading import made_up, photos, shard_set
from pipeline.data.feed.loader import TrainLoader
from pipeline.data.feed.mixtures import AnyData, MixedSplit
from schemas.samples import AugmentSpec, BatchSpec, MixturePhase

_SAMPLES = 48
_STEPS = 24
"""More than an epoch of the set without a mixture."""
_RESUMES = 3
_WORLDS = (1, 2, 3, 4, 6)
_SLOW_SECONDS = 0.004
"""A step of the training that is not there: gives the killer time."""

Steps = dict[int, list[str]]
"""Step -> uids in order, in hex."""


@dataclass(frozen=True)
class Rank:
    """One process: where it begins, and its place in the world."""

    data: AnyData
    file: Path
    rank: int
    world: int
    threads: int
    start: int
    seed: int

    def run(self) -> None:
        """Write a line for each step, until killed or at the end."""
        with (
            TrainLoader(
                self.data,
                augment=AugmentSpec(crop="inception", flip=True, mixup_alpha=0.2),
                image_px=(16, 16),
                batch=BatchSpec(global_samples=_SAMPLES),
                seed=self.seed,
                rank=self.rank,
                world_size=self.world,
                micro_batch=_SAMPLES // self.world,
                threads=self.threads,
            ) as loader,
            self.file.open("a") as file,
        ):
            steps = itertools.islice(loader.batches(self.start), _STEPS - self.start)
            for step, micro in enumerate(steps, start=self.start):
                uids = [uid.tobytes().hex() for batch in micro for uid in batch.uid_B]
                file.write(json.dumps([step, uids]) + "\n")
                file.flush()
                time.sleep(_SLOW_SECONDS)


def main() -> int:
    """Interrupt trials, each three times, and compare them with what was never interrupted."""
    options = arguments(__doc__, trials=100)
    rng = random.Random(options.seed)
    faults = {"missing": 0, "repeated": 0, "misordered": 0}
    kills = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = _data(folder, options.corpus, options.seed)
        expected = [_undisturbed(data, folder / "whole.jsonl", options.seed) for data in cases]
        for trial in range(options.trials):
            case = trial % len(cases)
            found, killed = _trial(cases[case], folder / str(trial), rng, seed=options.seed)
            kills += killed
            for kind, count in _compare(found, expected[case]).items():
                faults[kind] += count
    return conclude(
        Figure(
            name="loader_resume",
            figure=float(sum(faults.values())),
            unit="samples missing, repeated or misordered",
            goal=f"0 over {options.trials} trials of {_RESUMES} resumes each",
            holds=not any(faults.values()) and kills > 0,
            conditions=conditions(
                trials=options.trials, seed=options.seed, steps=_STEPS, worlds=_WORLDS
            ),
            details={**faults, "worlds_killed": kills, "steps_compared": options.trials * _STEPS},
        )
    )


def _data(folder: Path, corpus: Path | None, seed: int) -> list[AnyData]:
    if corpus is not None:
        raw = photos(corpus, folder / "raw", limit=600)
    else:
        raw = made_up(folder / "raw", classes=3, per_class=200, side_px=24, seed=seed)
    extra = made_up(folder / "extra", classes=2, per_class=50, side_px=24, seed=seed + 1)
    small = {"shard_bytes": 50_000, "image": {"max_side_px": 32}}
    one, other = (
        shard_set({"type": "image_folder", "uri": str(uri)}, folder / name, **small).split("train")
        for name, uri in (("one", raw), ("other", extra))
    )
    phases = (
        MixturePhase(from_step=0, weights=(4, 1)),
        MixturePhase(from_step=_STEPS // 2, weights=(1, 1)),
    )
    return [one, MixedSplit((one, other), phases)]


def _undisturbed(data: AnyData, file: Path, seed: int) -> Steps:
    file.unlink(missing_ok=True)
    Rank(data, file, rank=0, world=1, threads=1, start=0, seed=seed).run()
    return _read(file)


def _trial(data: AnyData, folder: Path, rng: random.Random, *, seed: int) -> tuple[Steps, int]:
    """The last word on each step, and how many worlds were killed before they were done."""
    folder.mkdir()
    steps: Steps = {}
    world, killed = 0, 0
    for life in range(_RESUMES + 1):
        world = rng.choice([size for size in _WORLDS if size != world])
        start = next(step for step in itertools.count() if step not in steps)
        threads = rng.randint(1, 3)
        ranks = [
            Rank(data, folder / f"{life}-{rank}", rank, world, threads, start, seed)
            for rank in range(world)
        ]
        # Later lives get further, so that each has steps left to interrupt.
        goal = _STEPS if life == _RESUMES else start + rng.randint(1, _STEPS // (_RESUMES + 1))
        killed += _live(ranks, goal, rng)
        steps |= _joined(ranks)
    return steps, killed


def _live(ranks: list[Rank], goal: int, rng: random.Random) -> bool:
    """Run a world until a random moment after it reached a step; true if it was killed then."""
    processes: list[BaseProcess] = [_CONTEXT.Process(target=rank.run) for rank in ranks]
    for process in processes:
        process.start()
    watched = rng.choice(ranks).file
    while goal < _STEPS and any(it.is_alive() for it in processes) and _lines(watched) < 1:
        time.sleep(0.001)
    if goal < _STEPS:
        time.sleep(rng.uniform(0, 2 * _SLOW_SECONDS * (goal - ranks[0].start)))
    alive = [it for it in processes if goal < _STEPS and it.is_alive()]
    for process in rng.sample(alive, len(alive)):
        os.kill(process.pid or 0, signal.SIGKILL)
    for process in processes:
        process.join()
    return bool(alive)


_CONTEXT = get_context("fork")  # a fresh interpreter for each rank would take seconds


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _read(file: Path) -> Steps:
    """Whole lines only: a kill may tear the last one."""
    whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
    return dict(map(json.loads, whole.splitlines()))


def _joined(ranks: list[Rank]) -> Steps:
    """Steps that every rank has written: what a checkpoint would know."""
    found = [_read(rank.file) for rank in ranks]
    common = set.intersection(*(set(each) for each in found))
    return {step: [uid for each in found for uid in each[step]] for step in common}


def _compare(found: Steps, expected: Steps) -> dict[str, int]:
    missing = repeated = misordered = 0
    for step, uids in expected.items():
        got = found.get(step, [])
        have, want = (np.unique(it, return_counts=True) for it in (got, uids))
        counts, goal = (dict(zip(*it, strict=True)) for it in (have, want))
        missing += sum(max(0, goal[uid] - counts.get(uid, 0)) for uid in goal)
        repeated += sum(max(0, counts[uid] - goal.get(uid, 0)) for uid in counts)
        misordered += sum(a != b for a, b in zip(got, uids, strict=False))
    return {"missing": missing, "repeated": repeated, "misordered": misordered}


if __name__ == "__main__":
    sys.exit(main())

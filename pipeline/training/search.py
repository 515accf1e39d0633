"""Choose learning rate and number of steps on a held-out part of the training labels.

Every pair of the grid is trained with the one loop and the reference engine, in this process, and
measured on images that it has not seen. The test split is never touched.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from pipeline.data.feed.loader import TrainLoader, eval_batches
from pipeline.data.order import keyed_hash
from pipeline.data.shards.shard_set import AnySplit
from pipeline.model.backbone import Backbone, normalise
from pipeline.training.engine import EngineSpec, TorchEngine
from pipeline.training.loop import Watch, train
from pipeline.training.objectives.common import Objective
from pipeline.training.precision import autocast
from schemas.backbones import BackboneSpec
from schemas.errors import DataError
from schemas.optim import OptimSpec
from schemas.report import SearchReport, SearchTrial
from schemas.training import FinetuneSpec
from schemas.tuning import SearchSpec

_EVAL_SAMPLES = 256

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Bench:
    """What every trial of a search shares."""

    spec: FinetuneSpec
    search: SearchSpec
    split: AnySplit
    new_model: Callable[[], Backbone]
    """Gives the start of a trial, equal each time."""
    objective: Objective
    seed: int
    device: torch.device


@dataclass(frozen=True)
class Trial:
    """One pair on one draw of the held-out part."""

    peak_lr: float
    steps: int
    repeat: int
    top1_ratio: float
    nll: float
    """Mean negative log-likelihood; decides between equal accuracies."""


def run_search(bench: Bench, journal: Path, watch: Watch) -> SearchReport:
    """Train and measure every pair on every draw; trials that `journal` holds are not repeated.

    Args:
        bench: What is trained, and on what.
        journal: File of finished trials, one JSON line each; made as needed.
        watch: Its stop signal is asked at every step; its `say` hears of each trial.

    Raises:
        PausedError: On request; the finished trials are kept.
        DataError: If a class has a single image, so that none can be held out.
    """
    done = {(trial.peak_lr, trial.steps, trial.repeat): trial for trial in _read(journal)}
    grid = list(product(range(bench.search.repeats), bench.search.peak_lr, bench.search.steps))
    for number, (repeat, peak_lr, steps) in enumerate(grid, start=1):
        if (peak_lr, steps, repeat) in done:
            continue
        trial = _run_trial(bench, peak_lr, steps, repeat=repeat, stop=Watch(stop=watch.stop))
        with journal.open("a") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
        done[peak_lr, steps, repeat] = trial
        watch.say(
            f"search {number} of {len(grid)}: peak_lr {peak_lr:g}, {steps} steps, "
            f"{trial.top1_ratio:.3f} right of the held-out images"
        )
    return choose(list(done.values()), bench.search)


def choose(trials: list[Trial], search: SearchSpec) -> SearchReport:
    """Mean over the repeats of each pair; the most accurate wins, then the smallest NLL."""
    rows, scores = [], []
    for peak_lr, steps in product(search.peak_lr, search.steps):
        own = [trial for trial in trials if (trial.peak_lr, trial.steps) == (peak_lr, steps)]
        top1 = float(np.mean([trial.top1_ratio for trial in own]))
        rows.append(SearchTrial(peak_lr=peak_lr, steps=steps, holdout_top1_ratio=top1))
        scores.append((-top1, float(np.mean([trial.nll for trial in own]))))
    return SearchReport(trials=tuple(rows), chosen=scores.index(min(scores)))


def trial_optim(optim: OptimSpec, peak_lr: float, steps: int) -> OptimSpec:
    """The schedule of one pair: what does not fit into its steps becomes a tenth of them.

    That is, the linear probe if it would not end in time, then the warm-up, then the cool-down. The
    final training with the chosen pair uses the same rule.
    """
    probe, warmup, cooldown = optim.linear_probe_steps, optim.warmup_steps, optim.cooldown_steps
    tenth = steps // 10
    probe = probe if probe < steps else tenth
    left = steps - probe
    warmup = warmup if warmup < left else tenth
    cooldown = cooldown if warmup + cooldown <= left else min(tenth, left - warmup)
    return optim.revise(
        peak_lr=peak_lr,
        linear_probe_steps=probe,
        linear_probe_lr=optim.linear_probe_lr if probe else None,
        warmup_steps=warmup,
        cooldown_steps=cooldown,
    )


def trial_micro_batch(samples: int, given: int | str | None) -> int:
    """The largest part of a trial's batch that is no larger than a `micro_batch` that is given.

    An even one where both are even: neighbours may be mixed.
    """
    if not isinstance(given, int):
        return samples
    step = 2 if samples % 2 == given % 2 == 0 else 1
    return max(size for size in range(step, min(given, samples) + 1, step) if samples % size == 0)


def hold_out(labels: Rows, ratio: float, *, seed: int, repeat: int) -> tuple[Rows, Rows]:
    """Rows to train on and rows held out, both ascending: the share `ratio` of each class.

    At least one image of each class is on either side. The draw depends on the place of a row in
    its split and on (seed, repeat), on nothing else.

    Raises:
        DataError: If a class has a single image.
    """
    held: list[int] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label).tolist()
        if len(rows) < 2:
            raise DataError(
                f"class {label} has one training image, so none can be held out for the search",
                hint="take more images of each class, or remove search",
            )
        drawn = sorted(rows, key=lambda row: keyed_hash(f"holdout/{repeat}", seed, _bytes(row)))
        held += drawn[: min(len(rows) - 1, max(1, round(ratio * len(rows))))]
    held_rows = np.array(sorted(held), np.int64)
    return np.setdiff1d(np.arange(len(labels), dtype=np.int64), held_rows), held_rows


def _bytes(row: int) -> bytes:
    return row.to_bytes(8, "big")


def _run_trial(bench: Bench, peak_lr: float, steps: int, *, repeat: int, stop: Watch) -> Trial:
    spec = bench.spec
    kept, held = hold_out(
        bench.split.labels(), bench.search.holdout_ratio, seed=bench.seed, repeat=repeat
    )
    model = bench.new_model()
    optim = trial_optim(spec.optim, peak_lr, steps)
    engine = TorchEngine(
        model, EngineSpec(optim, bench.objective, spec.precision, bench.device, bench.seed)
    )
    samples = min(spec.batch.global_samples, len(kept))
    if spec.augment.mixes:
        samples -= samples % 2
    with TrainLoader(
        bench.split.subset(kept),
        augment=spec.augment,
        image_px=model.spec.image_px,
        batch=spec.batch.revise(global_samples=samples),
        seed=bench.seed,
        rank=0,
        world_size=1,
        micro_batch=trial_micro_batch(samples, spec.resources.micro_batch),
        threads=spec.resources.loader_threads,
    ) as loader:
        train(engine, loader, optim=optim, total_steps=steps, keeper=None, watch=stop)
    model.load_state_dict(dict(engine.weights()), strict=False)  # without the buffers
    top1_ratio, nll = _measure(engine, model.spec, bench.split.subset(held))
    return Trial(peak_lr, steps, repeat, top1_ratio, nll)


def _measure(engine: TorchEngine, spec: BackboneSpec, split: AnySplit) -> tuple[float, float]:
    """Share of right answers and mean NLL over all rows of `split`."""
    model, device = engine.model.eval(), engine.spec.device
    right, nll = 0, 0.0
    for batch in eval_batches(
        split, image_px=spec.image_px, batch_samples=_EVAL_SAMPLES, threads=1
    ):
        pixels_BHWC = torch.from_numpy(batch.pixels_BHWC).to(device)
        label_B = torch.from_numpy(batch.label_B).to(device)
        with torch.no_grad(), autocast(engine.spec.precision, device):
            logits_BK = model(normalise(pixels_BHWC, spec)).float()
        right += int((logits_BK.argmax(dim=1) == label_B).sum())
        nll += F.cross_entropy(logits_BK, label_B, reduction="sum").item()
    return right / split.num_rows, nll / split.num_rows


def _read(journal: Path) -> Iterator[Trial]:
    """Finished trials; a last line that was torn by a kill is cut off."""
    if not journal.exists():
        return
    whole = journal.read_text().rpartition("\n")[0]
    journal.write_text(f"{whole}\n" if whole else "")
    for line in whole.splitlines():
        yield Trial(**json.loads(line))

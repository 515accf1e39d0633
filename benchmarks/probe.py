"""[probe] A real, imported DINOv2 ViT-S/14 under the probes, on real photos.

Its weights come in through the interchange, its positions are resized to 112 px, its features are
computed once for each set, and probed as the stages `features` and `probe` do it: beside what a
linear probe reached on the same photos before. On fewer images stand beside it a ViT-S of random
weights and the photos' pixels at 32 px. Of images of one's own (`--corpus`: a tree or tar of class
folders) nothing is known before, and that margin is the figure.
"""

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.in_process import serial_tools
from benchmarks.loading import shard_set
from benchmarks.raw_corpora import CLOTHING
from pipeline.data.shards.shard_set import ShardSet
from pipeline.evaluation.baselines import load_pixels
from pipeline.evaluation.features import Extract, Features
from pipeline.evaluation.logistic import fit_logistic
from pipeline.evaluation.passes import Pass, run_pass
from pipeline.evaluation.probes.drawing import hold_out, ranks
from pipeline.evaluation.probes.probing import ProbeData, probe
from pipeline.model import build
from pipeline.model.interchange import load
from pipeline.model.saved import save_model
from pipeline.model.transfer import adapt
from schemas.backbones import BackboneSpec
from schemas.checkpoint import SavedModel
from schemas.probing import ProbeReport, ProbeSpec

DINOV2 = CLOTHING.with_name("dinov2-vits14-focus")
CIFAR = CLOTHING.with_name("cifar10-jpeg.tar")
_PX = 112
_PIXELS_PX = 32
_FEWER = 600
"""Images of each split, at most, that the random model sees."""
_BATCH = 64
_POINTS = 2.0
_MARGIN = 0.20
_HOLDOUT_RATIO = 0.2
_SPEC = ProbeSpec.parse({"features": "features", "neighbours": [1, 10, 20]})

Numbers = NDArray[Any]
"""A row for each image."""


class Photos(NamedTuple):
    """A set, and what a linear probe and ten neighbours reached on it before, in percent."""

    name: str
    data: ShardSet
    linear: float | None = None
    neighbours: float | None = None


def main() -> int:
    """Probe each set."""
    options = arguments(__doc__)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        where, details = Path(folder), dict[str, Any]()
        model, gaps = _imported(where / "imported"), []
        for photos in _sets(options.corpus, where, options.seed):
            report = _probe(photos, model, where / photos.name, seed=options.seed)
            details[photos.name] = _told(photos, report)
            if photos.linear is not None:
                gaps.append(abs(100 * report.accuracies[-1].top1_ratio - photos.linear))
            if "margin" not in details:
                details["margin"] = _margin(photos, model, where, seed=options.seed)
    margin = 100 * details["margin"]["points"]
    details["seconds"] = round(time.perf_counter() - began, 1)
    of_own = Figure(
        name="probe",
        figure=round(margin, 1),
        unit="points of top-1 above the better of pixels and a random ViT-S",
        goal=f"at least {100 * _MARGIN:.0f}",
        holds=margin >= 100 * _MARGIN,
        conditions=conditions(seed=options.seed, image_px=_PX),
        details=details,
    )
    if options.corpus is not None:
        return conclude(of_own)
    return conclude(
        of_own.revise(
            figure=round(max(gaps), 1),
            unit="points between the linear probe and what one reached before, at most",
            goal=f"at most {_POINTS:g}; and {100 * _MARGIN:.0f} above pixels and a random ViT-S",
            holds=of_own.holds and max(gaps) <= _POINTS,
        )
    )


def _sets(corpus: Path | None, where: Path, seed: int) -> list[Photos]:
    image = {"max_side_px": 256}
    if corpus is not None:
        source = {"type": "tar" if corpus.is_file() else "image_folder", "uri": str(corpus)}
        data = shard_set(source, where / "own-set", image=image, split={"test_ratio": 0.2})
        return [Photos("own", data)]
    splits = {it: f"clothing/{it}" for it in ("train", "test")}
    clothing = {"type": "tar", "uri": str(CLOTHING), "splits": splits}
    splits = {it: f"cifar10/{it}" for it in ("train", "test")}
    cifar = {"type": "tar", "uri": str(CIFAR), "splits": splits}
    few = {"per_class": {"train": 200, "test": 100}, "seed": seed}
    return [
        Photos("clothing", shard_set(clothing, where / "clothing-set", image=image), 79.6, 54.6),
        Photos("cifar10", shard_set(cifar, where / "cifar10-set", select=few), 70.0, 51.0),
    ]


def _imported(folder: Path) -> Path:
    """The real weights on the smaller grid, as a saved model."""
    found = load(DINOV2)
    target = found.spec.revise(image_px=(_PX, _PX))
    return _saved(folder, target, adapt(found.weights, found.spec, target))


def _random(folder: Path, seed: int) -> Path:
    """The same architecture with its initial weights."""
    model = build(load(DINOV2).spec.revise(image_px=(_PX, _PX)), seed=seed)
    return _saved(folder, model.spec, model.state_dict())


def _saved(folder: Path, spec: BackboneSpec, weights: Mapping[str, Tensor]) -> Path:
    save_model(folder, weights, SavedModel(spec=spec, class_names=(), trained_steps=0))
    return folder


def _features(
    model: Path, data: ShardSet, split: str, where: Path, *, images: int | None = None
) -> Features:
    """One pass by a single process, as the stage `features` does it."""
    threads = len(os.sched_getaffinity(0))
    task = Pass(data.folder, split, Extract(model), _BATCH, threads, images=images)
    where.mkdir(parents=True, exist_ok=True)
    tools = serial_tools(where / "progress")
    return Features(run_pass(task, where / f"{split}.arrow", tools=tools, label=split))


def _probe(photos: Photos, model: Path, where: Path, *, seed: int) -> ProbeReport:
    """Every method on all images of the set."""
    train, test = (_features(model, photos.data, split, where) for split in ("train", "test"))
    data = ProbeData(train, test, "test", photos.data.class_names, seed)
    return probe(_SPEC, data, say=lambda line: print(f"{photos.name}: {line}", flush=True))


def _told(photos: Photos, report: ProbeReport) -> dict[str, Any]:
    found = {
        it.method: [round(100 * ratio, 1) for ratio in (it.top1_ratio, it.low_ratio, it.high_ratio)]
        for it in report.accuracies
    }
    means = {
        f"few_shot_{it.shots}": [round(100 * it.mean_ratio, 1), round(100 * (it.std_ratio or 0), 1)]
        for it in report.few_shot_means
    }
    return {
        "train_images": report.train_images,
        "test_images": sum(report.class_counts),
        "percent_and_interval": found,
        "percent_and_spread": means,
        "before": {"linear": photos.linear, "knn_10": photos.neighbours},
        "C": report.chosen["logistic_regression.C"],
    }


def _margin(photos: Photos, imported: Path, where: Path, *, seed: int) -> dict[str, float]:
    """Logistic regression on the same few images: imported and random features, and pixels."""
    ratios = {}
    for name, model in (("imported", imported), ("random", _random(where / "random", seed))):
        train, test = (
            _features(model, photos.data, split, where / f"few-{name}", images=_FEWER)
            for split in ("train", "test")
        )
        ratios[name] = _linear(train, test, (train.all(), test.all()), seed=seed)
    pixels = _pixels(photos.data, "train"), _pixels(photos.data, "test")
    ratios["pixels"] = _linear(train, test, pixels, seed=seed)
    points = ratios["imported"] - max(ratios["random"], ratios["pixels"])
    return {name: round(it, 4) for name, it in (ratios | {"points": points}).items()}


def _pixels(data: ShardSet, name: str) -> Numbers:
    split = data.split(name)
    few = split.subset(np.arange(min(_FEWER, split.num_rows)))
    return load_pixels(few, image_px=_PIXELS_PX, threads=2)[0]


def _linear(
    train: Features, test: Features, numbers: tuple[Numbers, Numbers], *, seed: int
) -> float:
    """Share of the test images that are answered right by the numbers of both sets' images."""
    rank = ranks(train, purpose="probe-holdout", seed=seed)
    fold = hold_out(train.labels, rank, ratio=_HOLDOUT_RATIO)
    seen, unseen = numbers
    fitted = fit_logistic(seen.astype(np.float64), train.labels, [] if fold is None else [fold])
    return float((fitted.predict(unseen) == test.labels).mean())


if __name__ == "__main__":
    sys.exit(main())

"""[imported_probe] A real DINOv2 ViT-S/14, imported, under a linear probe on real photos.

Its file comes in through the interchange, its positions are resized to 112 px, and logistic
regression learns from the features of the class token. The same is done with a ViT-S of random
weights, and with the photos' pixels at 32 px; the penalty of each is chosen by cross-validation on
the training labels. Without a split of its own, a corpus is divided by a hash of its images.
"""

import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.loading import shard_set
from benchmarks.raw_corpora import CLOTHING
from pipeline.data.feed.loader import eval_batches
from pipeline.data.shards.shard_set import AnySplit, ShardSet
from pipeline.evaluation.metrics import wilson_interval
from pipeline.model import build
from pipeline.model.backbone import Backbone, normalise
from pipeline.model.building import unfilled
from pipeline.model.interchange import load
from pipeline.model.transfer import adapt

DINOV2 = CLOTHING.with_name("dinov2-vits14-focus")
_PX = 112
_PIXELS_PX = 32
_TRAIN_IMAGES = 1200
_TEST_IMAGES = 1000
_SAMPLES = 64
_MARGIN = 0.20
"""By how much the imported model has to be above each of the others."""
_C_GRID = (1e-4, 1e-3, 1e-2, 1e-1)
_FOLDS = 3

Features = NDArray[np.floating[Any]]


def main() -> int:
    """Probe all three on the same images."""
    options = arguments(__doc__)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        corpus = options.corpus or CLOTHING
        train, test = _splits(_photos(corpus, Path(folder)), options.seed)
        accuracies = {
            name: _probe(features, train, test, seed=options.seed)
            for name, features in (
                ("imported", _features_of(_imported())),
                ("random", _features_of(_random(options.seed))),
                ("pixels", _pixels),
            )
        }
    best_other = max(accuracies["random"], accuracies["pixels"])
    margin = accuracies["imported"] - best_other
    intervals = {
        name: wilson_interval(round(share * test.num_rows), test.num_rows)
        for name, share in accuracies.items()
    }
    return conclude(
        Figure(
            name="imported_probe",
            figure=round(100 * margin, 1),
            unit="points of top-1 above the better of pixels and a random ViT-S",
            goal=f"at least {100 * _MARGIN:.0f}",
            holds=margin >= _MARGIN,
            conditions=conditions(
                corpus=corpus.name,
                seed=options.seed,
                train_images=train.num_rows,
                test_images=test.num_rows,
                image_px=_PX,
            ),
            details={
                "top1": {name: round(share, 4) for name, share in accuracies.items()},
                "interval_95": {
                    name: [round(it, 4) for it in ends] for name, ends in intervals.items()
                },
                "seconds": round(time.perf_counter() - began, 1),
            },
        )
    )


def _photos(corpus: Path, where: Path) -> ShardSet:
    kind = "tar" if corpus.is_file() else "image_folder"
    source: dict[str, Any] = {"type": kind, "uri": str(corpus)}
    if corpus == CLOTHING:
        source["splits"] = {"train": "clothing/train", "test": "clothing/test"}
        return shard_set(source, where, image={"max_side_px": 256})
    return shard_set(source, where, image={"max_side_px": 256}, split={"test_ratio": 0.2})


def _splits(data: ShardSet, seed: int) -> tuple[AnySplit, AnySplit]:
    """A random draw of the training images, and the test images."""
    drawn = np.random.default_rng(seed)
    found = []
    for name, limit in (("train", _TRAIN_IMAGES), ("test", _TEST_IMAGES)):
        split = data.split(name)
        rows = drawn.permutation(split.num_rows)[:limit]
        found.append(split.subset(np.sort(rows)))
    return found[0], found[1]


def _imported() -> Backbone:
    """The real weights on the smaller grid."""
    found = load(DINOV2)
    target = found.spec.revise(image_px=(_PX, _PX))
    model = unfilled(target)
    model.load_state_dict(adapt(found.weights, found.spec, target), assign=True)
    return model.eval()


def _random(seed: int) -> Backbone:
    """The same architecture with its initial weights."""
    return build(load(DINOV2).spec.revise(image_px=(_PX, _PX)), seed=seed).eval()


def _features_of(model: Backbone) -> Any:
    def features(split: AnySplit) -> tuple[Features, NDArray[np.int64]]:
        found, labels = [], []
        batches = eval_batches(
            split, image_px=model.spec.image_px, batch_samples=_SAMPLES, threads=2
        )
        for batch in batches:
            pixels = normalise(torch.from_numpy(batch.pixels_BHWC), model.spec)
            with torch.no_grad():
                found.append(model.forward_features(pixels).numpy())
            labels.append(batch.label_B)
        return np.concatenate(found), np.concatenate(labels)

    return features


def _pixels(split: AnySplit) -> tuple[Features, NDArray[np.int64]]:
    found, labels = [], []
    for batch in eval_batches(
        split, image_px=(_PIXELS_PX, _PIXELS_PX), batch_samples=_SAMPLES, threads=2
    ):
        found.append(batch.pixels_BHWC.reshape(len(batch), -1).astype(np.float64))
        labels.append(batch.label_B)
    return np.concatenate(found), np.concatenate(labels)


def _probe(features: Any, train: AnySplit, test: AnySplit, *, seed: int) -> float:
    """Share of the test images that logistic regression on standardised features gets right."""
    seen, seen_labels = features(train)
    unseen, unseen_labels = features(test)
    mean, spread = seen.mean(axis=0), np.maximum(seen.std(axis=0), 1e-12)
    probe = LogisticRegressionCV(
        Cs=_C_GRID,
        l1_ratios=(0.0,),
        cv=StratifiedKFold(_FOLDS, shuffle=True, random_state=seed),
        scoring="neg_log_loss",
        max_iter=500,
        use_legacy_attributes=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit((seen - mean) / spread, seen_labels)
    return float((probe.predict((unseen - mean) / spread) == unseen_labels).mean())


if __name__ == "__main__":
    sys.exit(main())

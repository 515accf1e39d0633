"""[shuffle] Batches of a class-sorted corpus hold classes as those of a full permutation do.

The storage order and the order of an epoch are computed for 1,281,167 images of 1,000 classes by
the functions that build and load use, without the images; a small corpus is really built and
loaded, to show that its rows lie where these functions say.
"""

import hashlib
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.loading import made_up, photos, shard_set
from pipeline.data.order import EpochOrder, keyed_hash
from pipeline.data.shards.shard_set import ShardSet

_ROWS, _CLASSES = 1_281_167, 1000
_SHARDS = 512
"""As many buckets as 96 MiB shards of ImageNet at 512 px make, in a power of two."""
_BATCHES = (256, 1024, 4096)
_EPOCHS = 2
_LOW, _HIGH = 0.9, 1.1

Labels = NDArray[np.int64]


def main() -> int:
    """Compare both, batch size by batch size."""
    options = arguments(__doc__)
    stored, shard_rows = _storage(options.seed)
    rng = np.random.default_rng(options.seed)
    ratios, details = [], {}
    for samples in _BATCHES:
        ours = [
            _chi2(_epoch(stored, shard_rows, epoch, options.seed), samples)
            for epoch in range(_EPOCHS)
        ]
        full = [_chi2(rng.permutation(stored), samples) for _ in range(_EPOCHS)]
        ratios.append(statistics.mean(ours) / statistics.mean(full))
        details[f"batch_{samples}"] = {
            "chi2_per_df": round(statistics.mean(ours), 4),
            "full_permutation": round(statistics.mean(full), 4),
            "ratio": round(ratios[-1], 4),
        }
    with tempfile.TemporaryDirectory() as folder:
        as_computed = _really(Path(folder), options.corpus, options.seed)
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    return conclude(
        Figure(
            name="shuffle",
            figure=round(worst, 4),
            unit="chi2/df of class counts over that of a full permutation, worst batch size",
            goal=f"{_LOW} to {_HIGH}",
            holds=all(_LOW <= ratio <= _HIGH for ratio in ratios) and as_computed,
            conditions=conditions(
                rows=_ROWS, classes=_CLASSES, shards=_SHARDS, epochs=_EPOCHS, seed=options.seed
            ),
            details={**details, "small_build_lies_as_computed": as_computed},
        )
    )


def _storage(seed: int) -> tuple[Labels, Labels]:
    """Label of each stored row of a class-sorted corpus, and the rows of each shard."""
    uids = (hashlib.sha256(f"{seed}/{row}".encode()).digest()[:16] for row in range(_ROWS))
    hashes = np.fromiter((keyed_hash("order", 0, uid) for uid in uids), np.uint64, _ROWS)
    labels = np.arange(_ROWS) * _CLASSES // _ROWS
    order = np.argsort(hashes)
    buckets = hashes[order] >> np.uint64(64 - _SHARDS.bit_length() + 1)
    return labels[order], np.bincount(buckets.astype(np.int64), minlength=_SHARDS)


def _epoch(stored: Labels, shard_rows: Labels, epoch: int, seed: int) -> Labels:
    """Labels in the order in which an epoch reads them."""
    order = EpochOrder(shard_rows, digest="simulated", seed=seed, epoch=epoch)
    starts = np.concatenate([[0], np.cumsum(shard_rows)[:-1]])
    shards, rows = order.locate(np.arange(_ROWS))
    read: Labels = stored[starts[shards] + rows]
    return read


def _chi2(labels: Labels, samples: int) -> float:
    """Mean over whole batches of chi2/df of the class counts, against the corpus's shares."""
    share = np.bincount(labels, minlength=_CLASSES) / len(labels)
    whole = labels[: len(labels) // samples * samples].reshape(-1, samples)
    cells = whole + np.arange(len(whole))[:, None] * _CLASSES
    counts = np.bincount(cells.ravel(), minlength=len(whole) * _CLASSES).reshape(-1, _CLASSES)
    expected = samples * share
    return float((((counts - expected) ** 2 / expected).sum(axis=1) / (_CLASSES - 1)).mean())


def _really(folder: Path, corpus: Path | None, seed: int) -> bool:
    """Whether a set that was built lies in the order of the keyed hash, shards in its ranges."""
    if corpus is not None:
        raw = photos(corpus, folder / "raw", limit=1000)
    else:
        raw = made_up(folder / "raw", classes=10, per_class=80, side_px=24, seed=seed)
    source = {"type": "image_folder", "uri": str(raw)}
    small = {"shard_bytes": 100_000, "image": {"max_side_px": 32}}
    data = shard_set(source, folder / "set", **small)
    return all(_sorted_by_hash(data, name) for name in data.manifest.splits)


def _sorted_by_hash(data: ShardSet, name: str) -> bool:
    split = data.split(name)
    hashes = [keyed_hash("order", 0, split.row(row).uid) for row in range(split.num_rows)]
    return hashes == sorted(hashes) and len(split.shard_rows) > 1


if __name__ == "__main__":
    sys.exit(main())

"""[order] Steps hold the same uids, pixels, partners and weights for any world size and threads.

Every sample of several steps is hashed as it leaves the loader, so that what the digest covers is
the order, every parameter of the augmentation as it shows in the pixels, and how samples are mixed.
The first steps of an epoch, steps across the end of one, and a mixture with a change of weights.
"""

import hashlib
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.loading import made_up, photos, shard_set
from pipeline.data.feed.loader import Batch, TrainLoader
from pipeline.data.feed.mixtures import AnyData, MixedSplit
from schemas.samples import AugmentSpec, BatchSpec, ColourJitterSpec, MixturePhase, RandAugmentSpec

_SAMPLES = 120
_WORLDS = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20)
_THREADS = (1, 2, 3, 7)
_STEPS = 2
_AUGMENT = AugmentSpec(
    crop="inception",
    flip=True,
    colour_jitter=ColourJitterSpec(brightness=0.3, hue=0.1),
    randaugment=RandAugmentSpec(layers=2, magnitude=10),
    erase_ratio=0.25,
    mixup_alpha=0.2,
    cutmix_alpha=1.0,
)


def main() -> int:
    """Digest the same steps on every topology."""
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        data = _data(Path(folder), options.corpus, options.seed)
        found: dict[str, list[str]] = {}
        for world, threads in itertools.product(_WORLDS, _THREADS):
            for name, digest in _digests(data, world, threads, seed=options.seed).items():
                found.setdefault(name, []).append(digest)
    distinct = {name: len(set(digests)) for name, digests in found.items()}
    return conclude(
        Figure(
            name="order",
            figure=float(max(distinct.values())),
            unit="distinct digests of the same steps",
            goal="1 over 10 world sizes x 4 thread counts",
            holds=set(distinct.values()) == {1},
            conditions=conditions(
                seed=options.seed, worlds=_WORLDS, threads=_THREADS, global_samples=_SAMPLES
            ),
            details={"cases": distinct, "digests": {name: it[0] for name, it in found.items()}},
        )
    )


def _data(folder: Path, corpus: Path | None, seed: int) -> dict[str, AnyData]:
    if corpus is not None:
        raw = photos(corpus, folder / "raw", limit=400)
    else:
        raw = made_up(folder / "raw", classes=4, per_class=100, seed=seed)
    extra = made_up(folder / "extra", classes=3, per_class=50, seed=seed + 1)
    small = {"shard_bytes": 100_000, "image": {"max_side_px": 96}}
    one, other = (
        shard_set({"type": "image_folder", "uri": str(uri)}, folder / name, **small).split("train")
        for name, uri in (("one", raw), ("other", extra))
    )
    phases = (
        MixturePhase(from_step=0, weights=(3, 1)),
        MixturePhase(from_step=_STEPS - 1, weights=(1, 1)),
    )
    mixed = MixedSplit((one, other), phases)
    return {"start": one, "end of epoch": one, "exact tail": one, "mixture": mixed}


def _digests(data: dict[str, AnyData], world: int, threads: int, *, seed: int) -> dict[str, str]:
    return {name: _digest(it, name, world, threads=threads, seed=seed) for name, it in data.items()}


def _digest(data: AnyData, case: str, world: int, *, threads: int, seed: int) -> str:
    ranks = [_rank(data, case, (rank, world), threads=threads, seed=seed) for rank in range(world)]
    digest = hashlib.sha256()
    for step in range(_STEPS):
        for column in range(len(ranks[0][step])):
            for rank in ranks:
                digest.update(rank[step][column])
    return digest.hexdigest()


def _rank(
    data: AnyData, case: str, place: tuple[int, int], *, threads: int, seed: int
) -> list[list[bytes]]:
    """For each step: the columns of the rank's share, so that those of the ranks can be joined."""
    rank, world = place
    exact = BatchSpec(global_samples=_SAMPLES, tail="exact")
    with TrainLoader(
        data,
        augment=_AUGMENT,
        image_px=(32, 40),
        batch=exact if case == "exact tail" else exact.revise(tail="drop"),
        seed=seed,
        rank=rank,
        world_size=world,
        micro_batch=_SAMPLES // world,
        threads=threads,
    ) as loader:
        start = 0 if case in ("start", "mixture") else loader.steps_per_epoch - 1
        steps = itertools.islice(loader.batches(start), _STEPS)
        return [_columns(batch) for (batch,) in steps]


def _columns(batch: Batch) -> list[bytes]:
    weight = np.ones(len(batch), np.float32) if batch.weight_B is None else batch.weight_B
    columns: list[NDArray[Any]] = [batch.uid_B, batch.label_B, batch.pixels_BHWC, weight]
    if batch.mix is not None:
        columns += [batch.mix.keep_B, batch.mix.box_B4]
    return [column.tobytes() for column in columns]


if __name__ == "__main__":
    sys.exit(main())

"""[loader_peers] Images/s beside five other loaders: same JPEGs, same crops, same cores.

Each peer runs at the best of three settings, as shipped (Pillow decodes) and with our JPEG decoder
in the place of Pillow's; crop and resize are Pillow's there, as the peers document them. That each
peer delivers our pixels, within two levels, is checked image by image. Further down the report
stands what the peers reach with all of our rendering in them: what then is left is the loader.
"""

import gc
import itertools
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.loading import one_rank_loader, photos, shard_set
from benchmarks.peers import BATCH, Batches, Box, Crops, Opener, Setting, opened_peers
from benchmarks.processes import one_torch_thread
from pipeline.data.feed.augment import Draws
from pipeline.data.feed.course import Passes
from pipeline.data.feed.loader import TrainLoader
from pipeline.data.order import EpochOrder
from pipeline.data.shards.shard_set import Split
from schemas.samples import AugmentSpec, BatchSpec

_STEPS = 8
_PX = (224, 224)
_ROUNDS = 3
_GOAL = 1.3
_LEVELS = 2
_AUGMENT = AugmentSpec(crop="inception")
_COUNTED = ("shipped", "ours")
"""Decoders that the figure counts; `render` stands in the report only."""

Way = tuple[str, str]
"""A peer and a decoder."""


@dataclass(frozen=True)
class Sample:
    """An image of the first epoch, as our loader reads it."""

    uid: bytes
    data: bytes
    box: Box


def main() -> int:
    """Choose each peer's best setting, then measure all of them in turns."""
    options = arguments(__doc__, trials=_ROUNDS)
    one_torch_thread()
    cores = len(os.sched_getaffinity(0))
    settings = (Setting(cores, 2), Setting(2 * cores, 2), Setting(cores, 4))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = {"type": "image_folder", "uri": str(_raw(options.corpus, folder))}
        split = shard_set(source, folder / "set").split("train")
        samples = _samples(split, options.seed)
        peers, missing = opened_peers([it.data for it in samples], folder / "peers")
        boxes = tuple(it.box for it in samples)
        best = _best(peers, boxes, settings)
        differs = _differences(split, samples, peers, seed=options.seed)
        rates = _rounds(split, peers, boxes, best, options.trials, options.seed)
    ours = rates.pop(("ours", ""))
    ratios = {way: np.divide(ours, each).tolist() for way, each in rates.items()}
    counted = [it for (_, decoder), it in ratios.items() if decoder in _COUNTED]
    figure = min(statistics.median(each) for each in counted)
    equal = all(difference <= _LEVELS for difference in differs.values())
    return conclude(
        Figure(
            name="loader_peers",
            figure=round(figure, 2),
            unit="x the images/s of the fastest peer, as shipped or with our JPEG decoder",
            goal=f"at least {_GOAL}, all five peers present, pixels within {_LEVELS} levels",
            holds=figure >= _GOAL and equal and not missing,
            conditions=conditions(
                seed=options.seed,
                rounds=options.trials,
                images_per_round=len(samples),
                image_kib=round(statistics.mean(len(it.data) for it in samples) / 1024, 1),
                input_px=_PX,
            ),
            details={
                "missing": missing,
                "largest_difference_levels": differs,
                "our_images_per_second": round(statistics.median(ours), 1),
                "peers": _table(rates, ratios, best),
            },
        )
    )


def _raw(corpus: Path | None, folder: Path) -> Path:
    return photos(corpus, folder / "raw", limit=BATCH * _STEPS * 5 // 4)


def _table(
    rates: dict[Way, list[float]], ratios: dict[Way, list[float]], best: dict[Way, Setting]
) -> dict[str, dict[str, Any]]:
    return {
        f"{peer}, {decoder}": {
            "images_per_second": round(statistics.median(rates[peer, decoder]), 1),
            "we_are_x": round(statistics.median(ratios[peer, decoder]), 2),
            "spread": [round(edge(ratios[peer, decoder]), 2) for edge in (min, max)],
            "workers": best[peer, decoder].workers,
            "prefetch": best[peer, decoder].prefetch,
        }
        for peer, decoder in rates
    }


def _samples(split: Split, seed: int) -> list[Sample]:
    """The images of the steps that are measured, in our order, with their crops."""
    batch = BatchSpec(global_samples=BATCH)
    places = Passes(split.num_rows, batch).places(range(_STEPS), rank=0, world_size=1)
    draws = Draws(_AUGMENT, places, seed=seed)
    order = EpochOrder(split.shard_rows, digest=split.order_digest, seed=seed, epoch=0)
    where = zip(*(it.tolist() for it in order.locate(places.position)), strict=True)
    rows = [split.read(*place) for place in where]
    return [
        Sample(row.uid, row.image, draws.params(i, (row.height_px, row.width_px), _PX).box)
        for i, row in enumerate(rows)
    ]


def _loader(split: Split, seed: int) -> TrainLoader:
    return one_rank_loader(split, _AUGMENT, samples=BATCH, image_px=_PX, seed=seed)


def _our_rate(split: Split, seed: int) -> float:
    began = time.perf_counter()
    with _loader(split, seed) as loader:
        images = sum(len(batch) for (batch,) in itertools.islice(loader.batches(0), _STEPS))
        return images / (time.perf_counter() - began)


def _rate(batches: Batches) -> float:
    """Images per second of a whole pass, from the asking; the one before started the workers."""
    gc.collect()  # what went before may hold workers that nobody asks any more
    sum(1 for _ in batches)
    began = time.perf_counter()
    images = sum(len(pixels) for _, pixels in batches)
    return images / (time.perf_counter() - began)


def _best(
    peers: dict[str, tuple[Path, Opener]], boxes: tuple[Box, ...], settings: tuple[Setting, ...]
) -> dict[Way, Setting]:
    """The fastest setting of each peer with each decoder, by one pass of each.

    What does not count, a peer with all of our rendering, runs at the setting for our decoder.
    """
    found: dict[Way, Setting] = {}
    for name, (place, opened) in peers.items():
        for decoder in _COUNTED:
            crops = Crops(boxes, _PX, decoder)
            rates = {setting: _rate(opened(place, crops, setting)) for setting in settings}
            found[name, decoder] = max(rates, key=lambda setting: rates[setting])
        found[name, "render"] = found[name, "ours"]
    return found


def _rounds(
    split: Split,
    peers: dict[str, tuple[Path, Opener]],
    boxes: tuple[Box, ...],
    best: dict[Way, Setting],
    rounds: int,
    seed: int,
) -> dict[Way, list[float]]:
    rates: dict[Way, list[float]] = {("ours", ""): [], **{way: [] for way in best}}
    for _ in range(rounds):
        rates["ours", ""].append(_our_rate(split, seed))
        for (name, decoder), setting in best.items():
            place, opened = peers[name]
            crops = Crops(boxes, _PX, decoder)
            rates[name, decoder].append(_rate(opened(place, crops, setting)))
    return rates


def _differences(
    split: Split,
    samples: list[Sample],
    peers: dict[str, tuple[Path, Opener]],
    *,
    seed: int,
) -> dict[str, int]:
    """Largest difference between a peer's pixels, as shipped, and ours, over all images."""
    with _loader(split, seed) as loader:
        steps = [batch for (batch,) in itertools.islice(loader.batches(0), _STEPS)]
    uids = [uid.tobytes() for batch in steps for uid in batch.uid_B]
    if uids != [it.uid for it in samples]:
        raise AssertionError("the loader gave other images than the peers have")
    ours = torch.from_numpy(np.concatenate([batch.pixels_BHWC for batch in steps])).short()
    crops = Crops(tuple(it.box for it in samples), _PX, "shipped")
    found = {}
    for name, (place, opened) in peers.items():
        seen, worst = 0, 0
        for index, pixels in opened(place, crops, Setting(2, 2)):
            seen += len(index)
            worst = max(worst, int((ours[index] - pixels.short()).abs().max()))
        found[name] = worst if seen == len(samples) else 255
    return found


if __name__ == "__main__":
    sys.exit(main())

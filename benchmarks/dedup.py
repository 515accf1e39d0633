"""[dedup] Planted copies of photos are found; no other pair among all photos is called a copy.

Plants copies of photos in a second set (the same bytes; encoded again at quality 50 to 95; resized
to 0.5 to 2 times the side, never below the 32 px that have a hash; mirrored; cropped to 90 %), and
filters that set against all photos. Then compares all pairs of photos with each other. A pair that
is found counts as true if the two agree at 192 x 192 grey px, which the search never sees.
"""

import io
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.in_process import serial_tools
from benchmarks.raw_corpora import CLOTHING, encoded, raw_images, write_classes
from pipeline.data.curation.blocks import Block, cut, write_block
from pipeline.data.curation.filter import NamedSplit, filter_split
from pipeline.data.curation.matching import Limits, Skip, near_pairs
from pipeline.data.images.decode import decode
from pipeline.data.images.sheet import tile
from pipeline.data.ingest.build import build_shard_set
from pipeline.data.shards.shard_set import Row, ShardSet
from pipeline.data.sources import fingerprint
from schemas.curation import FilterSpec
from schemas.data import IngestSpec
from schemas.records import THUMBNAIL_PX

_PHOTOS = 4000
_PLANTED = 250
_JUDGE_PX, _JUDGE_LEVELS = 192, 10.0
_GOALS = {"exact": 1.0, "encoded": 0.99, "resized": 0.99, "mirrored": 0.99}
_SHEET = Path(__file__).parent / "results" / "dedup-pairs.png"
_SPEC = FilterSpec(data="planted", against=("photos@train",))


@dataclass
class Outcome:
    """What was found and what not."""

    recall: dict[str, float]
    missed: dict[str, int]
    false_pairs: int
    true_pairs: list[str] = field(default_factory=list)
    photos: int = 0
    seconds: float = 0.0


def main() -> int:
    """Plant, filter, and compare all pairs."""
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        outcome = _measure(Path(folder), options.corpus or CLOTHING, options.seed, options.trials)
    goals = {kind: outcome.recall[kind] >= goal for kind, goal in _GOALS.items()}
    return conclude(
        Figure(
            name="dedup",
            figure=min(outcome.recall[kind] for kind in _GOALS),
            unit="least recall of a kind of planted copy (crops are reported only)",
            goal="exact 1.0; encoded, resized, mirrored at least 0.99 each; 0 false pairs",
            holds=all(goals.values()) and outcome.false_pairs == 0,
            conditions=conditions(
                corpus=(options.corpus or CLOTHING).name,
                photos=outcome.photos,
                planted_of_each_kind=_PLANTED * options.trials,
                seed=options.seed,
                **_SPEC.model_dump(include={"max_hamming_bits", "max_thumbnail_difference"}),
            ),
            details={
                "recall": outcome.recall,
                "missed": outcome.missed,
                "false_pairs": outcome.false_pairs,
                "pairs_compared": math.comb(outcome.photos, 2),
                "true_pairs_among_the_photos": outcome.true_pairs,
                "search_seconds": round(outcome.seconds, 1),
            },
        )
    )


def _measure(folder: Path, corpus: Path, seed: int, trials: int) -> Outcome:
    found = raw_images(corpus, _PHOTOS * trials, seed=seed)
    named: Callable[[int, str], str] = lambda index, own: f"{index:06d}-{own}"  # noqa: E731
    write_classes(folder / "raw", found, name=named)
    photos = _build(folder / "raw", folder / "photos")
    originals = _draw(photos, _PLANTED * trials, seed)
    sources = _plant(folder, originals, seed)
    planted = _build(folder / "copies", folder / "planted")
    began = time.monotonic()
    result = filter_split(
        NamedSplit("planted@train", planted, "train"),
        [NamedSplit("photos@train", photos, "train")],
        _SPEC,
        tools=serial_tools(folder / "filter"),
        out=folder / "clean",
    )
    split = planted.split("train")
    # Encoding a tiny image again may give its own bytes: these are one copy, not two.
    there = {split.row(index).source for index in range(split.num_rows)}
    sources = {source: number for source, number in sources.items() if source in there}
    outcome = _recall(photos, originals, sources, result.removals.to_pylist())
    _compare_all(photos, folder / "blocks", outcome)
    outcome.seconds = time.monotonic() - began
    outcome.photos = photos.split("train").num_rows
    return outcome


def _build(raw: Path, where: Path) -> ShardSet:
    source = {"type": "image_folder", "uri": str(raw)}
    spec = IngestSpec.parse({"source": source, "max_rejected_ratio": 1.0})
    build_shard_set(
        spec,
        fingerprint=fingerprint(spec.source),
        tools=serial_tools(where / "progress"),
        out=where / "out",
    )
    return ShardSet.open(where / "out")


def _draw(photos: ShardSet, count: int, seed: int) -> list[Row]:
    """Photos that are large enough for a hash; storage order is random, the seed turns it."""
    split = photos.split("train")
    order = random.Random(seed).sample(range(split.num_rows), split.num_rows)
    rows = (split.row(index) for index in order)
    large = (row for row in rows if min(row.height_px, row.width_px) >= THUMBNAIL_PX)
    return [row for row, _ in zip(large, range(count), strict=False)]


def _plant(folder: Path, originals: list[Row], seed: int) -> dict[str, int]:
    """Write all copies; source name -> number of the original."""
    rng = random.Random(f"copies/{seed}")
    sources = {}
    for number, row in enumerate(originals):
        raw = (folder / "raw" / row.source).read_bytes()
        with Image.open(io.BytesIO(raw)) as opened:
            image = opened.convert("RGB")
        copies = {"exact": raw, **dict(_copies(image, rng))}
        for kind, data in copies.items():
            suffix = Path(row.source).suffix if kind == "exact" else ".jpg"
            path = folder / "copies" / "all" / f"{kind}-{number:06d}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            sources[f"all/{path.name}"] = number
    return sources


def _copies(image: Image.Image, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    yield "encoded", encoded(image, "JPEG", quality=rng.randint(50, 95))
    filters = [
        Image.Resampling.NEAREST,
        Image.Resampling.BILINEAR,
        Image.Resampling.BICUBIC,
        Image.Resampling.LANCZOS,
    ]
    scale = max(math.exp(rng.uniform(math.log(0.5), math.log(2))), THUMBNAIL_PX / min(image.size))
    size = math.ceil(image.width * scale), math.ceil(image.height * scale)
    yield "resized", encoded(image.resize(size, rng.choice(filters)), "JPEG", quality=90)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    yield "mirrored", encoded(mirrored, "JPEG", quality=90)
    for kind, share in (("crop_90_area", 0.9**0.5), ("crop_90_side", 0.9)):
        width, height = math.ceil(image.width * share), math.ceil(image.height * share)
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        cropped = image.crop((left, top, left + width, top + height))
        yield kind, encoded(cropped, "JPEG", quality=90)


def _recall(
    photos: ShardSet, originals: list[Row], sources: dict[str, int], removals: list[dict[str, Any]]
) -> Outcome:
    """Copies whose match is their original, or a true near copy of it."""
    split = photos.split("train")
    planted: dict[str, int] = {}
    missed: dict[str, int] = {}
    found = {row["source"]: row for row in removals}
    false_pairs = 0
    for source, number in sources.items():
        kind = Path(source).name.partition("-")[0]
        planted[kind] = planted.get(kind, 0) + 1
        row = found.get(source)
        right = row is not None and row["matched_uid"] == originals[number].uid
        if row is not None and not right:
            matched = split.read(row["matched_place"], row["matched_row"])
            right = _alike(originals[number], matched)
            false_pairs += not right
        missed[kind] = missed.get(kind, 0) + (not right)
    recall = {kind: round(1 - missed[kind] / count, 4) for kind, count in planted.items()}
    return Outcome(recall, missed, false_pairs)


def _compare_all(photos: ShardSet, folder: Path, outcome: Outcome) -> None:
    """Judge every pair of photos that the search calls near copies; draw them."""
    blocks = cut(photos, "train", folder, rows=photos.manifest.num_rows)
    write_block((blocks, 0))
    block = Block(blocks, 0)
    limits = Limits(
        _SPEC.max_hamming_bits, _SPEC.max_thumbnail_difference, _SPEC.max_relative_difference
    )
    skip = Skip(len(block.hashed), len(block.hashed), within=True)
    pictures = []
    for pairs in near_pairs(block.side, block.side, limits, skip=skip):
        for keeper, row in zip(pairs.keeper, pairs.row, strict=True):
            shards, rows = (it[block.hashed[[keeper, row]]] for it in block.places)
            one, two = (
                block.split.read(int(shard), int(place))
                for shard, place in zip(shards, rows, strict=True)
            )
            alike = _alike(one, two)
            outcome.false_pairs += not alike
            if alike:
                outcome.true_pairs.append(f"{one.source} {two.source}")
            caption = "true" if alike else "false"
            pictures += [(decode(one.image), caption), (decode(two.image), caption)]
    if pictures:
        _SHEET.parent.mkdir(exist_ok=True)
        _SHEET.write_bytes(tile(pictures[:200], columns=8))


def _alike(one: Row, two: Row) -> bool:
    """Whether two images agree in every detail, upright or mirrored."""
    first, second = (_judged(row) for row in (one, two))
    differences = np.abs(first - second).mean(), np.abs(first[:, ::-1] - second).mean()
    return bool(min(differences) < _JUDGE_LEVELS)


def _judged(row: Row) -> np.ndarray:
    image = Image.fromarray(decode(row.image)).convert("L")
    size = (_JUDGE_PX, _JUDGE_PX)
    return np.asarray(image.resize(size, Image.Resampling.BOX), np.float32)


if __name__ == "__main__":
    sys.exit(main())

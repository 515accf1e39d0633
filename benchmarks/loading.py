"""Shard sets for the benchmarks of the loader: of photos, or of pictures made up in an instant."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from benchmarks.in_process import serial_tools
from benchmarks.raw_corpora import CLOTHING
from pipeline.data.feed.loader import TrainLoader
from pipeline.data.ingest.build import build_shard_set
from pipeline.data.shards.shard_set import ShardSet, Split
from pipeline.data.sources import fingerprint
from schemas.data import IngestSpec
from schemas.samples import AugmentSpec, BatchSpec

X = TypeVar("X")


def shard_set(source: dict[str, Any], where: Path, **fields: Any) -> ShardSet:
    """Build the set of a source into a folder."""
    spec = IngestSpec.parse({"source": source, "near_duplicates": False, **fields})
    tools = serial_tools(where / "progress")
    build_shard_set(spec, fingerprint=fingerprint(spec.source), tools=tools, out=where / "out")
    return ShardSet.open(where / "out")


def one_rank_loader(
    split: Split, augment: AugmentSpec, *, samples: int, image_px: tuple[int, int], seed: int
) -> TrainLoader:
    """All of each batch in this process, with a thread for each core."""
    return TrainLoader(
        split,
        augment=augment,
        image_px=image_px,
        batch=BatchSpec(global_samples=samples),
        seed=seed,
        rank=0,
        world_size=1,
        micro_batch=samples,
        threads=len(os.sched_getaffinity(0)),
    )


def photos(corpus: Path | None, where: Path, *, limit: int) -> Path:
    """A folder `CLASS/NAME.jpg` of at most `limit` JPEG files of a corpus, spread over it.

    A corpus is a tree or tar of class folders; without one, the photos beside the project, or made
    up ones where these are not there.
    """
    corpus = corpus or CLOTHING
    if not corpus.exists():
        return made_up(where, classes=10, per_class=-(-limit // 10), side_px=400)
    if corpus.is_dir():
        files = sorted(path for path in corpus.rglob("*") if path.suffix.lower() in _JPEG)
        for path in _spread(files, limit):
            _place(where, path.parent.name, path.name, path.read_bytes())
        return where
    with tarfile.open(corpus) as tar:
        members = [it for it in tar if Path(it.name).suffix.lower() in _JPEG]
        for member in _spread(members, limit):
            content = tar.extractfile(member)
            name = Path(member.name)
            _place(where, name.parent.name, name.name, content.read() if content else b"")
    return where


_JPEG = (".jpg", ".jpeg")


def _spread(items: list[X], limit: int) -> list[X]:
    return items[:: max(1, len(items) // limit)][:limit]


def _place(where: Path, folder: str, name: str, data: bytes) -> None:
    (where / folder).mkdir(parents=True, exist_ok=True)
    (where / folder / name).write_bytes(data)


def made_up(where: Path, *, classes: int, per_class: int, side_px: int = 48, seed: int = 0) -> Path:
    """A folder of blurred noise, `CLASS/NNNNN.jpg`: every picture another, as large as a photo."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        for index in range(per_class):
            coarse = rng.integers(0, 256, (side_px // 8, side_px // 6, 3), dtype=np.uint8)
            size = (side_px * 4 // 3, side_px)
            sink = io.BytesIO()
            picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            picture.save(sink, "JPEG", quality=90)
            _place(where, f"{label:04d}", f"{index:05d}.jpg", sink.getvalue())
    return where

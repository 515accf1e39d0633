"""[scale] 250,000 shards with 10^9 rows: memory to open them, and time to a first batch anywhere.

Also: what the driver of a build holds as a corpus grows from 10^5 to 10^7 rows. Shards are links of
one real file, made for those that are read; the driver is real, its tasks are not (see
`benchmarks.synthetic_build`), since real ones would take days.
"""

import gc
import hashlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.synthetic_build import CLASSES, ROW_BYTES, drive, peak_resident
from pipeline.data.feed.loader import TrainLoader
from pipeline.data.feed.tracing import Trace
from pipeline.data.images.codec import Pixels, checksum, encode
from pipeline.data.images.decode import decode
from pipeline.data.ingest.seal import SHARDS_PER_BATCH
from pipeline.data.order import ORDER_VERSION
from pipeline.data.shards.shard_files import row_checksum
from pipeline.data.shards.shard_set import ShardSet, Split
from pipeline.data.staging import sha256_of, write_arrow, write_canonical, write_table
from schemas.manifest import (
    MANIFEST_FILE,
    REJECTIONS_FILE,
    SHARD_TABLE_FILE,
    SHARDS_FOLDER,
    ShardSetManifest,
    SplitEntry,
)
from schemas.records import RECORD, RECORD_VERSION, REJECTIONS, ROWS_PER_BATCH, SHARD_TABLE
from schemas.samples import AugmentSpec, BatchSpec

SHARDS, SHARD_ROWS = 250_000, 4_000
_OPEN_BYTES, _RATIO, _DRIVER_BYTES = 50 * 10**6, 1.2, 200 * 10**6
_LABELS = 16
_IMAGE_PX = 16
_BATCH = BatchSpec(global_samples=64)
_ROUNDS = 15
_SUFFIXES = {".jpg", ".jpeg", ".png"}
_FEW, _MANY = 10**5, 10**7


@dataclass(frozen=True)
class Opened:
    """What a process found when it opened the set."""

    settled_bytes: int
    peak_bytes: int
    with_batch_bytes: int
    open_seconds: float
    early_seconds: list[float]
    late_seconds: dict[str, list[float]]


def main() -> int:
    """Open, read, and drive builds, each in a process of its own."""
    options = arguments(__doc__)
    shared = Path("/dev/shm")  # many small files, none of which has to last
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        work = Path(folder)
        write_set(work / "set", options)
        opened = _alone(measure_opening, work / "set", options.seed, _ROUNDS * options.trials)
        few, many = (_alone(drive, work / f"{rows}", rows) for rows in (_FEW, _MANY))
    early = statistics.median(opened.early_seconds)
    ratios = {
        where: statistics.median(np.divide(seconds, opened.early_seconds).tolist())
        for where, seconds in opened.late_seconds.items()
    }
    grown = many.peak_bytes - few.peak_bytes
    return conclude(
        Figure(
            name="scale",
            figure=round(opened.settled_bytes / 1e6, 1),
            unit="MB to open 250,000 shards with 10^9 rows",
            goal="at most 50 MB; late to early at most 1.2; driver at most 200 MB more",
            holds=(
                max(opened.settled_bytes, opened.peak_bytes) <= _OPEN_BYTES
                and max(ratios.values()) <= _RATIO
                and grown <= _DRIVER_BYTES
            ),
            conditions=conditions(
                seed=options.seed,
                corpus=options.corpus.name if options.corpus else "generated",
                shards=SHARDS,
                rows=SHARDS * SHARD_ROWS,
                labels_of_shard=_LABELS,
                rounds=_ROUNDS * options.trials,
                driver="real driver, synthetic tasks",
                driver_classes=CLASSES,
                driver_row_bytes=ROW_BYTES,
            ),
            details={
                "open_peak_mb": round(opened.peak_bytes / 1e6, 1),
                "open_and_first_batch_mb": round(opened.with_batch_bytes / 1e6, 1),
                "open_seconds": round(opened.open_seconds, 3),
                "first_batch_ms": round(1e3 * early, 2),
                "late_to_early": {where: round(ratio, 3) for where, ratio in ratios.items()},
                "driver_more_mb": round(grown / 1e6, 1),
                "driver_peak_mb": {str(it.rows): round(it.peak_bytes / 1e6) for it in (few, many)},
                "driver_shards": {str(it.rows): it.shards for it in (few, many)},
            },
        )
    )


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def write_set(folder: Path, options: Any) -> None:
    """A shard set of links to one real shard, with the links that the measurement will read."""
    rng = np.random.Generator(np.random.PCG64(options.seed))
    folder.mkdir()
    shard = folder / "one.arrow"
    write_arrow(shard, _shard(rng, options.corpus), rows_per_batch=ROWS_PER_BATCH)
    table = _shard_table(rng, shard)
    write_table(folder / SHARD_TABLE_FILE, table, rows_per_batch=SHARDS_PER_BATCH)
    write_table(folder / REJECTIONS_FILE, REJECTIONS.empty_table())
    manifest = ShardSetManifest(
        record_version=RECORD_VERSION,
        order_version=ORDER_VERSION,
        transform={},
        class_names=tuple(f"class {label}" for label in range(_LABELS)),
        splits={"train": SplitEntry(rows=SHARDS * SHARD_ROWS, shards=SHARDS)},
        num_shards=SHARDS,
        num_rows=SHARDS * SHARD_ROWS,
        num_bytes=SHARDS * shard.stat().st_size,
        shard_table_sha256=sha256_of(folder / SHARD_TABLE_FILE),
        rejections={},
        rejections_sha256=sha256_of(folder / REJECTIONS_FILE),
    )
    write_canonical(folder / MANIFEST_FILE, manifest.dump())
    _link(folder, shard, options.seed)


def _shard(rng: np.random.Generator, corpus: Path | None) -> pa.Table:
    """4,000 rows: generated images, or corners of a corpus's, over and over."""
    if corpus is None:
        pixels = [rng.integers(0, 255, (_IMAGE_PX, _IMAGE_PX, 3), np.uint8) for _ in range(64)]
    else:
        files = [path for path in sorted(corpus.rglob("*")) if path.suffix.lower() in _SUFFIXES]
        pixels = [it for it in map(_corner, files[:256]) if it is not None]
    images = [encode(it, "jpeg", quality=50) for it in pixels]
    rows = [_row(images[index % len(images)], index) for index in range(SHARD_ROWS)]
    return pa.Table.from_pylist(rows, schema=RECORD)


def _corner(path: Path) -> Pixels | None:
    """A piece of an image; None if it is too small, or no image at all."""
    try:
        pixels = decode(path.read_bytes())[:_IMAGE_PX, :_IMAGE_PX]
    except Exception:  # a corpus that nobody has looked at may hold anything
        return None
    return pixels if pixels.shape == (_IMAGE_PX, _IMAGE_PX, 3) else None


def _row(image: bytes, index: int) -> dict[str, Any]:
    uid = hashlib.sha256(str(index).encode()).digest()[:16]
    label, crc32c, source = index % _LABELS, checksum(image), f"{index}.jpg"
    whole = row_checksum(
        crc32c, uid=uid, label=label, size_hw=(_IMAGE_PX,) * 2, encoding="jpeg", source=source
    )
    sides = ("width_px", "height_px", "orig_width_px", "orig_height_px")
    return {
        **dict.fromkeys(sides, _IMAGE_PX),
        **dict.fromkeys(("phash", "phash_mirror", "thumbnail")),
        "uid": uid,
        "image": {"bytes": image, "path": None},
        "label": label,
        "encoding": "jpeg",
        "crc32c": crc32c,
        "row_crc32c": whole,
        "source": source,
    }


def _shard_table(rng: np.random.Generator, shard: Path) -> pa.Table:
    digests = [rng.bytes(32) for _ in range(SHARDS)]
    each = [(label, SHARD_ROWS // _LABELS) for label in range(_LABELS)]
    columns = [
        pa.array([f"{digest.hex()}.arrow" for digest in digests]),
        pa.array(["train"] * SHARDS),
        pa.array(np.full(SHARDS, SHARD_ROWS)),
        pa.array(np.full(SHARDS, shard.stat().st_size)),
        pa.array(digests, pa.binary(32)),
        pa.array([each] * SHARDS, SHARD_TABLE.field("label_histogram").type),
    ]
    return pa.Table.from_arrays(columns, schema=SHARD_TABLE)


def _places(split: Split) -> dict[str, int]:
    """Name -> the step whose first batch is timed."""
    epoch = split.num_rows // _BATCH.global_samples
    return {
        "early": 1,
        "middle": epoch // 2,
        "end": epoch - 6,
        "end_of_epoch_50": 50 * epoch - 6,
    }


def _link(folder: Path, shard: Path, seed: int) -> None:
    """Make the shard files that the timed steps and those read ahead of them take."""
    split = ShardSet.open(folder).split("train")
    trace = Trace(split, _BATCH, seed=seed)
    (folder / SHARDS_FOLDER).mkdir()
    for first in _places(split).values():
        for step in range(first, first + 5):
            for name in {split.shard_names[it.shard] for it in trace.step(step)}:
                path = folder / SHARDS_FOLDER / name
                if not path.exists():
                    os.link(shard, path)


def measure_opening(folder: Path, seed: int, rounds: int) -> Opened:
    """Memory and times of this process, which should be a fresh one."""
    _warm()
    before = _resident()
    began = time.perf_counter()
    split = ShardSet.open(folder).split("train")
    opened = time.perf_counter() - began
    peak = peak_resident()
    gc.collect()
    settled = _resident()
    places = _places(split)
    _first_batch(split, places["early"], seed)
    with_batch = _resident()
    seconds: dict[str, list[float]] = {where: [] for where in places}
    for _ in range(rounds):
        for where, step in places.items():
            seconds[where].append(_first_batch(split, step, seed))
    early = seconds.pop("early")
    return Opened(
        settled_bytes=settled - before,
        peak_bytes=max(0, peak - before),
        with_batch_bytes=with_batch - before,
        open_seconds=opened,
        early_seconds=early,
        late_seconds=seconds,
    )


def _warm() -> None:
    """Load what the libraries load on first use, so that it is not taken for the set's."""
    pa.chunked_array([["a"]]).dictionary_encode()
    gc.collect()


def _resident() -> int:
    resident: int = psutil.Process().memory_info().rss
    return resident


def _first_batch(split: Split, step: int, seed: int) -> float:
    """Seconds until a fresh loader gives the batch of a step."""
    loader = TrainLoader(
        split,
        augment=AugmentSpec(),
        image_px=(_IMAGE_PX, _IMAGE_PX),
        batch=_BATCH,
        seed=seed,
        rank=0,
        world_size=1,
        micro_batch=_BATCH.global_samples,
        threads=1,
    )
    with loader:
        began = time.perf_counter()
        next(loader.batches(step))
        return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())

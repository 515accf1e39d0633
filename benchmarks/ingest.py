"""[ingest] Raw images to a sealed shard set, against the bare work and against two peers.

Every contender gets the same files in memory-cached folders, as many processes as there are cores,
and makes the same things of each image: a JPEG of at most 512 px, sha256, perceptual hash and
thumbnail. `bare` does only that, in warm processes, and throws the result away. The peers write
what their own documentation tells people to write: with our codec as the function, and as shipped,
with Pillow (without hash and thumbnail, which neither has: they do less work). Rounds are
interleaved; medians count.
"""

import hashlib
import importlib.util
import io
import itertools
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.processes import one_torch_thread
from benchmarks.raw_corpora import CLOTHING, generated, raw_images, write_classes
from pipeline.data.images.prepare import Prepared, prepare
from pipeline.data.order import keyed_hash
from schemas.data import ImageSpec, IngestSpec

_ROUNDS = 3
_IMAGES, _CLASSES = 2400, 8
_MIN_OF_BARE, _MIN_OF_PEERS, _MIN_OF_SHIPPED = 0.85, 1.0, 1.5
_SPEC = ImageSpec()
_CORES = len(os.sched_getaffinity(0))

Contender = Callable[[list[str], Path], None]


def main() -> int:
    """Measure all contenders in interleaved rounds."""
    options = arguments(__doc__)
    one_torch_thread()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "raw")
        corpus = options.corpus or (CLOTHING if CLOTHING.is_file() else None)
        count = write_classes(
            folder, raw_images(corpus, _IMAGES, seed=options.seed), classes=_CLASSES
        )
        rounds = max(_ROUNDS, options.trials)
        rates, missing = _measure(folder, Path(scratch), rounds)
    ours = rates["vitrail"]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    peers = {name: rate for name, rate in medians.items() if name not in ("vitrail", "bare")}
    tuned = max((rate for name, rate in peers.items() if "our codec" in name), default=None)
    shipped = max((rate for name, rate in peers.items() if "shipped" in name), default=None)
    ratios = {
        "of_bare": statistics.median(a / b for a, b in zip(ours, rates["bare"], strict=True)),
        "of_best_peer_with_our_codec": medians["vitrail"] / tuned if tuned else None,
        "of_best_peer_as_shipped": medians["vitrail"] / shipped if shipped else None,
    }
    goals = dict(zip(ratios, (_MIN_OF_BARE, _MIN_OF_PEERS, _MIN_OF_SHIPPED), strict=True))
    return conclude(
        Figure(
            name="ingest",
            figure=round(ratios["of_bare"] or 0, 3),
            unit="of the images/s of the bare work on the same cores",
            goal="at least 0.85 of bare; 1.0 x the best peer with our codec, 1.5 x as shipped",
            holds=not missing and all((ratios[name] or 0) >= goals[name] for name in goals),
            conditions=conditions(
                corpus=corpus.name if corpus else "generated",
                images=count,
                rounds=rounds,
                seed=options.seed,
                max_side_px=_SPEC.max_side_px,
            ),
            details={
                "images_per_second": {name: _spread(values) for name, values in rates.items()},
                "ratios": {name: value and round(value, 3) for name, value in ratios.items()},
                "not_installed": missing,
            },
        )
    )


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 1),
        "low": round(min(values), 1),
        "high": round(max(values), 1),
    }


def _measure(folder: Path, scratch: Path, rounds: int) -> tuple[dict[str, list[float]], list[str]]:
    """Contender -> images/s of each round; and the peers that are not installed."""
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    installed = {name: importlib.util.find_spec(name) is not None for name in _PEERS}
    peers = itertools.chain.from_iterable(
        contenders for name, contenders in _PEERS.items() if installed[name]
    )
    from infra.ray_cluster import cluster

    context = get_context("spawn")
    with cluster(None), ProcessPoolExecutor(_CORES, mp_context=context) as processes:
        contenders: dict[str, Contender] = {
            "bare": partial(_bare, processes),
            "vitrail": partial(_vitrail, folder),
            **dict(peers),
        }
        _warm(contenders, scratch)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _, (name, run) in itertools.product(range(rounds), contenders.items()):
            out = Path(tempfile.mkdtemp(dir=scratch))
            began = time.perf_counter()
            run(files, out)
            rates[name].append(len(files) / (time.perf_counter() - began))
            print(f"{name}: {rates[name][-1]:,.0f} images/s", file=sys.stderr, flush=True)
            shutil.rmtree(out)
    return rates, [name for name in _PEERS if not installed[name]]


def _warm(contenders: dict[str, Contender], scratch: Path) -> None:
    """Let the processes that outlive a round, those of Ray and of `bare`, import what they need."""
    few = scratch / "few"
    write_classes(few, generated(60, seed=0))
    large = [str(path) for path in few.rglob("*.*")]
    for name in large:  # all are resized: the resize is the costliest import
        with Image.open(name) as image:
            image.convert("RGB").resize((600, 600)).save(name, "PNG")
    contenders["bare"](large * _CORES, scratch)
    for _ in range(2):
        _vitrail(few, [], scratch / "warm")
        shutil.rmtree(scratch / "warm")


def _vitrail(folder: Path, _: list[str], out: Path) -> None:
    """The whole of an ingest: list, prepare, select, write, seal."""
    from infra.ray_pool import RayPool
    from tests.support.datasets import build

    source = {"type": "image_folder", "uri": str(folder)}
    spec = IngestSpec.parse({"source": source, "image": _SPEC.dump(), "max_rejected_ratio": 1.0})
    build(spec, out, pool=RayPool())


def _bare(processes: ProcessPoolExecutor, files: list[str], _out: Path) -> None:
    for _ in processes.map(_work, files, chunksize=16):
        pass


def _work(path: str) -> int:
    """Read, decode, resize, encode, sha256, hash: what nobody can leave out."""
    data = Path(path).read_bytes()
    result = prepare(data, _SPEC, hashes=True)
    keyed_hash("order", 0, hashlib.sha256(data).digest()[:16])
    return len(result.data) if isinstance(result, Prepared) else 0


def _with_our_codec(path: str) -> dict[str, Any]:
    """The columns that our records have."""
    data = Path(path).read_bytes()
    result = prepare(data, _SPEC, hashes=True)
    assert isinstance(result, Prepared)
    return {
        "image": result.data,
        "label": Path(path).parent.name,
        "uid": hashlib.sha256(data).hexdigest(),
        "phash": str(result.phash),
        "phash_mirror": str(result.phash_mirror),
        "thumbnail": result.thumbnail or b"",
    }


def _resized(path: str) -> Image.Image:
    """What the guides of both peers do with an image: Pillow, upright, RGB, resized."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((_SPEC.max_side_px,) * 2, Image.Resampling.LANCZOS)
    return upright


def _as_shipped(path: str) -> dict[str, Any]:
    sink = io.BytesIO()
    _resized(path).save(sink, "JPEG", quality=_SPEC.quality)
    data = Path(path).read_bytes()
    return {
        "image": sink.getvalue(),
        "label": Path(path).parent.name,
        "uid": hashlib.sha256(data).hexdigest(),
    }


def _datasets(work: Callable[[str], dict[str, Any]], files: list[str], out: Path) -> None:
    """`datasets.map` in as many processes as cores, saved to disk."""
    import datasets

    datasets.disable_progress_bars()
    raw = datasets.Dataset.from_dict({"path": files})
    mapped = raw.map(
        partial(_of_row, work),
        num_proc=_CORES,
        remove_columns=["path"],
        cache_file_name=str(out / "cache.arrow"),
    )
    mapped.save_to_disk(str(out / "saved"))


def _of_row(work: Callable[[str], dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    return work(row["path"])


def _litdata(work: Callable[[str], dict[str, Any]], files: list[str], out: Path) -> None:
    """`optimize` in as many processes as cores, 64 MB chunks as in its guide."""
    import litdata

    litdata.optimize(
        fn=work,
        inputs=files,
        output_dir=str(out / "optimized"),
        chunk_bytes="64MB",
        num_workers=_CORES,
        verbose=False,
    )


_PEERS: dict[str, list[tuple[str, Contender]]] = {
    "datasets": [
        ("datasets.map with our codec", partial(_datasets, _with_our_codec)),
        ("datasets.map as shipped", partial(_datasets, _as_shipped)),
    ],
    "litdata": [
        ("litdata.optimize with our codec", partial(_litdata, _with_our_codec)),
        ("litdata.optimize as shipped", partial(_litdata, _as_shipped)),
    ],
}


if __name__ == "__main__":
    sys.exit(main())

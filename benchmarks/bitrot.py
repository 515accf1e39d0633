"""[bitrot] Random bit flips in shards, in the cache and at the remote origin: 0 undetected.

A flip is undetected if a reader then gets a sample that differs from the one that was written (its
pixels' bytes, label, uid, size or source; or a row in another place), or if `verify` passes. A read
that raises, or that mends itself by fetching again, is fine. Flips hit any file of the set:
manifest, tables and shards alike, by their share of the bytes, and each small file on its own.
"""

import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from benchmarks.figure import Figure, arguments, conclude, conditions
from benchmarks.in_process import serial_tools
from pipeline.data.images.codec import encode
from pipeline.data.ingest.build import build_shard_set
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.shard_set import ShardSet, Split
from pipeline.data.sources import fingerprint
from pipeline.ports import FileStatus
from schemas.data import IngestSpec
from schemas.errors import DataError, IntegrityError

_IMAGES = 60
_FLIPS = 400
"""In each of the three places, for one trial."""
_URI = "bench://set"

Sample = tuple[bytes, bytes, int, int, int, str, str]


@dataclass
class Outcome:
    """What became of the flips of one place."""

    kinds: Counter[str] = field(default_factory=Counter)
    undetected: list[str] = field(default_factory=list)

    def note(self, path: Path, where: tuple[int, int], *, told: str, verified: bool) -> None:
        """Count one flip by what the reader was told, and whether `verify` passed."""
        self.kinds[told] += 1
        if told == "another sample" or verified:
            verdict = "verify passed" if verified else "verify told"
            self.undetected.append(f"{path.name}, byte and bit {where}: {told}, {verdict}")


def main() -> int:
    """Flip, read everything, verify; over and over."""
    options = arguments(__doc__)
    rng = random.Random(options.seed)
    flips = _FLIPS * options.trials
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = _build(work, options.corpus, options.seed)
        outcomes = {
            "shards": in_shards(data, rng, flips),
            "remote": in_remote(data, work / "remote-cache", rng, flips),
            "cache": in_cache(data, work / "cache", rng, flips),
        }
    undetected = [text for outcome in outcomes.values() for text in outcome.undetected]
    return conclude(
        Figure(
            name="bitrot",
            figure=len(undetected),
            unit=f"flips undetected of {3 * flips}",
            goal="0 undetected",
            holds=not undetected,
            conditions=conditions(
                seed=options.seed,
                flips_of_each_place=flips,
                images=data.manifest.num_rows,
                shards=data.manifest.num_shards,
                corpus=options.corpus.name if options.corpus else "generated",
            ),
            details={
                **{place: dict(sorted(it.kinds.items())) for place, it in outcomes.items()},
                "undetected": undetected[:10],
            },
        )
    )


def in_shards(data: ShardSet, rng: random.Random, flips: int) -> Outcome:
    """Flips in the files of a local set."""
    truth, outcome = _truth(data), Outcome()
    for path, place, bit in _flips(data.folder, rng, flips):
        with _Flipped(path, place, bit):
            told = _read(data.folder, truth, {})
            verified = _verifies(data.folder, {})
        outcome.note(path, (place, bit), told=told, verified=verified)
    return outcome


def in_remote(data: ShardSet, cache: Path, rng: random.Random, flips: int) -> Outcome:
    """Flips at the origin, before anything was fetched; the cache is empty each time."""
    truth, outcome = _truth(data), Outcome()
    for path, place, bit in _flips(data.folder, rng, flips):
        shutil.rmtree(cache, ignore_errors=True)
        with _Flipped(path, place, bit):
            told = _read(_URI, truth, _remote(data.folder, cache))
            verified = _verifies(_URI, _remote(data.folder, cache))
        outcome.note(path, (place, bit), told=told, verified=verified)
    return outcome


def in_cache(data: ShardSet, cache: Path, rng: random.Random, flips: int) -> Outcome:
    """Flips in what a cache holds, where `verify`, which asks the origin, cannot see them."""
    truth, outcome = _truth(data), Outcome()
    _read(_URI, truth, _remote(data.folder, cache))
    for path, place, bit in _flips(cache, rng, flips):
        with _Flipped(path, place, bit):
            told = _read(_URI, truth, _remote(data.folder, cache))
        outcome.note(path, (place, bit), told=told, verified=False)
    return outcome


def _remote(folder: Path, cache: Path) -> dict[str, Any]:
    """How to open the folder as if it were remote."""
    return {"files": _FolderFiles(folder), "cache": ShardCache(cache, limit_bytes=2**30)}


def _read(location: Path | str, truth: list[Sample], how: dict[str, Any]) -> str:
    try:
        return _compare(ShardSet.open(location, **how), truth)
    except (IntegrityError, DataError):
        return "raised"


def _compare(data: ShardSet, truth: list[Sample]) -> str:
    """`right`, `mended` by fetching again, `raised`, or `another sample`."""
    told, expected = "right", iter(truth)
    for name in sorted(data.manifest.splits):
        split = data.split(name)
        for index in range(split.num_rows):
            try:
                found = _sample(data, split, index)
            except IntegrityError:
                split.refetch(int(split.locate(np.array([index]))[0][0]))
                try:
                    found, told = _sample(data, split, index), "mended"
                except IntegrityError:
                    return "raised"
            if found != next(expected, None):
                return "another sample"
        if not _labels_are_right(split):
            return "another sample"
    return told if next(expected, None) is None else "another sample"


def _labels_are_right(split: Split) -> bool:
    labels: list[int] = split.labels().tolist()
    return labels == [split.row(index).label for index in range(split.num_rows)]


def _sample(data: ShardSet, split: Split, index: int) -> Sample:
    row = split.row(index)
    name = data.class_names[row.label]
    return row.uid, row.image, row.label, row.height_px, row.width_px, row.source, name


def _truth(data: ShardSet) -> list[Sample]:
    return [
        _sample(data, split, index)
        for split in map(data.split, sorted(data.manifest.splits))
        for index in range(split.num_rows)
    ]


def _verifies(location: Path | str, how: dict[str, Any]) -> bool:
    try:
        return not list(ShardSet.open(location, **how).faults())
    except (IntegrityError, DataError):
        return False


def _flips(folder: Path, rng: random.Random, flips: int) -> Iterator[tuple[Path, int, int]]:
    """Half of the flips by share of the bytes, half evenly over the files."""
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts
    )
    sizes = [path.stat().st_size for path in files]
    for number in range(flips):
        (path,) = rng.choices(files, sizes) if number % 2 else (rng.choice(files),)
        size = sizes[files.index(path)]
        if size:
            yield path, rng.randrange(size), rng.randrange(8)


class _Flipped:
    """A file with one bit flipped, as long as the block lasts."""

    def __init__(self, path: Path, place: int, bit: int) -> None:
        self._path, self._place, self._bit = path, place, bit
        self._whole = path.read_bytes()

    def __enter__(self) -> None:
        damaged = bytearray(self._whole)
        damaged[self._place] ^= 1 << self._bit
        self._replace(bytes(damaged))

    def __exit__(self, *exc: object) -> None:
        self._replace(self._whole)

    def _replace(self, content: bytes) -> None:
        # A new file: what an earlier reader has mapped stays what it was.
        fresh = self._path.with_name("flipping")
        fresh.write_bytes(content)
        fresh.replace(self._path)


class _FolderFiles:
    """`RemoteFiles` over a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def walk(self, uri: str) -> Iterator[FileStatus]:
        raise NotImplementedError(uri)

    def status(self, uri: str) -> FileStatus | None:
        path = self._path(uri)
        return FileStatus(path.name, path.stat().st_size, "") if path.is_file() else None

    def open(self, uri: str) -> BinaryIO:
        return cast("BinaryIO", self._path(uri).open("rb"))

    def read(self, uri: str, *, start: int = 0, size: int | None = None) -> bytes:
        return self._path(uri).read_bytes()[start:][:size]

    def fetch(self, uri: str, target: Path) -> None:
        shutil.copyfile(self._path(uri), target)

    def _path(self, uri: str) -> Path:
        return self._folder / uri.removeprefix(f"{_URI}/")


def _build(work: Path, corpus: Path | None, seed: int) -> ShardSet:
    source = corpus or _generated(work / "raw", seed)
    spec = IngestSpec.parse(
        {
            "source": {"type": "image_folder", "uri": str(source)},
            "split": {"test_ratio": 0.3},
            "image": {"max_side_px": 64},
            "shard_bytes": 40_000,
            "max_rejected_ratio": 1.0,
        }
    )
    build_shard_set(
        spec,
        fingerprint=fingerprint(spec.source),
        tools=serial_tools(work / "progress"),
        out=work / "set",
    )
    return ShardSet.open(work / "set")


def _generated(folder: Path, seed: int) -> Path:
    """Noise of three classes, and a file that is refused."""
    rng = np.random.Generator(np.random.PCG64(seed))
    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
        for index in range(_IMAGES // 3):
            pixels = rng.integers(0, 255, (40, 48, 3), np.uint8)
            (folder / name / f"{index}.jpg").write_bytes(encode(pixels, "jpeg", quality=90))
    (folder / "a" / "empty.jpg").touch()
    return folder


if __name__ == "__main__":
    sys.exit(main())

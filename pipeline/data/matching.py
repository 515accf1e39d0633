"""Finds copies of test images in one shard; the index of the test images is a file.

Near copies are found exactly, not approximately: two 64-bit hashes at most seven bits apart agree
in at least one of their eight bytes, so comparing the images that share a byte misses none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.staging import read_table
from schemas.records import THUMBNAIL_PX

INDEX = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("set", pa.int32(), nullable=False),  # place of the test split among those given
        pa.field("source", pa.string(), nullable=False),
        pa.field("phash", pa.uint64()),
        pa.field("thumbnail", pa.binary(THUMBNAIL_PX * THUMBNAIL_PX)),
        pa.field("live_row", pa.int64(), nullable=False),
    ]
)
"""One live test image; in the order of the sets, then of storage."""

COLUMNS = ["uid", "source", "phash", "phash_mirror", "thumbnail"]
_BANDS = 8
_PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class FilterTask:
    """Names one shard to look through, and how."""

    shard: Path
    index: Path
    max_hamming_bits: int
    max_thumbnail_difference: float


@dataclass(frozen=True)
class Copy:
    """A row of a shard and the test image that it repeats."""

    row: int
    uid: bytes
    source: str
    test: int
    """Row of the index."""
    hamming_bits: int | None
    """None for an exact copy, as the next."""
    thumbnail_difference: float | None


def find_copies(task: FilterTask) -> list[Copy]:
    """The rows of the shard that are copies, each with its best match, in storage order."""
    shard = read_table(task.shard).select(COLUMNS)
    index = read_table(task.index)
    exact = _exact(shard, index)
    near = _near(shard, index, task)
    return [
        Copy(
            row=row,
            uid=shard["uid"][row].as_py(),
            source=shard["source"][row].as_py(),
            test=exact[row] if row in exact else near[row].test,
            hamming_bits=None if row in exact else near[row].hamming_bits,
            thumbnail_difference=None if row in exact else near[row].difference,
        )
        for row in sorted(exact.keys() | near.keys())
    ]


@dataclass(frozen=True, order=True)
class _Match:
    """Orders from the best match to the worst; ties go to the set that is named first."""

    hamming_bits: int
    difference: float
    test: int


def _exact(shard: pa.Table, index: pa.Table) -> dict[int, int]:
    """Row of the shard -> the first test image with the same uid."""
    tests: dict[bytes, int] = {}
    for test, uid in enumerate(index["uid"].to_pylist()):
        tests.setdefault(uid, test)
    return {row: tests[uid] for row, uid in enumerate(shard["uid"].to_pylist()) if uid in tests}


def _near(shard: pa.Table, index: pa.Table, task: FilterTask) -> dict[int, _Match]:
    """Row of the shard -> its best confirmed near copy."""
    rows = np.nonzero(shard["phash"].is_valid().to_numpy())[0]
    tests = np.nonzero(index["phash"].is_valid().to_numpy())[0]
    if not len(rows) or not len(tests):
        return {}
    wanted = index["phash"].take(pa.array(tests)).to_numpy()
    best: dict[int, _Match] = {}
    for column in ("phash", "phash_mirror"):
        own = shard[column].take(pa.array(rows)).to_numpy()
        for here, there, bits in _candidates(own, wanted, task.max_hamming_bits):
            row, test = int(rows[here]), int(tests[there])
            difference = _difference(shard, row, index, test)
            match = _Match(bits, difference, test)
            if difference <= task.max_thumbnail_difference and match < best.get(row, _WORST):
                best[row] = match
    return best


_WORST = _Match(65, float("inf"), 0)


def _candidates(
    own: NDArray[np.uint64], wanted: NDArray[np.uint64], max_bits: int
) -> Iterator[tuple[int, int, int]]:
    """Pairs of places whose hashes are near, with their distance in bits; each pair once."""
    for band in range(_BANDS):
        own_bytes, wanted_bytes = _byte(own, band), _byte(wanted, band)
        order = np.argsort(wanted_bytes, kind="stable")
        bounds = np.searchsorted(wanted_bytes[order], np.arange(257))
        for value in np.unique(own_bytes):
            there = order[bounds[value] : bounds[value + 1]]
            here = np.nonzero(own_bytes == value)[0]
            at_once = max(1, _PAIRS_AT_ONCE // max(1, len(there)))
            for start in range(0, len(here), at_once):
                some = here[start : start + at_once]
                bits = _distances(own[some], wanted[there], band)
                for a, b in zip(*np.nonzero(bits <= max_bits), strict=True):
                    yield int(some[a]), int(there[b]), int(bits[a, b])


def _distances(own: NDArray[np.uint64], wanted: NDArray[np.uint64], band: int) -> NDArray[np.uint8]:
    """Differing bits of all pairs; 65 where a lower band agrees: that band found the pair."""
    differing = own[:, None] ^ wanted[None, :]
    bits: NDArray[np.uint8] = np.bitwise_count(differing)
    for lower in range(band):
        bits[_byte(differing, lower) == 0] = 65
    return bits


def _byte(hashes: NDArray[np.uint64], band: int) -> NDArray[np.int64]:
    shifted = hashes >> np.uint64(8 * band)
    return (shifted & np.uint64(255)).astype(np.int64)


def _difference(shard: pa.Table, row: int, index: pa.Table, test: int) -> float:
    """Mean absolute difference of the thumbnails, 0..255, mirrored or not, whichever is less."""
    own = _grey(shard["thumbnail"][row])
    wanted = _grey(index["thumbnail"][test])
    return float(min(np.abs(own - wanted).mean(), np.abs(own[:, ::-1] - wanted).mean()))


def _grey(thumbnail: pa.Scalar) -> NDArray[np.int16]:
    flat = np.frombuffer(thumbnail.as_py(), np.uint8).astype(np.int16)
    return flat.reshape(THUMBNAIL_PX, THUMBNAIL_PX)

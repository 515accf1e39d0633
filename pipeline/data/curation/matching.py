"""Near copies by perceptual hash: candidates by bands, confirmed on thumbnails. No files in here.

Found exactly, not approximately: two 64-bit hashes at most seven bits apart differ in at most one
bit in at least one of their four 16-bit bands. So looking up, for each band, its value and the
sixteen values one bit away misses no pair (at most three bits apart: the value alone).

Costs. A keeper is compared with about one row in 480 if hashes are spread evenly (one in 8,192 at
three bits). Lookups are made for a few keepers at a time, so memory stays at about 100 bytes for
each row plus 50 MB, however many hashes agree.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.records import THUMBNAIL_PX

Int64s = NDArray[np.int64]
UInt64s = NDArray[np.uint64]
Bools = NDArray[np.bool_]

_BANDS = 4
_BAND_BITS = 16
_KEEPERS_AT_ONCE = 256
_PAIRS_AT_ONCE = 1 << 19
_THUMBNAILS_AT_ONCE = 2048
_NO_DIFFERENCE = 1.0
"""Grey levels."""


class Thumbnails(Protocol):
    """Looks up grey thumbnails."""

    def take(self, rows: Int64s) -> NDArray[np.uint8]:
        """Pixels [len(rows), 1024], row by row of each thumbnail."""
        ...


@dataclass(frozen=True)
class Side:
    """The images of one side of a comparison."""

    own: UInt64s
    """Perceptual hashes."""
    mirror: UInt64s
    """Of the mirrored images."""
    thumbnails: Thumbnails

    @cached_property
    def bands(self) -> "_Bands":
        """The lookup by band values."""
        return _Bands(self.own)


@dataclass(frozen=True)
class Limits:
    """How near a near copy is."""

    max_hamming_bits: int
    """At most 7."""
    max_thumbnail_difference: float
    """In grey levels: `thumbnail_differences`."""
    max_relative_difference: float
    """As a share of the contrast. Differences below one grey level are no differences."""


class Skip:
    """Which images need no comparison, or none any more."""

    def __init__(self, num_keepers: int, num_rows: int, *, within: bool = False) -> None:
        """Skip nothing; `within`: both sides are one, and a keeper stands before its rows."""
        self.keepers: Bools = np.zeros(num_keepers, np.bool_)
        self.rows: Bools = np.zeros(num_rows, np.bool_)
        self.within = within

    def allowed(self, keepers: Int64s, rows: Int64s) -> Bools:
        """Which pairs are to be compared."""
        allowed: Bools = ~(self.keepers[keepers] | self.rows[rows])
        return allowed & (keepers < rows) if self.within else allowed


@dataclass(frozen=True)
class Pairs:
    """Near copies, sorted by keeper, then row; parallel arrays."""

    keeper: Int64s
    row: Int64s
    hamming_bits: Int64s
    """-1 where hashes were not compared."""
    difference: NDArray[np.float32]
    """NaN likewise."""
    cosine: NDArray[np.float32]
    """NaN where features were not compared."""

    def take(self, places: Int64s) -> "Pairs":
        """Some of the pairs."""
        return Pairs(
            self.keeper[places],
            self.row[places],
            self.hamming_bits[places],
            self.difference[places],
            self.cosine[places],
        )


def near_pairs(keepers: Side, rows: Side, limits: Limits, *, skip: Skip) -> Iterator[Pairs]:
    """All near copies in pieces, keepers rising, except those that `skip` rules out.

    Args:
        keepers: Images that stay; each is looked for, and its mirror image.
        rows: Images among which they are looked for.
        limits: How near.
        skip: Is asked again for every piece, so that the caller can learn from the last one.
    """
    for candidates in _candidates(keepers, rows, limits.max_hamming_bits, skip=skip):
        confirmed = _confirmed(candidates, keepers, rows, limits)
        if len(confirmed.row):
            yield confirmed


class _Bands:
    """Rows by the values of their four bands."""

    def __init__(self, hashes: UInt64s) -> None:
        self.orders: Int64s = np.empty(_BANDS * len(hashes), np.int64)
        self.starts: Int64s = np.empty((_BANDS, (1 << _BAND_BITS) + 1), np.int64)
        for band in range(_BANDS):
            values = _band(hashes, band)
            first = band * len(hashes)
            self.orders[first : first + len(hashes)] = np.argsort(values, kind="stable")
            counts = np.bincount(values, minlength=1 << _BAND_BITS)
            self.starts[band] = first + np.concatenate([[0], np.cumsum(counts)])


def thumbnail_differences(
    first: NDArray[np.uint8], second: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How much thumbnails [n, 1024] differ, and the contrast of the plainer one of each pair.

    Both in grey levels and of 16 x 16 means of four pixels, which encoding again changes less: the
    mean absolute difference, mirrored or not, whichever is less; and the mean absolute deviation
    from the mean grey.
    """
    ours, theirs = _quarters(first), _quarters(second)
    upright, mirrored = _total(ours - theirs), _total(ours[:, :, ::-1] - theirs)
    contrast = np.minimum(_deviation(ours), _deviation(theirs))
    levels = THUMBNAIL_PX**2
    return (
        (np.minimum(upright, mirrored) / levels).astype(np.float32),
        (contrast / levels).astype(np.float32),
    )


def _quarters(thumbnails: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Sums of 2 x 2 pixels, [n, 16, 16]. Whole numbers: no order of adding changes them."""
    half = THUMBNAIL_PX // 2
    sums: NDArray[np.int32] = thumbnails.reshape(-1, half, 2, half, 2).sum(
        axis=(2, 4), dtype=np.int32
    )
    return sums


def _total(differences: NDArray[np.int32]) -> NDArray[np.int64]:
    total: NDArray[np.int64] = np.abs(differences).sum(axis=(1, 2), dtype=np.int64)
    return total


def _deviation(quarters: NDArray[np.int32]) -> NDArray[np.float64]:
    """Sum of absolute differences from the mean."""
    count = quarters.shape[1] * quarters.shape[2]
    total = quarters.sum(axis=(1, 2), dtype=np.int32)
    deviation: NDArray[np.float64] = _total(quarters * count - total[:, None, None]) / count
    return deviation


def _confirmed(pairs: Pairs, keepers: Side, rows: Side, limits: Limits) -> Pairs:
    """The pairs whose thumbnails are alike."""
    contrast = np.empty(len(pairs.row), np.float32)
    for start in range(0, len(pairs.row), _THUMBNAILS_AT_ONCE):
        some = slice(start, start + _THUMBNAILS_AT_ONCE)
        pairs.difference[some], contrast[some] = thumbnail_differences(
            keepers.thumbnails.take(pairs.keeper[some]), rows.thumbnails.take(pairs.row[some])
        )
    relative = np.maximum(_NO_DIFFERENCE, limits.max_relative_difference * contrast)
    allowed = np.minimum(limits.max_thumbnail_difference, relative)
    return pairs.take(np.flatnonzero(pairs.difference <= allowed))


def _candidates(keepers: Side, rows: Side, max_bits: int, *, skip: Skip) -> Iterator[Pairs]:
    """Pairs whose hashes are near, each once, in pieces of bounded size."""
    flips = _flips(max_bits)
    for first in range(0, len(keepers.own), _KEEPERS_AT_ONCE):
        waiting = np.arange(first, min(first + _KEEPERS_AT_ONCE, len(keepers.own)))
        while len(waiting := waiting[~skip.keepers[waiting]]):
            starts, counts = _lookups(keepers, waiting, rows.bands, flips)
            fitting = np.searchsorted(np.cumsum(counts.sum(axis=1)), _PAIRS_AT_ONCE, side="right")
            some = max(1, int(fitting))
            which, row = _expand(starts[:some], counts[:some], rows.bands)
            pairs = _measured(keepers, rows, waiting[which], row)
            yield _selected(pairs, max_bits, skip)
            waiting = waiting[some:]


def _flips(max_bits: int) -> Int64s:
    """What a band may differ by, so that no pair is missed in all four."""
    one_bit = 1 << np.arange(_BAND_BITS)
    return np.concatenate([[0], one_bit if max_bits >= _BANDS else one_bit[:0]]).astype(np.int64)


def _lookups(keepers: Side, some: Int64s, bands: _Bands, flips: Int64s) -> tuple[Int64s, Int64s]:
    """First place in `bands.orders`, and how many, [keepers, lookups]."""
    starts, counts = [], []
    for hashes in (keepers.own, keepers.mirror):
        for band in range(_BANDS):
            values = _band(hashes[some], band)[:, None] ^ flips
            starts.append(bands.starts[band][values])
            counts.append(bands.starts[band][values + 1] - starts[-1])
    return np.concatenate(starts, axis=1), np.concatenate(counts, axis=1)


def _expand(starts: Int64s, counts: Int64s, bands: _Bands) -> tuple[Int64s, Int64s]:
    """Place of the keeper, and the row, of each pair looked up; keepers rising."""
    flat = counts.ravel()
    before = np.cumsum(flat) - flat
    places = np.arange(flat.sum()) + np.repeat(starts.ravel() - before, flat)
    which = np.repeat(np.arange(len(counts)), counts.sum(axis=1))
    return which, bands.orders[places]


def _measured(keepers: Side, rows: Side, keeper: Int64s, row: Int64s) -> Pairs:
    """Pairs with their distance in bits: of the image or of its mirror, whichever is less."""
    wanted = rows.own[row]
    bits = np.minimum(
        np.bitwise_count(keepers.own[keeper] ^ wanted),
        np.bitwise_count(keepers.mirror[keeper] ^ wanted),
    )
    none = np.full(len(row), np.nan, np.float32)
    return Pairs(keeper, row, bits.astype(np.int64), none.copy(), none)


def _selected(pairs: Pairs, max_bits: int, skip: Skip) -> Pairs:
    """The near ones among pairs that are not skipped, each once, sorted by (keeper, row)."""
    near = np.flatnonzero(pairs.hamming_bits <= max_bits)
    near = near[skip.allowed(pairs.keeper[near], pairs.row[near])]
    order = near[np.lexsort((pairs.row[near], pairs.keeper[near]))]
    keeper, row = pairs.keeper[order], pairs.row[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(keeper) != 0) | (np.diff(row) != 0)
    return pairs.take(order[first])


def _band(hashes: UInt64s, band: int) -> Int64s:
    shifted = hashes >> np.uint64(_BAND_BITS * band)
    return (shifted & np.uint64((1 << _BAND_BITS) - 1)).astype(np.int64)

"""The order in which training reads samples: a pure function of whole numbers, without a table.

`EpochOrder(shard_rows, digest=, seed=, epoch=)` maps a position of the epoch to (shard, row): a
keyed permutation of the shards, then of the rows inside windows of four shards. Rows were shuffled
when they were stored, so a window is as random as the whole. Memory is O(shards + removed rows);
nothing grows with the rows, and any position costs the same.

Changing any result here invalidates every run in progress: raise `ORDER_VERSION`.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

ORDER_VERSION = 1
WINDOW_SHARDS = 4
_ROUNDS = 8
_BLOCK = 8192
"""Numbers that are enciphered together: few enough to stay in a core's cache."""

Int64s = NDArray[np.int64]
UInt64s = NDArray[np.uint64]


def keyed_hash(purpose: str, seed: int, uid: bytes) -> int:
    """64 bits that look random, fixed by the purpose, the seed and the image."""
    salted = hashlib.blake2b(uid, digest_size=8, key=f"{purpose}/{seed}".encode()[:64])
    return int.from_bytes(salted.digest(), "big")


def derive_key(*parts: object) -> bytes:
    """32 bytes fixed by the parts; parts are told apart by their `repr`."""
    return hashlib.sha256(repr(parts).encode()).digest()


def steps_per_epoch(live_rows: int, global_samples: int) -> int:
    """Whole global batches in one pass; the tail is dropped."""
    return live_rows // global_samples


def rank_positions(
    step_in_epoch: int, global_samples: int, *, rank: int, world_size: int
) -> Int64s:
    """Positions of the epoch that `rank` reads for one optimizer step: a contiguous slice.

    Raises:
        ValueError: If `world_size` does not divide `global_samples`, or the rank is not in it.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}) but is {rank}")
    if global_samples % world_size:
        raise ValueError(f"world_size {world_size} must divide global_samples {global_samples}")
    share = global_samples // world_size
    start = step_in_epoch * global_samples + rank * share
    return np.arange(start, start + share, dtype=np.int64)


class KeyedPermutation:
    """A bijection of [0, n) fixed by 32 bytes of key: a Feistel network with cycle walking."""

    def __init__(self, n: int, key: bytes) -> None:
        """Prepare the round keys; nothing of size n is made."""
        self.n = n
        # Both halves have the same width, so the network's domain is below 4n: few walks.
        self._half = np.uint64(max(1, ((max(n, 1) - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        rounds = hashlib.shake_256(key).digest(8 * _ROUNDS)
        self._keys = np.frombuffer(rounds, "<u8").astype(np.uint64)

    def forward(self, index: ArrayLike) -> Int64s:
        """The image of each index, which must be in [0, n)."""
        return self._walk(index, self._encrypt)

    def inverse(self, image: ArrayLike) -> Int64s:
        """The index of each image: `inverse(forward(i)) == i`."""
        return self._walk(image, self._decrypt)

    def _walk(self, start: ArrayLike, step: Callable[[UInt64s], UInt64s]) -> Int64s:
        values = np.atleast_1d(np.asarray(start, np.int64)).astype(np.uint64)
        if values.size and int(values.max()) >= self.n:
            raise IndexError(f"an index is outside [0, {self.n})")
        for first in range(0, len(values), _BLOCK):
            block = step(values[first : first + _BLOCK])
            while (outside := block >= self.n).any():
                block[outside] = step(block[outside])
            values[first : first + _BLOCK] = block
        return values.astype(np.int64)

    def _encrypt(self, values: UInt64s) -> UInt64s:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._half) | right

    def _decrypt(self, values: UInt64s) -> UInt64s:
        left, right = values >> self._half, values & self._mask
        for key in self._keys[::-1]:
            left, right = right ^ (_mix(left + key) & self._mask), left
        return (left << self._half) | right


@dataclass(frozen=True)
class Removed:
    """Rows that an order leaves out, as parallel arrays."""

    shard: Int64s
    row: Int64s


class EpochOrder:
    """Where each sample of one epoch lies."""

    def __init__(
        self,
        shard_rows: ArrayLike,
        *,
        digest: str,
        seed: int,
        epoch: int,
        removed: Removed | None = None,
    ) -> None:
        """Fix the order.

        Args:
            shard_rows: Rows of each shard in the files, removed ones included.
            digest: Identity of the stored rows; the same rows keep their order when some go.
            seed: Of the experiment.
            epoch: Pass over the data, from 0.
            removed: Rows to leave out; the others keep their relative order.
        """
        self._rows = np.asarray(shard_rows, np.int64)
        self._parts = (digest, seed, epoch)
        self._permuted = KeyedPermutation(len(self._rows), derive_key(*self._parts, "shards"))
        self._shards = self._permuted.forward(np.arange(len(self._rows)))
        ends = np.concatenate([[0], np.cumsum(self._rows[self._shards])])
        self._shard_starts = ends[:-1]
        self._window_starts = ends[:-1][::WINDOW_SHARDS]
        self._total = int(ends[-1])
        self._removed = self._removed_positions(removed)
        self.num_rows = self._total - len(self._removed)

    def locate(self, positions: ArrayLike) -> tuple[Int64s, Int64s]:
        """Shard and row of each position in [0, num_rows)."""
        live = np.atleast_1d(np.asarray(positions, np.int64))
        if live.size and not 0 <= live.min() <= live.max() < self.num_rows:
            raise IndexError(f"a position is outside [0, {self.num_rows})")
        return self._locate_raw(self._raw(live))

    def positions(self, shards: ArrayLike, rows: ArrayLike) -> Int64s:
        """Position of each stored row: the inverse of `locate`; -1 for a removed one."""
        raw = self._raw_positions(np.atleast_1d(shards), np.atleast_1d(rows))
        before = np.searchsorted(self._removed, raw)
        gone = np.isin(raw, self._removed)
        return np.where(gone, -1, raw - before)

    def ahead(self, position: int) -> Int64s:
        """Shards of the window after that of a position, for who has to fetch them; maybe none."""
        window = int(self._window_of(self._raw(np.array([position])))[0]) + 1
        return self._shards[window * WINDOW_SHARDS : (window + 1) * WINDOW_SHARDS]

    def substitutes(self, position: int) -> Iterator[tuple[int, int]]:
        """Other rows of the position's window, in a keyed order: stand-ins for a bad row."""
        raw = int(self._raw(np.array([position]))[0])
        window = self._window_of(np.array([raw]))[0]
        start, rows = self._window(int(window))
        probe = KeyedPermutation(rows, derive_key(*self._parts, "probe", raw))
        for attempt in range(rows):
            candidate = start + int(probe.forward(attempt)[0])
            place = np.searchsorted(self._removed, candidate)
            gone = place < len(self._removed) and self._removed[place] == candidate
            if candidate != raw and not gone:
                shard, row = self._locate_raw(np.array([candidate]))
                yield int(shard[0]), int(row[0])

    def _raw(self, live: Int64s) -> Int64s:
        """Positions counted without the removed rows -> counted with them."""
        before = self._removed - np.arange(len(self._removed))
        return live + np.searchsorted(before, live, side="right")

    def _removed_positions(self, removed: Removed | None) -> Int64s:
        if removed is None or not len(removed.shard):
            return np.empty(0, np.int64)
        return np.sort(self._raw_positions(removed.shard, removed.row))

    def _raw_positions(self, shards: Int64s, rows: Int64s) -> Int64s:
        """Positions of stored rows, counted with the removed ones."""
        stored = self._shard_starts[self._permuted.inverse(shards)] + rows
        positions = np.empty_like(stored)
        for window, members in self._by_window(stored):
            start, permutation = self._permutation(window)
            positions[members] = start + permutation.inverse(stored[members] - start)
        return positions

    def _locate_raw(self, raw: Int64s) -> tuple[Int64s, Int64s]:
        stored = np.empty_like(raw)
        for window, members in self._by_window(raw):
            start, permutation = self._permutation(window)
            stored[members] = start + permutation.forward(raw[members] - start)
        place = np.searchsorted(self._shard_starts, stored, side="right") - 1
        return self._shards[place], stored - self._shard_starts[place]

    def _by_window(self, raw: Int64s) -> Iterator[tuple[int, NDArray[np.intp]]]:
        windows = self._window_of(raw)
        order = np.argsort(windows, kind="stable")
        found, starts = np.unique(windows[order], return_index=True)
        # Without any position there is one empty part and no window.
        for window, members in zip(found, np.split(order, starts[1:]), strict=False):
            yield int(window), members

    def _window_of(self, raw: Int64s) -> NDArray[np.intp]:
        return np.searchsorted(self._window_starts, raw, side="right") - 1

    def _window(self, window: int) -> tuple[int, int]:
        """First position and number of rows of a window."""
        start = int(self._window_starts[window])
        last = window + 1 == len(self._window_starts)
        return start, (self._total if last else int(self._window_starts[window + 1])) - start

    def _permutation(self, window: int) -> tuple[int, KeyedPermutation]:
        start, rows = self._window(window)
        return start, KeyedPermutation(rows, derive_key(*self._parts, "rows", window))


def _mix(values: UInt64s) -> UInt64s:
    """The finaliser of splitmix64; arrays wrap around on purpose."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

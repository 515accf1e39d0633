"""Which training images a probe learns from: drawn by (seed, uid), so in no order and by nobody.

Axes: N images.
"""

import numpy as np
from jaxtyping import Integer, UInt64

from pipeline.data.order import keyed_hash
from pipeline.evaluation.features import Features
from pipeline.evaluation.logistic import Fold


def ranks(features: Features, *, purpose: str, seed: int) -> UInt64[np.ndarray, " N"]:
    """A number for each image that looks random, fixed by the purpose, the seed and its uid."""
    # NumPy leaves out zeros at the end of bytes.
    hashes = (keyed_hash(purpose, seed, uid.ljust(16, b"\0")) for uid in features.uids.tolist())
    return np.fromiter(hashes, np.uint64, count=len(features))


def choose_shots(
    label_N: Integer[np.ndarray, " N"], rank_N: UInt64[np.ndarray, " N"], *, shots: int
) -> Integer[np.ndarray, " n"]:
    """Rows of the `shots` images of each class with the smallest ranks, rising.

    All of a class that has fewer. Fewer shots of the same ranks are among more of them.
    """
    place_N, _ = _in_class(label_N, rank_N)
    return np.flatnonzero(place_N < shots)


def hold_out(
    label_N: Integer[np.ndarray, " N"], rank_N: UInt64[np.ndarray, " N"], *, ratio: float
) -> Fold | None:
    """Rows to learn from and rows to choose on: of each class the share with the smallest ranks.

    Rounded down, so that no class is held out whole; None where that leaves no row to choose on.
    """
    place_N, size_N = _in_class(label_N, rank_N)
    held_N = place_N < np.floor(ratio * size_N)
    return (np.flatnonzero(~held_N), np.flatnonzero(held_N)) if held_N.any() else None


def _in_class(
    label_N: Integer[np.ndarray, " N"], rank_N: UInt64[np.ndarray, " N"]
) -> tuple[Integer[np.ndarray, " N"], Integer[np.ndarray, " N"]]:
    """Place of each image by rank among those of its class, from 0; and how many these are."""
    order = np.lexsort((rank_N, label_N))
    sorted_N = label_N[order]
    first = np.searchsorted(sorted_N, sorted_N, side="left")
    place_N, size_N = np.empty_like(order), np.empty_like(order)
    place_N[order] = np.arange(len(order)) - first
    size_N[order] = np.searchsorted(sorted_N, sorted_N, side="right") - first
    return place_N, size_N

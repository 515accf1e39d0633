"""Chance in robustness tests: keyed by what is drawn, the seed and the image, by nothing else.

So a draw is the same whatever the batch, the order or the worker.
"""

import numpy as np
from jaxtyping import Integer, UInt8

from pipeline.data.order import derive_key

_KEY_BYTES = 16  # of Philox


def generator(purpose: str, seed: int, uid: bytes) -> np.random.Generator:
    """Numbers that look random, fixed by the arguments and the version of NumPy."""
    key = derive_key("robustness", purpose, seed, uid)[:_KEY_BYTES]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))


def orders(
    purpose: str, seed: int, uid_B: UInt8[np.ndarray, "B 16"], count: int
) -> Integer[np.ndarray, "B {count}"]:
    """A permutation of `count` things for each image."""
    drawn = [generator(purpose, seed, uid.tobytes()).permutation(count) for uid in uid_B]
    return np.stack(drawn)

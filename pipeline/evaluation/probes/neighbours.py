"""The nearest training images by cosine, and their vote; exact, in chunks.

Axes: N training images, M measured ones, P chunk of them, C chunk of training images, D features,
n neighbours, K classes.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Integer

Chunk = Float[np.ndarray, "C D"]


def unit(features_ND: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Features of length one, in float64; those of length zero stay zero, alike to nothing."""
    wide_ND = features_ND.astype(np.float64)
    length_N1 = np.sqrt((wide_ND**2).sum(axis=1, keepdims=True))
    return wide_ND / np.where(length_N1 > 0, length_N1, 1.0)


def nearest(
    train: Iterable[Chunk], query_PD: Float[np.ndarray, "P D"], *, count: int
) -> tuple[Integer[np.ndarray, "P n"], Float[np.ndarray, "P n"]]:
    """Rows of the training images that are most alike, and their cosines, the most alike first.

    Of equal ones the earlier row counts. Brute force, N x P x D multiplications in float64: the
    answer is no approximation. Holds one chunk and 16 x P x (count + rows of a chunk) bytes.

    Args:
        train: Features of all training images in pieces, in the order of their rows.
        query_PD: Features to look for.
        count: How many; all, where the training images are fewer.
    """
    query_unit_PD = unit(query_PD)
    row_Pn = np.empty((len(query_PD), 0), np.int64)
    cosine_Pn = np.empty((len(query_PD), 0))
    start = 0
    for chunk_CD in train:
        similar_PC = query_unit_PD @ unit(chunk_CD).T
        rows_PC = np.broadcast_to(np.arange(start, start + len(chunk_CD)), similar_PC.shape)
        row_Pn, cosine_Pn = _best(
            np.concatenate([row_Pn, rows_PC], axis=1),
            np.concatenate([cosine_Pn, similar_PC], axis=1),
            count,
        )
        start += len(chunk_CD)
    return row_Pn, cosine_Pn


def vote(
    label_Pn: Integer[np.ndarray, "P n"],
    cosine_Pn: Float[np.ndarray, "P n"],
    *,
    num_classes: int,
    temperature: float,
) -> Integer[np.ndarray, " P"]:
    """The class with most votes, each exp(cosine / temperature); the first one of a tie.

    Source: Wu et al. 2018 (arXiv 1805.01978); DINO and DINOv2 evaluate so, at 0.07.
    """
    votes_PK = np.zeros((len(label_Pn), num_classes))
    # Less the largest, which changes no winner and keeps the powers finite.
    weight_Pn = np.exp((cosine_Pn - cosine_Pn[:, :1]) / temperature)
    np.add.at(votes_PK, (np.arange(len(label_Pn))[:, None], label_Pn), weight_Pn)
    return np.asarray(votes_PK.argmax(axis=1))


def _best(
    row_PC: Integer[np.ndarray, "P C"], cosine_PC: Float[np.ndarray, "P C"], count: int
) -> tuple[Integer[np.ndarray, "P n"], Float[np.ndarray, "P n"]]:
    """The `count` largest of each line, largest first, earlier rows first among equals."""
    if cosine_PC.shape[1] > count:
        floor_P1 = -np.partition(-cosine_PC, count - 1, axis=1)[:, count - 1 : count]
        # More than `count` where several are as large as the last: their rows decide below.
        kept = int((cosine_PC >= floor_P1).sum(axis=1).max())
        places = np.argpartition(-cosine_PC, kept - 1, axis=1)[:, :kept]
        row_PC = np.take_along_axis(row_PC, places, axis=1)
        cosine_PC = np.take_along_axis(cosine_PC, places, axis=1)
    order = np.lexsort((row_PC, -cosine_PC), axis=1)[:, :count]
    return (
        np.take_along_axis(row_PC, order, axis=1),
        np.take_along_axis(cosine_PC, order, axis=1),
    )

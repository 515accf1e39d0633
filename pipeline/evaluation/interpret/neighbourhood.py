"""A map of the features of images, by scikit-learn's t-SNE.

Axes: N images, D features.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from sklearn.manifold import TSNE, trustworthiness
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from pipeline.evaluation.interpret.components import principal_components
from schemas.errors import SpecError
from schemas.interpret import Neighbourhood

NEIGHBOURHOOD_ARRAY = "neighbourhood"
_FEWEST_IMAGES = 8
_NEIGHBOURS = 10
_FIRST_COMPONENTS = 50
"""What t-SNE is given, as its authors advise: the rest is mostly noise, and time."""


class Embedded(NamedTuple):
    """The images that are drawn as points."""

    features_ND: Float[np.ndarray, "N D"]
    label_N: Integer[np.ndarray, " N"]
    uids: tuple[str, ...]


def neighbourhood_of(
    images: Embedded, *, perplexity: float, seed: int
) -> tuple[Neighbourhood, Float[np.ndarray, "N 2"]]:
    """Points on a plane whose neighbours are those that the images have among the features.

    Features are scaled to length 1, so that what is near is near by cosine.

    Raises:
        SpecError: If there are fewer than eight images, or all have the same features.
    """
    count = len(images.uids)
    if count < _FEWEST_IMAGES:
        raise SpecError(f"a map needs {_FEWEST_IMAGES} images or more, not {count}")
    unit_ND = np.asarray(images.features_ND, np.float64)
    lengths_N = np.linalg.norm(unit_ND, axis=1, keepdims=True)
    unit_ND = unit_ND / np.where(lengths_N > 0.0, lengths_N, 1.0)
    reduced_NK = principal_components(unit_ND, _FIRST_COMPONENTS).of(unit_ND)
    perplexity = min(perplexity, (count - 1) / 3)
    points_N2 = _tsne(reduced_NK, perplexity, seed)
    neighbours = min(_NEIGHBOURS, (count - 1) // 2)
    section = Neighbourhood(
        images=count,
        perplexity=perplexity,
        trustworthiness=float(trustworthiness(unit_ND, points_N2, n_neighbors=neighbours)),
        same_class_ratio=_same_class(unit_ND, images.label_N, neighbours),
        same_class_chance=_chance(images.label_N),
        array=NEIGHBOURHOOD_ARRAY,
        labels=tuple(images.label_N.tolist()),
        uids=images.uids,
    )
    return section, points_N2


def _tsne(
    vectors_NK: Float[np.ndarray, "N K"], perplexity: float, seed: int
) -> Float[np.ndarray, "N 2"]:
    # The sums of several threads differ in the last bits, which t-SNE carries to the first.
    with threadpool_limits(1):
        tsne = TSNE(
            perplexity=perplexity,
            init="pca" if vectors_NK.shape[1] > 1 else "random",
            random_state=seed % 2**32,
            n_jobs=1,
        )
        points_N2: np.ndarray = tsne.fit_transform(vectors_NK)
    return points_N2.astype(np.float32)


def _same_class(
    unit_ND: Float[np.ndarray, "N D"], label_N: Integer[np.ndarray, " N"], neighbours: int
) -> float:
    near = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(unit_ND)
    nearest_NK = near.kneighbors(return_distance=False)
    return float((label_N[nearest_NK] == label_N[:, None]).mean())


def _chance(label_N: Integer[np.ndarray, " N"]) -> float:
    """Mean share, among all others, of the images that have an image's class."""
    _, counts = np.unique(label_N, return_counts=True)
    total = len(label_N)
    return float((counts * (counts - 1)).sum() / (total * (total - 1)))

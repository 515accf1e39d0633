"""How alike two layers arrange the same images.

Axes: L layers, N images, D width of a layer.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from schemas.errors import SpecError
from schemas.interpret import LayerSimilarity

_FEWEST_IMAGES = 8


def layers_of(vectors: Mapping[str, Float[np.ndarray, "N _"]]) -> LayerSimilarity:
    """Linear CKA between any two layers; memory is 8 bytes for each layer and pair of images.

    Args:
        vectors: Layer -> its vector for each image, [N, D]; widths may differ.

    Raises:
        SpecError: If there are too few images or layers.
    """
    if len(vectors) < 2:
        raise SpecError("the model has a single layer, so there are none to compare")
    images = len(next(iter(vectors.values())))
    if images < _FEWEST_IMAGES:
        raise SpecError(f"layers are compared over {_FEWEST_IMAGES} images or more, not {images}")
    cka_LL = linear_cka(vectors)
    return LayerSimilarity(
        images=images, layers=tuple(vectors), cka=tuple(tuple(row.tolist()) for row in cka_LL)
    )


def linear_cka(vectors: Mapping[str, Float[np.ndarray, "N _"]]) -> Float[np.ndarray, "L L"]:
    """Unbiased linear CKA (Nguyen et al. 2021, after Song et al. 2012), at most 1.

    Of four images or more. The biased estimate is near 1 for any two layers that are wider than
    there are images.
    """
    grams = np.stack([_centred_gram(vectors_ND).ravel() for vectors_ND in vectors.values()])
    products_LL = grams @ grams.T
    lengths_L = np.sqrt(np.diagonal(products_LL))
    lengths_L = np.where(lengths_L > 0.0, lengths_L, 1.0)
    cka_LL: np.ndarray = np.minimum(products_LL / np.outer(lengths_L, lengths_L), 1.0)
    return cka_LL


def _centred_gram(vectors_ND: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N N"]:
    """Inner products, U-centred: no row or column tells anything by itself, the diagonal is 0."""
    vectors_ND = np.asarray(vectors_ND, np.float64)
    vectors_ND = vectors_ND - vectors_ND.mean(axis=0)  # changes nothing but the rounding
    gram_NN: np.ndarray = vectors_ND @ vectors_ND.T
    np.fill_diagonal(gram_NN, 0.0)
    count = len(gram_NN)
    means_N = gram_NN.sum(axis=0) / (count - 2)
    mean = gram_NN.sum() / ((count - 1) * (count - 2))
    gram_NN = gram_NN - means_N[:, None] - means_N[None, :] + mean
    np.fill_diagonal(gram_NN, 0.0)
    return gram_NN

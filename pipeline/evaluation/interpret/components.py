"""Principal components, and the two sections that they are the whole of: kernels, feature maps.

Axes: N vectors, D their width, K components, M images, R Q rows and columns of patches,
C channels, H W pixels of a kernel.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.model.anatomy import Kernels, first_kernels
from pipeline.model.backbone import Backbone
from schemas.errors import SpecError
from schemas.interpret import FeatureMaps, Filters

FILTERS_ARRAY, FEATURE_MAPS_ARRAY = "filters", "feature_maps"
_MOST_COMPONENTS = 28
"""As in the paper's Figure 7."""
_MOST_KERNELS = 64
_COLOURS = 3


class Components(NamedTuple):
    """The directions in which vectors differ most, the first most of all."""

    mean_D: Float[np.ndarray, " D"]
    directions_KD: Float[np.ndarray, "K D"]
    """Of length 1; the entry that is furthest from zero is positive, which fixes the sign."""
    ratios_K: Float[np.ndarray, " K"]
    """Each one's share of the variance."""

    def of(self, vectors_ND: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N K"]:
        """How far vectors go in these directions."""
        scores_NK: np.ndarray = (vectors_ND - self.mean_D) @ self.directions_KD.T
        return scores_NK


def principal_components(vectors_ND: Float[np.ndarray, "N D"], count: int) -> Components:
    """The first `count` components, or as many as there are; computed in float64.

    Memory is that of the vectors in float64, and of a square of the smaller of N and D.

    Raises:
        SpecError: If all vectors are equal.
    """
    centred_ND = np.asarray(vectors_ND, np.float64)
    mean_D = centred_ND.mean(axis=0)
    centred_ND = centred_ND - mean_D
    wide = centred_ND.shape[1] > len(centred_ND)
    square = centred_ND @ centred_ND.T if wide else centred_ND.T @ centred_ND
    values, vectors = np.linalg.eigh(square)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    if values.sum() <= 0.0:
        raise SpecError("all vectors are equal, so there is nothing in which they differ")
    count = min(count, int((values > values[0] * 1e-12).sum()))
    directions_KD = (centred_ND.T @ vectors[:, :count]).T if wide else vectors[:, :count].T
    directions_KD /= np.linalg.norm(directions_KD, axis=1, keepdims=True)
    furthest = np.abs(directions_KD).argmax(axis=1)
    directions_KD *= np.sign(directions_KD[np.arange(count), furthest])[:, None]
    return Components(mean_D, directions_KD, values[:count] / values.sum())


def filters_of(model: Backbone) -> tuple[Filters, Float[np.ndarray, "K H W C"]]:
    """What a model sees first (paper, Figure 7 left).

    Of a patch projection, the principal components of its kernels; of a convolution that slides
    over the image, the kernels themselves, strongest first.

    Raises:
        SpecError: If the model begins with no convolution.
    """
    kernels = first_kernels(model)
    weights_DCHW = kernels.weights_DCHW.detach().cpu().double().numpy()
    count = len(weights_DCHW)
    ratios: tuple[float, ...] = ()
    if kernels.is_patch:
        found = _components_of(kernels)
        ratios = tuple(float(it) for it in np.minimum(found.ratios_K, 1.0))
        weights_DCHW = found.directions_KD.reshape(-1, *weights_DCHW.shape[1:])
    else:
        norms_D = np.linalg.norm(weights_DCHW.reshape(count, -1), axis=1)
        weights_DCHW = weights_DCHW[np.argsort(-norms_D, kind="stable")[:_MOST_KERNELS]]
    section = Filters(
        what="components" if kernels.is_patch else "kernels",
        count=count,
        explained_ratios=ratios,
        array=FILTERS_ARRAY,
    )
    return section, weights_DCHW.transpose(0, 2, 3, 1).astype(np.float32)


def _components_of(kernels: Kernels) -> Components:
    flat_ND = kernels.weights_DCHW.detach().cpu().double().flatten(1).numpy()
    return principal_components(flat_ND, _MOST_COMPONENTS)


@torch.no_grad()
def feature_maps_of(
    model: Backbone, pixels_MCHW: Float[Tensor, "M C H W"]
) -> tuple[FeatureMaps, Float[np.ndarray, "M R Q 3"]]:
    """The three directions in which patches of all these images differ most, patch by patch.

    As in the figures of DINOv2 (Oquab et al. 2023): equal colours are alike across images.

    Raises:
        SpecError: If it is not known where the features of a model belong, or they do not differ.
    """
    try:
        grids = [model.forward_grid(image_CHW[None])[0] for image_CHW in pixels_MCHW]
    except ValueError as error:
        raise SpecError(str(error)) from error
    grid_MRQD = torch.stack(grids).float().cpu().numpy()
    flat_ND = grid_MRQD.reshape(-1, grid_MRQD.shape[-1])
    found = principal_components(flat_ND, _COLOURS)
    scores_N3 = np.zeros((len(flat_ND), _COLOURS), np.float32)
    scores_N3[:, : len(found.ratios_K)] = found.of(flat_ND)
    section = FeatureMaps(
        explained_ratios=tuple(float(it) for it in np.minimum(found.ratios_K, 1.0)),
        array=FEATURE_MAPS_ARRAY,
    )
    return section, scores_N3.reshape(*grid_MRQD.shape[:3], _COLOURS)

"""Forward passes that a `robustness` stage asks of a model, from specs alone."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from schemas.backbones import ResNetSpec
from schemas.model import ViTSpec
from schemas.robustness import (
    AnyTest,
    CorruptionTest,
    FgsmTest,
    Grid,
    ImagePatchTest,
    LesionTest,
    PatchDropTest,
    PatchShuffleTest,
    PgdTest,
    TokenCorrelationTest,
    UniversalPatchTest,
)

GRADIENT_PASSES = 3
"""A backward pass costs about two forward ones."""
_SMALLEST_CORRUPTED_PX = 32
Model = ViTSpec | ResNetSpec


def forward_passes(tests: Iterable[AnyTest], model: Model, *, guided: bool) -> int:
    """Of each image, the unchanged one included; a gradient counts three.

    Learning universal patches is left out (`learning_passes`), and so is the guide's own pass.

    Args:
        tests: What is asked.
        model: Of whom.
        guided: Whether there is a guide, so that salient patches are known.
    """
    found = 1
    for test in tests:
        if isinstance(test, PatchDropTest):
            found += _drops(test, model, guided=guided)
        else:
            found += _PASSES[type(test)](test, model)
    return found


def learning_passes(tests: Iterable[AnyTest]) -> int:
    """Of images, to learn all universal patches against one model."""
    return sum(
        GRADIENT_PASSES * test.steps * test.training_batch * test.seeds * len(test.side_percents)
        for test in tests
        if isinstance(test, UniversalPatchTest)
    )


def _drops(test: PatchDropTest, model: Model, *, guided: bool) -> int:
    grids = _grids(test.grids, model) if "random" in test.orders else set()
    salient = sum(order != "random" for order in test.orders) if guided else 0
    return len(test.percents) * (test.seeds * len(grids) + salient)


def _shuffles(test: PatchShuffleTest, model: Model) -> int:
    return test.seeds * len(_grids(test.grids, model))


def _lesions(test: LesionTest, model: Model) -> int:
    blocks = model.depth if isinstance(model, ViTSpec) else len(model.blocks)
    wanted = range(1, blocks + 1) if test.blocks is None else test.blocks
    return sum(block <= blocks for block in wanted) * len(test.percents) * test.seeds


def _correlations(test: TokenCorrelationTest, model: Model) -> int:
    return (1 + len(test.percents) * test.seeds) if _grids((test.grid,), model) else 0


def _fgsm(test: FgsmTest, model: Model) -> int:  # noqa: ARG001
    return GRADIENT_PASSES + len(test.eps_per_255)


def _pgd(test: PgdTest, model: Model) -> int:  # noqa: ARG001
    return len(test.eps_per_255) * test.seeds * (GRADIENT_PASSES * test.steps + 1)


def _image_patches(test: ImagePatchTest, model: Model) -> int:  # noqa: ARG001
    return len(test.side_percents) * test.seeds * (GRADIENT_PASSES * test.steps + 2)


def _universal_patches(test: UniversalPatchTest, model: Model) -> int:  # noqa: ARG001
    return len(test.side_percents) * test.seeds * 2


def _corruptions(test: CorruptionTest, model: Model) -> int:
    small = min(model.image_px) < _SMALLEST_CORRUPTED_PX
    return 0 if small else len(test.names) * len(test.severities)


def _grids(grids: Iterable[Grid], model: Model) -> set[tuple[int, int]]:
    """Those that fit into the image, each once."""
    sizes = {model.grid if grid == "own" else grid for grid in grids}
    return {
        grid for grid in sizes if all(n <= px for n, px in zip(grid, model.image_px, strict=True))
    }


_PASSES: Mapping[type, Callable[[Any, Model], int]] = {
    PatchShuffleTest: _shuffles,
    LesionTest: _lesions,
    TokenCorrelationTest: _correlations,
    FgsmTest: _fgsm,
    PgdTest: _pgd,
    ImagePatchTest: _image_patches,
    UniversalPatchTest: _universal_patches,
    CorruptionTest: _corruptions,
}

"""Which trials the tests of a spec ask for, of one model; and what cannot be asked of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pipeline.evaluation.robustness.attack_trials import Fgsm, ImagePatch, Pgd, UniversalPatch
from pipeline.evaluation.robustness.cells import CellGrid
from pipeline.evaluation.robustness.corruptions import SMALLEST_SIDE_PX
from pipeline.evaluation.robustness.subjects import Subject
from pipeline.evaluation.robustness.trials import (
    Correlation,
    Corrupted,
    DroppedShare,
    Lesion,
    Place,
    RandomDrop,
    SalientDrop,
    Shuffle,
    Trial,
)
from pipeline.model.backbone import Backbone
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
from schemas.robustness_report import AbsentTest

DROPPED = "cells dropped (%)"
ATTENTION = "guide's attention dropped (%)"
EPS = "largest change of a value (255ths)"
SIDE = "side of patch over image (%)"
NOISE, LEARNED = "noise", "attack"


@dataclass(frozen=True)
class Asked:
    """A model, and what the stage says beside its tests."""

    subject: Subject
    number: int
    """Of the model in the spec, from 0."""
    guide_grid: tuple[int, int] | None
    """Patches of the guide; None: there is none."""
    patches: Path
    """Folder of learned patches."""
    training_images: int
    """For universal patches; 0: there are too few images."""

    @property
    def image_px(self) -> tuple[int, int]:
        """Of the model's input."""
        return self.subject.model.spec.image_px


@dataclass(frozen=True)
class Plan:
    """Trials in order, and what is left out."""

    trials: tuple[Trial, ...]
    absent: tuple[AbsentTest, ...]

    @property
    def passes(self) -> float:
        """Forward passes for each image, that of the unchanged one included."""
        return 1.0 + sum(trial.passes for trial in self.trials)


class _AbsentError(Exception):
    """What a model cannot be asked, and the reason."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(reason)
        self.what, self.reason = what, reason


def plan_trials(tests: tuple[AnyTest, ...], asked: Asked) -> Plan:
    """Everything that is asked of one model."""
    trials: list[Trial] = []
    absent = []
    for test in tests:
        for make in _PLANNERS[type(test)](test, asked):
            try:
                trials.extend(make())
            except _AbsentError as error:
                reason = {"what": error.what, "reason": error.reason}
                absent.append(AbsentTest(test=test.type, model=asked.subject.stage, **reason))
    distinct = {trial.places: trial for trial in trials}
    return Plan(tuple(distinct.values()), tuple(absent))


def patch_side(image_px: tuple[int, int], percent: int) -> int:
    """Side of a patch in pixels, at least one."""
    return max(1, round(min(image_px) * percent / 100))


def learned_name(number: int, percent: int, draw: int) -> str:
    """File of a universal patch against the model of this number."""
    return f"{number}-{percent}-{draw}.npy"


Making = Iterator[Callable[[], list[Trial]]]
"""Parts of a test; one that cannot be asked leaves the others."""


def _patch_drop(test: PatchDropTest, asked: Asked) -> Making:
    if "random" in test.orders:
        for grid in test.grids:
            yield partial(_random_drops, test, grid, asked)
    for order in test.orders:
        if order != "random":
            yield partial(_salient_drops, test, order, asked)


def _random_drops(test: PatchDropTest, grid: Grid, asked: Asked) -> list[Trial]:
    cells = _cells(grid, asked, test.offset_px)
    moved = f", moved by {cells.offset_px} px" if cells.offset_px else ""
    variant = f"random, {cells.in_words}{moved}"
    return [
        RandomDrop(
            Place(test.type, variant, "top1_ratio", DROPPED, percent, f"{percent} %", draw),
            cells,
            percent,
        )
        for percent in test.percents
        for draw in range(test.seeds)
    ]


def _salient_drops(test: PatchDropTest, order: str, asked: Asked) -> list[Trial]:
    variant = order.replace("_", "-")
    if asked.guide_grid is None:
        raise _AbsentError(variant, "no model has a class token whose attention could say it")
    cells = _cells(asked.guide_grid, asked)
    trials: list[Trial] = []
    for percent in test.percents:
        words = f"{percent} %"
        place = Place(test.type, variant, "top1_ratio", ATTENTION, percent, words)
        drop = SalientDrop(place, cells, percent, order == "salient", test.head)
        trials.append(drop)
        if asked.number == 0:  # it is the guide's alone
            trials.append(DroppedShare(place._replace(measure="dropped_ratio"), drop))
    return trials


def _patch_shuffle(test: PatchShuffleTest, asked: Asked) -> Making:
    for grid in test.grids:
        yield partial(_shuffles, test, grid, asked)


def _shuffles(test: PatchShuffleTest, grid: tuple[int, int], asked: Asked) -> list[Trial]:
    cells = _cells(grid, asked)
    axis, words = "cells that change places", cells.in_words
    return [
        Shuffle(Place(test.type, "random", "top1_ratio", axis, cells.cells, words, draw), cells)
        for draw in range(test.seeds)
    ]


def _lesion(test: LesionTest, asked: Asked) -> Making:
    yield lambda: _lesions(test, asked)


def _lesions(test: LesionTest, asked: Asked) -> list[Trial]:
    names = list(asked.subject.blocks)
    if not names:
        raise _AbsentError("blocks", "it is not known which modules of the model are its blocks")
    wanted = range(1, len(names) + 1) if test.blocks is None else test.blocks
    return [
        Lesion(
            Place(
                test.type,
                f"{percent} % of the numbers",
                "top1_ratio",
                "block or stage, from the image on",
                block,
                names[block - 1],
                draw,
            ),
            block,
            percent,
        )
        for percent in test.percents
        for block in wanted
        if block <= len(names)
        for draw in range(test.seeds)
    ]


def _token_correlation(test: TokenCorrelationTest, asked: Asked) -> Making:
    yield lambda: [_correlation(test, _cells(test.grid, asked))]


def _correlation(test: TokenCorrelationTest, cells: CellGrid) -> Correlation:
    strengths = tuple(
        (
            Place(
                test.type,
                f"random, {cells.in_words}",
                "correlation",
                DROPPED,
                percent,
                f"{percent} %",
                draw,
            ),
            percent,
        )
        for percent in test.percents
        for draw in range(test.seeds)
    )
    return Correlation(strengths, cells)


def _fgsm(test: FgsmTest, asked: Asked) -> Making:  # noqa: ARG001 - any model
    strengths = tuple(
        (Place(test.type, "one step", "top1_ratio", EPS, eps, f"{eps:g}/255"), eps)
        for eps in test.eps_per_255
    )
    yield lambda: [Fgsm(strengths)]


def _pgd(test: PgdTest, asked: Asked) -> Making:  # noqa: ARG001 - any model
    words = f"{test.steps} steps of {test.step_ratio:g} x the bound"
    yield lambda: [
        Pgd(Place(test.type, words, "top1_ratio", EPS, eps, f"{eps:g}/255", draw), eps, test)
        for eps in test.eps_per_255
        for draw in range(test.seeds)
    ]


def _image_patch(test: ImagePatchTest, asked: Asked) -> Making:
    yield lambda: [
        ImagePatch(*_patch_places(test, percent, draw), patch_side(asked.image_px, percent), test)
        for percent in test.side_percents
        for draw in range(test.seeds)
    ]


def _universal_patch(test: UniversalPatchTest, asked: Asked) -> Making:
    yield lambda: _universal_patches(test, asked)


def _universal_patches(test: UniversalPatchTest, asked: Asked) -> list[Trial]:
    if not asked.training_images:
        raise _AbsentError("patch", "one image alone cannot be both learned on and measured")
    return [
        UniversalPatch(
            *_patch_places(test, percent, draw),
            patch_side(asked.image_px, percent),
            asked.patches / learned_name(asked.number, percent, draw),
            asked.training_images,
        )
        for percent in test.side_percents
        for draw in range(test.seeds)
    ]


def _patch_places(
    test: ImagePatchTest | UniversalPatchTest, percent: int, draw: int
) -> tuple[Place, Place]:
    noise, attack = (
        Place(test.type, variant, "top1_ratio", SIDE, percent, f"{percent} %", draw)
        for variant in (NOISE, LEARNED)
    )
    return noise, attack


def _corruption(test: CorruptionTest, asked: Asked) -> Making:
    yield lambda: _corruptions(test, asked)


def _corruptions(test: CorruptionTest, asked: Asked) -> list[Trial]:
    if min(asked.image_px) < SMALLEST_SIDE_PX:
        raise _AbsentError(
            "all", f"published strengths are for images of at least {SMALLEST_SIDE_PX} px a side"
        )
    return [
        Corrupted(
            Place(test.type, name, "top1_ratio", "severity", severity, str(severity)),
            name,
            severity,
        )
        for name in test.names
        for severity in test.severities
    ]


def _cells(grid: Grid, asked: Asked, offset_px: int = 0) -> CellGrid:
    if grid == "own":
        grid = own_grid(asked.subject.model)
    try:
        return CellGrid(grid, asked.image_px, offset_px)
    except ValueError as error:
        raise _AbsentError(f"{grid[0]}x{grid[1]}", str(error)) from error


def own_grid(model: Backbone) -> tuple[int, int]:
    """Rows and columns of the tokens or cells that the model works with in the end."""
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            grid = model.forward_grid(torch.zeros(1, 3, *model.spec.image_px, device=device))
    except ValueError as error:
        raise _AbsentError("own grid", str(error)) from error
    return grid.shape[1], grid.shape[2]


_PLANNERS: dict[type, Callable[..., Making]] = {
    PatchDropTest: _patch_drop,
    PatchShuffleTest: _patch_shuffle,
    LesionTest: _lesion,
    TokenCorrelationTest: _token_correlation,
    FgsmTest: _fgsm,
    PgdTest: _pgd,
    ImagePatchTest: _image_patch,
    UniversalPatchTest: _universal_patch,
    CorruptionTest: _corruption,
}

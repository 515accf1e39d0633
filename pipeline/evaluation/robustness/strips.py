"""What one image looks like under every test that changes images.

Axes: H W pixels, C channels.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from pipeline.evaluation.robustness.drawing import StripRow
from pipeline.evaluation.robustness.trials import Place, Seen
from pipeline.evaluation.robustness.work import LoadedTests

Image = UInt8[np.ndarray, "H W C"]
_MOST_STRENGTHS = 6


def strips_of(tested: LoadedTests, seen: Seen) -> dict[str, list[StripRow]]:
    """Test -> a row for each variant, first draw alone; attacks are those on the first model.

    Args:
        tested: The models of one input size.
        seen: A batch of one image.
    """
    found: dict[str, dict[str, dict[float, tuple[str, Image]]]] = {}
    for trial in tested.plans[0].trials:
        if any(place.draw for place in trial.places):
            continue
        for place, pixels_BHWC in trial.shown(tested.subjects[0], seen):
            variants = found.setdefault(place.test, {})
            variants.setdefault(_variant(place), {})[place.x] = place.label, pixels_BHWC[0]
    whole = seen.pixels_BHWC[0]
    return {
        test: [_row(variant, whole, by_x) for variant, by_x in variants.items()]
        for test, variants in found.items()
    }


def _variant(place: Place) -> str:
    return "cells moved" if place.test == "patch_shuffle" else place.variant


def _row(variant: str, whole: Image, by_x: Mapping[float, tuple[str, Image]]) -> StripRow:
    """At most six strengths, evenly chosen."""
    strengths = sorted(by_x)
    picked = np.unique(np.linspace(0, len(strengths) - 1, _MOST_STRENGTHS).round().astype(int))
    chosen = [by_x[strengths[index]] for index in picked]
    return StripRow(
        title=variant,
        labels=("as it is", *(label for label, _ in chosen)),
        images=(whole, *(image for _, image in chosen)),
    )

"""All sections on one model; those that it does not give are named, with the reason.

Axes: M images that are shown, H W pixels, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8

from pipeline.evaluation.interpret.components import feature_maps_of, filters_of
from pipeline.evaluation.interpret.layers import layers_of
from pipeline.evaluation.interpret.looks import look
from pipeline.evaluation.interpret.neighbourhood import Embedded, neighbourhood_of
from pipeline.evaluation.interpret.positions import positions_of
from pipeline.evaluation.interpret.sample import (
    Made,
    Reader,
    attend,
    draw,
    in_turn,
    make,
    pixels_shown,
)
from pipeline.model.backbone import Backbone, normalise
from schemas.errors import SpecError
from schemas.interpret import (
    Absent,
    Image,
    InterpretReport,
    InterpretSpec,
    LayerSimilarity,
    Looks,
    Section,
)

LAST_ARRAY, HEADS_ARRAY, ROLLOUT_ARRAY = "looks_last", "looks_heads", "looks_rollout"


@dataclass(frozen=True)
class Findings:
    """The document, and what is too large for it."""

    report: InterpretReport
    arrays: dict[str, np.ndarray]
    """By the names that the document gives."""
    shown_MHWC: UInt8[np.ndarray, "M H W C"]
    """The images that are shown, as the model sees them."""


class _Drawn(Protocol):
    """A section with an array."""

    @property
    def array(self) -> str:
        """Its name."""
        ...


@dataclass
class _Gathered:
    """Sections as they are found."""

    sections: dict[str, object] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    absent: list[Absent] = field(default_factory=list)

    def plain(self, section: Section, find: Callable[[], object]) -> None:
        """A section without arrays."""
        try:
            self.sections[section] = find()
        except SpecError as error:
            self.absent.append(Absent(section=section, reason=error.what))

    def drawn(self, section: Section, find: Callable[[], tuple[_Drawn, np.ndarray]]) -> None:
        """A section with one array, whose name it says."""

        def kept() -> object:
            found, array = find()
            self.arrays[found.array] = array
            return found

        self.plain(section, kept)


def interpret(
    model: Backbone,
    reader: Reader,
    spec: InterpretSpec,
    *,
    seed: int,
    tell: Callable[[str], None],
) -> Findings:
    """Look at a model over images drawn from a split.

    Costs `sample_images` forward passes, and `attention_images` more with their attention; memory
    holds that of one layer over a few images, and the features of the sample.

    Raises:
        DataError: If the split is empty.
        PausedError: If a stop was asked for.
        StageFailedError: If the model's features are not finite.
    """
    split = reader.split
    rows_N = draw(split, spec.sample_images, seed=seed)
    tell(f"features of {len(rows_N)} images of {split.name}")
    made = make(model, reader, rows_N)
    places_M = in_turn(made.label_N, spec.shown_images)
    shown_MHWC = pixels_shown(reader, rows_N[places_M])
    pixels_MCHW = normalise(torch.from_numpy(shown_MHWC), model.spec)
    found = _Gathered()
    found.drawn("filters", lambda: filters_of(model))
    found.drawn("positions", lambda: positions_of(model))
    attention_rows = rows_N[: spec.attention_images]
    tell(f"attention over {len(attention_rows)} images")
    found.plain("attention", lambda: attend(model, reader, attention_rows))
    found.plain("looks", lambda: _looks(model, pixels_MCHW, found.arrays))
    found.drawn("feature_maps", lambda: feature_maps_of(model, pixels_MCHW))
    tell("map of the features")
    embedded = Embedded(made.features_ND, made.label_N, made.uids)
    found.drawn(
        "neighbourhood",
        lambda: neighbourhood_of(embedded, perplexity=spec.perplexity, seed=seed),
    )
    found.plain("layers", lambda: _layers(made))
    names = split.class_names
    report = InterpretReport(
        split=split.name,
        image_px=model.spec.image_px,
        class_names=tuple(names),
        shown=tuple(
            Image(uid=made.uids[it], label=names[made.label_N[it]]) for it in places_M.tolist()
        ),
        absent=tuple(found.absent),
        **found.sections,  # type: ignore[arg-type]  # each under its own name
    )
    return Findings(report, found.arrays, shown_MHWC)


def _looks(model: Backbone, pixels_MCHW: torch.Tensor, arrays: dict[str, np.ndarray]) -> Looks:
    found = [look(model, image_CHW[None]) for image_CHW in pixels_MCHW]
    arrays[LAST_ARRAY] = torch.cat([it.last_BRQ for it in found]).numpy()
    arrays[HEADS_ARRAY] = torch.cat([it.heads_BARQ for it in found]).numpy()
    arrays[ROLLOUT_ARRAY] = torch.cat([it.rollout_BRQ for it in found]).numpy()
    return Looks(reads=found[0].reads, last=LAST_ARRAY, heads=HEADS_ARRAY, rollout=ROLLOUT_ARRAY)


def _layers(made: Made) -> LayerSimilarity:
    if not made.layers:
        raise SpecError(made.why_no_layers)
    return layers_of(made.layers)

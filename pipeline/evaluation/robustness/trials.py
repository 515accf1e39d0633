"""What a test does with a batch: one class for each kind of change.

A trial is a value; `measure` gives a column of the table for each of its `places`. Columns of
answers hold classes, with -1 for images that are not measured; the others hold numbers.

Axes: B batch, H W pixels, C channels, N cells.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Integer, UInt8

from pipeline.evaluation.robustness.cells import (
    CellGrid,
    drop_cells,
    first_dropped,
    shuffle_cells,
)
from pipeline.evaluation.robustness.corruptions import corrupt
from pipeline.evaluation.robustness.draws import generator, orders
from pipeline.evaluation.robustness.lesions import lesion
from pipeline.evaluation.robustness.saliency import drop_by_mass
from pipeline.evaluation.robustness.subjects import Subject
from schemas.robustness import CorruptionName
from schemas.robustness_report import Measure

Pixels = UInt8[np.ndarray, "B H W C"]
Column = Integer[np.ndarray, " B"] | Float[np.ndarray, " B"]
NOT_MEASURED = -1


class Place(NamedTuple):
    """Where a column stands in the document: a draw of a point of a curve."""

    test: str
    variant: str
    measure: Measure
    axis: str
    x: float
    label: str
    draw: int = 0

    @property
    def column(self) -> str:
        """Its name in the table, without the model's."""
        return f"{self.test}/{self.variant}/{self.label}/{self.measure}/{self.draw}"


@dataclass(frozen=True, eq=False)
class Seen:
    """A batch of images, and what several trials make of it."""

    pixels_BHWC: Pixels
    label_B: Integer[np.ndarray, " B"]
    uid_B: UInt8[np.ndarray, "B 16"]
    position_B: Integer[np.ndarray, " B"]
    """Places among the images of the stage, from 0."""
    seed: int
    look: Callable[[Pixels, int | None], Float[np.ndarray, "B N"]] | None = None
    """The guide: attention of a head, or of all, for each patch."""
    _kept: dict[str, tuple[object, np.ndarray]] = field(default_factory=dict)

    @property
    def image_px(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels_BHWC.shape[1:3]
        return height, width

    def shares(self, head: int | None) -> Float[np.ndarray, "B N"]:
        """The guide's attention, looked up once for a batch."""
        assert self.look is not None  # noqa: S101 - planned only where there is a guide
        look = self.look
        return self._once("shares", head, lambda: look(self.pixels_BHWC, head))

    def altered(self, trial: "PixelTrial") -> Pixels:
        """The images as a trial changes them; models that see the same share the last ones."""
        return self._once("altered", trial, lambda: trial.alter(self))

    def _once(self, name: str, key: object, make: Callable[[], np.ndarray]) -> np.ndarray:
        if name not in self._kept or self._kept[name][0] != key:
            self._kept[name] = key, make()
        return self._kept[name][1]


class Trial(Protocol):
    """One kind of change at one or several strengths."""

    @property
    def places(self) -> tuple[Place, ...]:
        """One for each column."""
        ...

    @property
    def passes(self) -> float:
        """Forward passes for each image; a gradient counts three."""
        ...

    def measure(self, subject: Subject, seen: Seen) -> Sequence[Column]:
        """The columns for a batch."""
        ...

    def shown(self, subject: Subject, seen: Seen) -> Iterator[tuple[Place, Pixels]]:
        """The changed images as bytes, as far as it is images that change."""
        ...


@dataclass(frozen=True)
class PixelTrial:
    """The same changed images for every model of one input size."""

    place: Place

    @property
    def places(self) -> tuple[Place, ...]:
        """One."""
        return (self.place,)

    @property
    def passes(self) -> float:
        """One."""
        return 1.0

    @abstractmethod
    def alter(self, seen: Seen) -> Pixels:
        """The images of a batch, changed."""

    def measure(self, subject: Subject, seen: Seen) -> Sequence[Column]:
        """Answers."""
        return [subject.answers(seen.altered(self))]

    def shown(self, subject: Subject, seen: Seen) -> Iterator[tuple[Place, Pixels]]:  # noqa: ARG002
        """The changed images."""
        yield self.place, self.alter(seen)


@dataclass(frozen=True)
class RandomDrop(PixelTrial):
    """The first cells of a random order are black."""

    grid: CellGrid
    percent: int

    def alter(self, seen: Seen) -> Pixels:
        """The images with holes; the holes of a draw grow with `percent`."""
        return _with_random_holes(seen, self.grid, self.percent, self.place.draw)


@dataclass(frozen=True)
class SalientDrop(PixelTrial):
    """Patches that hold much or little of the guide's attention are black."""

    grid: CellGrid
    percent: int
    salient: bool
    head: int | None

    def alter(self, seen: Seen) -> Pixels:
        """The images with holes."""
        return drop_cells(seen.pixels_BHWC, self.dropped(seen), self.grid)

    def dropped(self, seen: Seen) -> np.ndarray:
        """Which patches go, [B, N]."""
        return drop_by_mass(seen.shares(self.head), self.percent, salient=self.salient)


@dataclass(frozen=True)
class DroppedShare:
    """How many of the patches a salient or non-salient drop takes; no model is asked."""

    place: Place
    drop: SalientDrop
    passes: float = 0.0

    @property
    def places(self) -> tuple[Place, ...]:
        """One."""
        return (self.place,)

    def measure(self, subject: Subject, seen: Seen) -> Sequence[Column]:  # noqa: ARG002
        """Shares from 0 to 1."""
        return [self.drop.dropped(seen).mean(axis=1)]

    def shown(self, subject: Subject, seen: Seen) -> Iterator[tuple[Place, Pixels]]:  # noqa: ARG002
        """Nothing."""
        return iter(())


@dataclass(frozen=True)
class Shuffle(PixelTrial):
    """Cells change places at random."""

    grid: CellGrid

    def alter(self, seen: Seen) -> Pixels:
        """The images with their cells elsewhere."""
        purpose = f"patch_shuffle/{self.grid.in_words}/{self.place.draw}"
        order_BN = orders(purpose, seen.seed, seen.uid_B, self.grid.cells)
        return shuffle_cells(seen.pixels_BHWC, order_BN, self.grid)


@dataclass(frozen=True)
class Corrupted(PixelTrial):
    """A common corruption."""

    name: CorruptionName
    severity: int

    def alter(self, seen: Seen) -> Pixels:
        """The corrupted images."""
        purpose = f"corruption/{self.name}/{self.severity}"
        images = [
            corrupt(pixels, self.name, self.severity, generator(purpose, seen.seed, uid.tobytes()))
            for pixels, uid in zip(seen.pixels_BHWC, seen.uid_B, strict=True)
        ]
        return np.stack(images)


@dataclass(frozen=True)
class Lesion:
    """A part of what one block is given is zero."""

    place: Place
    block: int
    percent: int
    passes: float = 1.0

    @property
    def places(self) -> tuple[Place, ...]:
        """One."""
        return (self.place,)

    def measure(self, subject: Subject, seen: Seen) -> Sequence[Column]:
        """Answers."""
        name, module = [*subject.blocks.items()][self.block - 1]
        purpose = f"lesion/{name}/{self.place.draw}"
        cut = lesion(module, self.percent, purpose=purpose, seed=seen.seed, uid_B=seen.uid_B)
        with cut:
            return [subject.answers(seen.pixels_BHWC)]

    def shown(self, subject: Subject, seen: Seen) -> Iterator[tuple[Place, Pixels]]:  # noqa: ARG002
        """Nothing: the images are whole."""
        return iter(())


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation of an image's features with those of the image with holes."""

    strengths: tuple[tuple[Place, int], ...]
    """With the percentage of cells that go."""
    grid: CellGrid

    @property
    def places(self) -> tuple[Place, ...]:
        """One for each percentage and draw."""
        return tuple(place for place, _ in self.strengths)

    @property
    def passes(self) -> float:
        """One more than places: the whole image."""
        return 1.0 + len(self.strengths)

    def measure(self, subject: Subject, seen: Seen) -> Sequence[Column]:
        """Correlations from -1 to 1; 0 where all features are alike."""
        whole_BD = _standardised(subject.features(seen.pixels_BHWC))
        found = []
        for place, percent in self.strengths:
            pixels_BHWC = _with_random_holes(seen, self.grid, percent, place.draw)
            part_BD = _standardised(subject.features(pixels_BHWC))
            found.append((whole_BD * part_BD).mean(axis=1))
        return found

    def shown(self, subject: Subject, seen: Seen) -> Iterator[tuple[Place, Pixels]]:  # noqa: ARG002
        """Nothing: the holes are those of a patch drop."""
        return iter(())


def _with_random_holes(seen: Seen, grid: CellGrid, percent: int, draw: int) -> Pixels:
    purpose = f"patch_drop/{grid.in_words}/{grid.offset_px}/{draw}"
    order_BN = orders(purpose, seen.seed, seen.uid_B, grid.cells)
    return drop_cells(seen.pixels_BHWC, first_dropped(order_BN, percent), grid)


def _standardised(features_BD: Float[np.ndarray, "B D"]) -> Float[np.ndarray, "B D"]:
    """Zero mean and unit spread of each image's features."""
    centred_BD = features_BD - features_BD.mean(axis=1, keepdims=True)
    spread_B1 = centred_BD.std(axis=1, keepdims=True)
    unit_BD: np.ndarray = np.zeros_like(centred_BD)
    np.divide(centred_BD, spread_B1, out=unit_BD, where=spread_B1 > 0)
    return unit_BD

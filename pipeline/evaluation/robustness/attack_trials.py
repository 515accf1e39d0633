"""Trials that follow a model's gradient: within a bound, and with patches.

Axes: B batch, H W pixels, C channels, S side of a patch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.evaluation.robustness import attacks
from pipeline.evaluation.robustness.attacks import Gradient, Values
from pipeline.evaluation.robustness.subjects import Subject
from pipeline.evaluation.robustness.trials import NOT_MEASURED, Column, Pixels, Place, Seen
from schemas.robustness import ImagePatchTest, PgdTest

GRADIENT_PASSES = 3.0
"""A backward pass costs about two forward ones."""


class _Attack:
    """Trials whose places have a set of changed images each."""

    def changed(self, subject: Subject, seen: Seen) -> Iterator[tuple[Place, Values]]:
        """Changed values for each place, in order."""
        raise NotImplementedError

    def measure(self, subject: Subject, seen: Seen) -> Sequence[Column]:
        """Answers."""
        return [subject.answers(values) for _, values in self.changed(subject, seen)]

    def shown(self, subject: Subject, seen: Seen) -> Iterator[tuple[Place, Pixels]]:
        """The changed images, rounded to bytes."""
        for place, values_BHWC in self.changed(subject, seen):
            yield place, values_BHWC.round().to(torch.uint8).cpu().numpy()


@dataclass(frozen=True)
class Fgsm(_Attack):
    """The same gradient at several bounds."""

    strengths: tuple[tuple[Place, float], ...]
    """With the bound, from 0 to 255."""

    @property
    def places(self) -> tuple[Place, ...]:
        """One for each bound."""
        return tuple(place for place, _ in self.strengths)

    @property
    def passes(self) -> float:
        """A gradient, and an answer for each bound."""
        return GRADIENT_PASSES + len(self.strengths)

    def changed(self, subject: Subject, seen: Seen) -> Iterator[tuple[Place, Values]]:
        """Images at each bound."""
        values_BHWC = subject.values(seen.pixels_BHWC)
        gradient_BHWC = subject.gradient(values_BHWC, seen.label_B)
        for place, eps in self.strengths:
            yield place, attacks.fgsm(values_BHWC, gradient_BHWC, eps)


@dataclass(frozen=True)
class Pgd(_Attack):
    """Projected steps at one bound, from one random start."""

    place: Place
    eps: float
    spec: PgdTest

    @property
    def places(self) -> tuple[Place, ...]:
        """One."""
        return (self.place,)

    @property
    def passes(self) -> float:
        """A gradient for each step, and an answer."""
        return GRADIENT_PASSES * self.spec.steps + 1

    def changed(self, subject: Subject, seen: Seen) -> Iterator[tuple[Place, Values]]:
        """Images within the bound."""
        values_BHWC = subject.values(seen.pixels_BHWC)
        start = attacks.random_start(
            f"pgd/{self.place.draw}", seen.seed, seen.uid_B, seen.pixels_BHWC.shape[1:]
        )
        moved_BHWC = attacks.pgd(
            values_BHWC,
            _gradient(subject, seen),
            start_BHWC=torch.from_numpy(start).to(subject.device),
            eps=self.eps,
            steps=self.spec.steps,
            step=self.spec.step_ratio * self.eps,
        )
        yield self.place, moved_BHWC


@dataclass(frozen=True)
class ImagePatch(_Attack):
    """A patch for each image: first noise, then what the gradient makes of it."""

    noise: Place
    attack: Place
    side: int
    """Pixels."""
    spec: ImagePatchTest

    @property
    def places(self) -> tuple[Place, ...]:
        """The noise, and the attack."""
        return self.noise, self.attack

    @property
    def passes(self) -> float:
        """A gradient for each step, and two answers."""
        return GRADIENT_PASSES * self.spec.steps + 2

    def changed(self, subject: Subject, seen: Seen) -> Iterator[tuple[Place, Values]]:
        """Images with noise, and images with the patch made of it, at the same place."""
        values_BHWC = subject.values(seen.pixels_BHWC)
        corner_B2 = _corners(self.attack, seen, self.side)
        channels = seen.pixels_BHWC.shape[3]
        start = attacks.random_start(
            f"image_patch/noise/{self.side}/{self.attack.draw}",
            seen.seed,
            seen.uid_B,
            (self.side, self.side, channels),
        )
        patches_BSSC = attacks.noise_patch(start).to(subject.device)
        yield self.noise, attacks.paste(values_BHWC, patches_BSSC, corner_B2)
        attacked_BHWC = attacks.patch_attack(
            values_BHWC,
            _gradient(subject, seen),
            patches_BSSC=patches_BSSC,
            corner_B2=corner_B2,
            steps=self.spec.steps,
            step=self.spec.step_per_255,
        )
        yield self.attack, attacked_BHWC


@dataclass(frozen=True)
class UniversalPatch(_Attack):
    """One learned patch, and the noise that it was learned from, on images that it has not seen."""

    noise: Place
    attack: Place
    side: int
    learned: Path
    """File of both patches, noise first, [2, S, S, C]."""
    training_images: int
    """The first so many are not measured."""
    passes: float = 2.0

    @property
    def places(self) -> tuple[Place, ...]:
        """The noise, and the attack."""
        return self.noise, self.attack

    def measure(self, subject: Subject, seen: Seen) -> Sequence[Column]:
        """Answers; `NOT_MEASURED` where the patch was learned on the image."""
        learned_on = seen.position_B < self.training_images
        return [
            np.where(learned_on, np.int32(NOT_MEASURED), answers)
            for answers in super().measure(subject, seen)
        ]

    def changed(self, subject: Subject, seen: Seen) -> Iterator[tuple[Place, Values]]:
        """Images with each patch at a random place, the same for both."""
        values_BHWC = subject.values(seen.pixels_BHWC)
        corner_B2 = _corners(self.attack, seen, self.side)
        patches_2SSC = torch.from_numpy(np.load(self.learned)).to(subject.device)
        for place, patch_SSC in zip(self.places, patches_2SSC, strict=True):
            repeated = patch_SSC.expand(len(values_BHWC), -1, -1, -1)
            yield place, attacks.paste(values_BHWC, repeated, corner_B2)


def _corners(place: Place, seen: Seen, side: int) -> np.ndarray:
    purpose = f"{place.test}/place/{side}/{place.draw}"
    return attacks.corners(purpose, seen.seed, seen.uid_B, image_px=seen.image_px, side=side)


def _gradient(subject: Subject, seen: Seen) -> Gradient:
    return lambda values_BHWC: subject.gradient(values_BHWC, seen.label_B)

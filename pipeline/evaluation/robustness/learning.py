"""Learns universal adversarial patches: one for all images, at any place (Brown et al. 2017).

Untargeted, and moved but neither turned nor scaled, unlike theirs: the loss of the true classes
rises along the sign of the mean gradient.

Axes: B batch, S side of the patch, C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.data.feed.loader import Batch, eval_batches
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import committing
from pipeline.evaluation.passes import torch_threads
from pipeline.evaluation.robustness import attacks
from pipeline.evaluation.robustness.subjects import Subject, subject_of
from pipeline.model.saved import load_model
from schemas.model import CHANNELS
from schemas.robustness import LARGEST_VALUE, UniversalPatchTest


@dataclass(frozen=True)
class PatchLesson:
    """One patch to be learned; small and picklable."""

    dataset: Path
    split: str
    model: Path
    """Folder of the saved model."""
    test: UniversalPatchTest
    side: int
    """Pixels."""
    training_images: int
    """The first so many of the split."""
    seed: int
    draw: int
    threads: int
    gpu: bool
    file: Path


def learn_patch(lesson: PatchLesson) -> Path:
    """Learn a patch and commit it beside the noise that it began with: [2, S, S, C], 0 to 255.

    Images come in storage order, over and over, in batches of the test's own size. Memory is that
    of the few batches that the loader keeps ready.
    """
    with torch_threads(lesson.threads):
        model, _ = load_model(lesson.model)
        subject = subject_of("model", model.to("cuda" if lesson.gpu else "cpu"))
        start = attacks.random_start(
            f"universal_patch/noise/{lesson.side}/{lesson.draw}",
            lesson.seed,
            np.zeros((1, 16), np.uint8),
            (lesson.side, lesson.side, CHANNELS),
        )
        noise_SSC = attacks.noise_patch(start)[0].to(subject.device)
        patch_SSC, step = noise_SSC, 0
        while step < lesson.test.steps:
            for batch in _batches(lesson, subject):
                if step == lesson.test.steps:
                    break
                patch_SSC = _improved(patch_SSC, batch, subject, lesson=lesson, step=step)
                step += 1
    both = torch.stack([noise_SSC, patch_SSC]).cpu().numpy()
    with committing(lesson.file) as temporary, temporary.open("wb") as sink:
        np.save(sink, both)
    return lesson.file


def _batches(lesson: PatchLesson, subject: Subject) -> Iterator[Batch]:
    split = ShardSet.open(lesson.dataset).split(lesson.split)
    first = split.subset(np.arange(lesson.training_images))
    return eval_batches(
        first,
        image_px=subject.model.spec.image_px,
        batch_samples=lesson.test.training_batch,
        threads=lesson.threads,
    )


def _improved(
    patch_SSC: torch.Tensor, batch: Batch, subject: Subject, *, lesson: PatchLesson, step: int
) -> torch.Tensor:
    """One step of the patch; it lies elsewhere in each image and at each step."""
    corner_B2 = attacks.corners(
        f"universal_patch/learning/{lesson.side}/{lesson.draw}/{step}",
        lesson.seed,
        batch.uid_B,
        image_px=subject.model.spec.image_px,
        side=lesson.side,
    )
    repeated = patch_SSC.expand(len(batch), -1, -1, -1)
    pasted = attacks.paste(subject.values(batch.pixels_BHWC), repeated, corner_B2)
    gradient_BHWC = subject.gradient(pasted, batch.label_B)
    rise_SSC = attacks.cut_out(gradient_BHWC, corner_B2, lesson.side).mean(dim=0).sign()
    return (patch_SSC + lesson.test.step_per_255 * rise_SSC).clamp(0.0, LARGEST_VALUE)

"""Measures a model while it trains, on the whole of a split, exactly on any world size.

What is measured is what the run would save: a copy of the model takes over `Engine.weights`, so
averaged weights and every ZeRO stage go the same way. It costs one more model in fp32 on the device
of each worker.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.data.feed.loader import eval_batches
from pipeline.data.shards.shard_set import AnySplit
from pipeline.model.backbone import buffers
from pipeline.training.engine import Engine, EngineSpec
from pipeline.training.objectives.common import LabelledBatch, Objective, Setting
from pipeline.training.objectives.supervised import Supervised
from pipeline.training.precision import autocast
from schemas.checkpoint import RunProgress, Standing
from schemas.errors import DataError, StageFailedError
from schemas.validation import ValidationSpec


class Measure(Protocol):
    """What is measured of each batch."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the metrics, all means over the images."""
        ...

    def sums(self, model: nn.Module, batch: LabelledBatch) -> list[Tensor]:
        """The sum of each metric over the samples of a batch."""
        ...


@dataclass(frozen=True)
class Answers:
    """The loss on the labels, and how many of the answers are right."""

    setting: Setting
    labels: Supervised
    names: tuple[str, ...] = ("loss", "top1_ratio")

    def sums(self, model: nn.Module, batch: LabelledBatch) -> list[Tensor]:
        """See `Measure`."""
        logits_BK = model(self.setting.pixels(batch))
        right_B = logits_BK.argmax(dim=1) == self.setting.tensor(batch.label_B)
        return [self.labels.losses(logits_BK, batch).sum(), right_B.sum()]


@dataclass(frozen=True)
class OwnLoss:
    """The loss of an objective that has no answers."""

    objective: Objective
    names: tuple[str, ...] = ("loss",)

    def sums(self, model: nn.Module, batch: LabelledBatch) -> list[Tensor]:
        """See `Measure`."""
        return [self.objective(model, batch) * len(batch.label_B)]


@dataclass(frozen=True)
class Validator:
    """Measures as `ValidationSpec` says.

    Raises:
        DataError: If the split is empty.
    """

    spec: ValidationSpec
    split: AnySplit
    """Images that nothing is learned from."""
    _: KW_ONLY
    measure: Measure
    model: nn.Module
    """Like the one that is trained, on the engine's device; its own weights do not matter."""
    engine: EngineSpec
    image_px: tuple[int, int]
    """Height and width of the model's input."""
    samples: int
    """In one forward."""
    threads: int
    """That decode."""

    def __post_init__(self) -> None:
        if self.split.num_rows == 0:
            raise DataError(f"split {self.split.name!r} has no images to validate on")
        self.model.eval()

    def is_due(self, step: int) -> bool:
        """Whether to measure after `step` steps, apart from the last."""
        return step % self.spec.every_steps == 0

    def run(self, engine: Engine) -> dict[str, float]:
        """Means over all images of the split, by the name of the metric; all ranks call it.

        Raises:
            StageFailedError: If one is not finite.
        """
        self._take_over(engine)
        sums = torch.zeros(len(self.measure.names), dtype=torch.float64)
        batches = eval_batches(
            self.split,
            image_px=self.image_px,
            batch_samples=self.samples,
            threads=self.threads,
            rank=engine.rank,
            world_size=engine.world_size,
        )
        with torch.inference_mode(), autocast(self.engine.precision, self.engine.device):
            for batch in batches:
                sums += torch.stack(
                    [it.double().cpu() for it in self.measure.sums(self.model, batch)]
                )
        totals = engine.summed(sums.tolist())
        if not all(map(math.isfinite, totals)):
            raise StageFailedError(
                "the model answers the validation images with numbers that are not finite",
                hint="lower optim.peak_lr, lengthen optim.warmup_steps or set optim.clip_norm",
            )
        means = [total / self.split.num_rows for total in totals]
        return dict(zip(self.measure.names, means, strict=True))

    def judged(self, progress: RunProgress, figures: dict[str, float]) -> RunProgress:
        """The progress with this validation counted in."""
        value, standing = figures[self.spec.metric], progress.standing
        best = standing.best_value
        larger_wins = self.spec.metric == "top1_ratio"
        if best is None or (value > best if larger_wins else value < best):
            judged = Standing(best_step=progress.step, best_value=value)
        else:
            judged = standing.revise(no_better=standing.no_better + 1)
        return progress.revise(standing=judged)

    def gives_up(self, standing: Standing) -> bool:
        """Whether training ends early."""
        return self.spec.patience is not None and standing.no_better >= self.spec.patience

    @torch.no_grad()
    def _take_over(self, engine: Engine) -> None:
        """Give the copy the weights that would be saved now."""
        own = dict(self.model.named_parameters())
        for name, weight in engine.weights():
            own[name].copy_(weight)
        kept = engine.buffers()
        for name, buffer in buffers(self.model).items():
            buffer.copy_(kept[name])

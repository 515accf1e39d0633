"""A tiny model, fixed random images, and a loader over them with the real one's interface."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from pipeline.data.feed.course import Places
from pipeline.data.feed.mixing import Mix
from pipeline.model import build
from pipeline.model.backbone import Backbone
from pipeline.model.mae import MaskedAutoencoder, build_mae
from pipeline.training.engine import EngineSpec, TorchEngine
from pipeline.training.keeper import CheckpointKeeper, RunIdentity
from pipeline.training.objectives.common import Objective, Setting
from pipeline.training.objectives.masked import Autoencoding
from pipeline.training.objectives.supervised import Supervised
from schemas.backbones import BackboneSpec, ResNetSpec
from schemas.checkpoint import RunProgress
from schemas.model import ViTSpec
from schemas.objectives import MaeSpec, SupervisedSpec
from schemas.optim import OptimSpec
from schemas.resources import CheckpointSpec

TINY = ViTSpec(
    width=24,
    depth=2,
    num_heads=3,
    mlp_dim=40,
    patch_px=4,
    image_px=(8, 8),
    num_classes=5,  # odd sizes: the ranks of ZeRO-3 cannot share them out evenly
)
NOISY = TINY.revise(drop_path=0.4, patch_dropout=0.25)
"""Chances that are equal in any world."""
DROPOUT = NOISY.revise(dropout=0.2)
"""And one that is equal in the same world."""
RESNET = ResNetSpec(blocks=(1, 1), width=32, image_px=(32, 32), num_classes=5)
OPTIM = OptimSpec(peak_lr=3e-3, warmup_steps=3, weight_decay=0.1, clip_norm=1.0)
AVERAGED = OPTIM.revise(ema_decay=0.9)
LAYERED = AVERAGED.revise(layer_decay=0.7)
DEEP = TINY.revise(depth=12)
KEY = "a" * 64
CPU = torch.device("cpu")
SEED = 11


@dataclass(frozen=True)
class FakeBatch:
    pixels_BHWC: np.ndarray  # noqa: N815 - arrays carry their axes in their names
    label_B: np.ndarray  # noqa: N815
    places: Places
    mix: Mix | None = None

    @property
    def weight_B(self) -> np.ndarray | None:  # noqa: N802
        return self.places.weight


class FakeLoader:
    """Batches drawn from `samples` fixed images; batch k is a function of k and the seed alone."""

    def __init__(
        self,
        spec: BackboneSpec = TINY,
        *,
        samples: int = 64,
        global_samples: int = 16,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(3 + seed)
        height, width = spec.image_px
        self.pixels = rng.integers(0, 256, (samples, height, width, 3), dtype=np.uint8)
        self.labels = rng.integers(0, spec.num_classes, samples).astype(np.int64)
        self.global_samples = global_samples
        self.share = global_samples // world_size
        self.rank = rank
        self.micro_batch = micro_batch or self.share

    def batches(self, start_step: int) -> Iterator[tuple[FakeBatch, ...]]:
        step = start_step
        while True:
            rng = np.random.default_rng([5, step])
            rows = rng.permutation(len(self.labels))[: self.global_samples]
            own = rows[self.rank * self.share : (self.rank + 1) * self.share]
            yield tuple(
                self.rows(own[i : i + self.micro_batch], epoch=step)
                for i in range(0, self.share, self.micro_batch)
            )
            step += 1

    def figures(self) -> dict[str, float]:
        return {"loader/replaced_count": 0.0}

    def rows(self, rows: np.ndarray, *, epoch: int = 0) -> FakeBatch:
        where = Places(np.zeros_like(rows), np.full_like(rows, epoch), rows)
        return FakeBatch(self.pixels[rows], self.labels[rows], where)


def engine_spec(
    spec: BackboneSpec = TINY, optim: OptimSpec = OPTIM, precision: str = "fp32"
) -> EngineSpec:
    supervised = Supervised(setting(spec), SupervisedSpec(), 0.0)
    return EngineSpec(optim, supervised, precision, CPU, SEED)


@dataclass(frozen=True)
class Spoiled:
    """An objective that the last sample of the global batch spoils at some steps.

    At one of `BAD_GRADIENTS` the loss is finite and its gradients are not; at one of `BAD_LOSSES`
    it is the other way round.
    """

    BAD_GRADIENTS: ClassVar = (3, 4)
    BAD_LOSSES: ClassVar = (9,)

    objective: Objective
    gradients: tuple[int, ...] = BAD_GRADIENTS
    losses: tuple[int, ...] = BAD_LOSSES

    def __call__(self, model: torch.nn.Module, batch: FakeBatch) -> torch.Tensor:
        loss = self.objective(model, batch)
        step = int(batch.places.epoch[0])
        if next(FakeLoader().batches(step))[0].places.position[-1] not in batch.places.position:
            return loss
        if step in self.gradients:
            return loss + (0 * loss).sqrt()
        return loss + torch.inf if step in self.losses else loss


def setting(spec: BackboneSpec = TINY) -> Setting:
    return Setting(spec, SEED, CPU)


def mae_engine_parts() -> tuple[MaskedAutoencoder, EngineSpec]:
    """A masked autoencoder with skipped branches, and its objective."""
    spec = TINY.revise(num_classes=0, drop_path=0.4)
    mae = MaeSpec(decoder_width=12, decoder_depth=1, decoder_heads=3)
    objective = Autoencoding(setting(spec), mae)
    model = build_mae(spec, mae.decoder(spec), seed=1)
    return model, EngineSpec(OPTIM, objective, "fp32", CPU, SEED)


def torch_engine(spec: BackboneSpec = TINY, optim: OptimSpec = OPTIM) -> TorchEngine:
    return TorchEngine(model(spec), engine_spec(spec, optim))


def model(spec: BackboneSpec = TINY, *, seed: int = 0) -> Backbone:
    """With a head that is not zero, so that gradients reach everything from the first step."""
    made = build(spec, seed=1 + seed)
    torch.nn.init.normal_(made.head.weight, std=0.5, generator=torch.Generator().manual_seed(2))
    return made


def identity() -> RunIdentity:
    return RunIdentity(
        key=KEY, data_digest="d", global_samples=16, model=TINY, versions={"torch": "x"}
    )


def keeper(
    root: Path,
    *,
    every_steps: int = 5,
    said: list[str] | None = None,
    needed: Callable[[RunProgress], set[int]] = lambda _progress: set(),
    **keeping: int,
) -> CheckpointKeeper:
    return CheckpointKeeper(
        root,
        identity=identity(),
        when=CheckpointSpec(every_steps=every_steps, **keeping),
        probe=FakeLoader().rows(np.arange(8)),
        say=(said if said is not None else []).append,
        needed=needed,
    )


class Recorded:
    """A metric log in memory."""

    def __init__(self) -> None:
        self.points: dict[str, dict[int, float]] = {}

    def log(self, points: dict[str, float], *, step: int) -> None:
        for key, value in points.items():
            self.points.setdefault(key, {})[step] = value


class StopAfter:
    """A stop signal that answers yes from the n-th question on."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def requested(self) -> bool:
        self.left -= 1
        return self.left <= 0

"""One measurement of `benchmarks.gpu` in a process of its own, so that memory is its own too."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import distributed as dist

from benchmarks.our_loop import OPTIM, run_loop, supervised_spec
from benchmarks.turns import held_batch
from jobs.train_watch import gauge_of
from jobs.train_worker import prepare_torch
from pipeline.cost import trained_parameters, training_memory
from pipeline.data.feed.batches import Batch
from pipeline.data.feed.loader import TrainLoader
from pipeline.data.shards.shard_set import ShardSet
from pipeline.model import build
from pipeline.model.building import compile_blocks
from pipeline.training.engine import Engine, TorchEngine
from schemas.model import ModelSpec, ViTSpec
from schemas.samples import AugmentSpec, BatchSpec
from schemas.training import PretrainSpec

_CLASSES = 1000


@dataclass(frozen=True)
class Case:
    """What is measured."""

    variant: str
    image_px: int
    samples: int
    steps: int
    """Measured; as many come before, which compile and warm up."""
    zero_stage: int | None
    """None is plain torch."""
    shards: str | None
    """Folder of a shard set, or None: one batch again and again."""
    on_gpu: bool
    """In bf16 and compiled; on a CPU in fp32 and as it is."""
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What came out."""

    images_per_second: float
    mfu_ratio: float | None
    peak_bytes: int | None
    """Allocated on the GPU at most."""
    estimated_bytes: float
    """What `estimate` says of it."""
    parameters: int


@dataclass
class _Timed:
    """Batches of a run whose second half is timed."""

    stream: Iterator[tuple[Batch, ...]]
    steps: int
    seconds: float = field(default=0.0, init=False)

    def batches(self, start_step: int) -> Iterator[tuple[Batch, ...]]:
        assert not start_step, "nothing goes on here"
        for _ in range(self.steps):
            yield next(self.stream)
        began = time.perf_counter()
        for _ in range(self.steps):
            yield next(self.stream)
        self.seconds = time.perf_counter() - began
        yield next(self.stream)

    def figures(self) -> dict[str, float]:
        return {}


def main() -> int:
    """Measure the case on the command line; the last line on stdout is its outcome."""
    case = Case(**json.loads(sys.argv[1]))
    prepare_torch(threads=len(os.sched_getaffinity(0)))
    # What is measured is speed: algorithms that always give the same bits are another question.
    torch.use_deterministic_algorithms(mode=False)
    print(json.dumps(asdict(_measure(case))), flush=True)
    return 0


def _measure(case: Case) -> Outcome:
    spec, model = _stage(case), _model(case)
    with tempfile.TemporaryDirectory() as folder:
        engine = _engine(case, Path(folder))
        timed = _Timed(_stream(case), case.steps)
        run_loop(engine, timed, 2 * case.steps + 1)
        if dist.is_initialized():
            dist.destroy_process_group()
    rate = case.steps * case.samples / timed.seconds
    gauge = gauge_of(spec, model)
    mfu = None
    if gauge.flops_per_image is not None and gauge.peak_flops is not None:
        mfu = rate * gauge.flops_per_image / gauge.peak_flops
    memory = training_memory(
        model, spec, zero_stage=case.zero_stage or 0, world=1, micro_batch=case.samples
    )
    return Outcome(
        images_per_second=rate,
        mfu_ratio=mfu,
        peak_bytes=torch.cuda.max_memory_allocated() if case.on_gpu else None,
        estimated_bytes=memory.peak,
        parameters=trained_parameters(model, spec.objective),
    )


def _stage(case: Case) -> PretrainSpec:
    """The stage that would train so."""
    return PretrainSpec.parse(
        {
            "data": "corpus",
            "model": {"variant": case.variant, "patch_px": 16, "image_px": case.image_px},
            "optim": OPTIM.dump(),
            "batch": {"global_samples": case.samples},
            "duration": {"steps": 2 * case.steps + 1},
            "precision": "bf16" if case.on_gpu else "fp32",
            "resources": {"gpus_per_worker": 1 if case.on_gpu else 0},
        }
    )


def _model(case: Case) -> ViTSpec:
    model = {"variant": case.variant, "patch_px": 16, "image_px": case.image_px}
    return ModelSpec.parse(model).to_vit(num_classes=_CLASSES)


def _engine(case: Case, folder: Path) -> Engine:
    vit = _model(case)
    model = build(vit, seed=case.seed)
    if case.on_gpu:
        compile_blocks(model)
    spec = supervised_spec(vit, seed=case.seed, device="cuda" if case.on_gpu else "cpu")
    if case.zero_stage is None:
        return TorchEngine(model, spec)
    os.environ |= {"LOCAL_RANK": "0"} | ({} if case.on_gpu else {"DS_ACCELERATOR": "cpu"})
    backend = "nccl" if case.on_gpu else "gloo"
    dist.init_process_group(backend, f"file://{folder / 'meet'}", rank=0, world_size=1)
    from pipeline.training.zero import DeepSpeedEngine, ZeroSpec

    zero = ZeroSpec(stage=case.zero_stage, micro_batch=case.samples, accumulation=1)
    return DeepSpeedEngine(model, spec, zero)


def _stream(case: Case) -> Iterator[tuple[Batch, ...]]:
    size = (case.image_px, case.image_px)
    if case.shards is None:
        held = held_batch(size, samples=case.samples, classes=_CLASSES, seed=case.seed)
        while True:
            yield (held,)
    loader = TrainLoader(
        ShardSet.open(Path(case.shards)).split("train"),
        augment=AugmentSpec(crop="inception", flip=True),
        image_px=size,
        batch=BatchSpec(global_samples=case.samples),
        seed=case.seed,
        rank=0,
        world_size=1,
        micro_batch=case.samples,
        threads=max(1, len(os.sched_getaffinity(0)) - 1),
    )
    with loader:
        yield from loader.batches(0)


if __name__ == "__main__":
    sys.exit(main())

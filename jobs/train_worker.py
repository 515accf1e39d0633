"""What every training process runs: build the engine, run the one loop, write the model."""

import gc
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic

from jobs.device_memory import lowest_of_all, worker_bytes
from jobs.stage_task import append_line, log_path
from jobs.train_plan import (
    TrainData,
    TrainPlan,
    fast_model,
    objective_of,
    open_data,
    trained_model,
)
from jobs.train_watch import gauge_of, watch_of
from pipeline.cost import Layout, lay_out
from pipeline.data.feed.loader import Batch, TrainLoader, probe_batch
from pipeline.data.shards.shard_set import ShardSet
from pipeline.evaluation.classify import check_same_classes
from pipeline.model.adapters import save_adapter, without_lora
from pipeline.model.masked import encoder_weights
from pipeline.model.saved import save_model
from pipeline.training.checkpoint import read_model
from pipeline.training.engine import Engine, EngineSpec, TorchEngine
from pipeline.training.guard import RollBackError, needed_again
from pipeline.training.keeper import CheckpointKeeper, RunIdentity
from pipeline.training.loop import train
from pipeline.training.objectives.common import Setting
from pipeline.training.objectives.supervised import Supervised
from pipeline.training.schedule import total_steps
from pipeline.training.validation import Answers, Measure, OwnLoss, Validator
from schemas.artifacts import STATE_FOLDER
from schemas.checkpoint import MODEL_FOLDER, RunProgress, SavedModel
from schemas.manifest import DATASET_FOLDER
from schemas.objectives import SupervisedSpec
from schemas.runs import StageRequest
from schemas.training import FinetuneSpec, PretrainSpec
from schemas.tuning import ADAPTER_FOLDER

CHECKPOINTS = "checkpoints"
PROBE_SAMPLES = 4
VALIDATION_SAMPLES = 64
"""In one forward of a validation: the same in any world, so that its figures are."""


def run_in_gang(config: dict[str, Any]) -> dict[str, Any]:
    """One process of the training world, inside its torch process group."""
    with _hidden("mlflow"):  # DeepSpeed's tuner would load it: seconds and memory in every worker
        from pipeline.training.zero import DeepSpeedEngine, ZeroSpec

    plan: TrainPlan = config["plan"]
    prepare_torch(plan.spec.resources.threads)
    local = torch.cuda.current_device() if plan.spec.resources.gpus_per_worker else None
    device = torch.device("cpu" if local is None else f"cuda:{local}")
    layout = choose_layout(plan, worker_bytes(plan.spec.resources, device))
    plan = laid_out(plan, layout)
    zero = ZeroSpec(
        layout.zero_stage,
        layout.micro_batch,
        layout.accumulation,
        offload=plan.spec.resources.offload_optimizer,
    )
    setup = engine_spec(plan, device)
    return run_plan(plan, setup, lambda: DeepSpeedEngine(fast_model(plan), setup, zero))


def choose_layout(plan: TrainPlan, device_bytes: int) -> Layout:
    """What the spec leaves open, the same on all ranks: the smallest device decides. Says it."""
    alone = not torch.distributed.is_initialized()
    world = 1 if alone else torch.distributed.get_world_size()
    room = device_bytes if alone else lowest_of_all(device_bytes)
    layout = layout_of(plan, world, room)
    if alone or torch.distributed.get_rank() == 0:
        _say(plan.request)(
            f"layout: ZeRO-{layout.zero_stage}, {layout.accumulation} x {layout.micro_batch} "
            f"samples a step on each of {world} worker(s); {layout.reason}"
        )
    return layout


def layout_of(plan: TrainPlan, world: int, device_bytes: int) -> Layout:
    """A pure function of what is known; once memory was short, with half of what it would be."""
    most = plan.largest_micro_batch
    layout = lay_out(plan.spec, plan.model, world=world, device_bytes=device_bytes)
    if most is None:
        return layout
    if plan.spec.resources.micro_batch == "auto":
        most = max(1, min(most, layout.micro_batch // 2))
    return lay_out(
        plan.spec, plan.model, world=world, device_bytes=device_bytes, largest_micro_batch=most
    )


def laid_out(plan: TrainPlan, layout: Layout) -> TrainPlan:
    """The plan with nothing left open."""
    chosen = {"zero_stage": layout.zero_stage, "micro_batch": layout.micro_batch}
    if layout.zero_stage == 3:
        chosen["compile"] = False  # where memory chose the stage: see the spec
    resources = plan.spec.resources.revise(**chosen)
    return replace(plan, spec=plan.spec.revise(resources=resources))


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Make `import module` fail inside the block, unless it has been imported before."""
    hides = module not in sys.modules
    if hides:
        sys.modules[module] = None  # type: ignore[assignment]  # Python's own way to say so
    try:
        yield
    finally:
        if hides:
            del sys.modules[module]


def run_alone(plan: TrainPlan) -> dict[str, Any]:
    """The single-process reference engine, in this very process."""
    prepare_torch(plan.spec.resources.threads)
    device = torch.device("cuda" if plan.spec.resources.gpus_per_worker else "cpu")
    plan = laid_out(plan, choose_layout(plan, worker_bytes(plan.spec.resources, device)))
    setup = engine_spec(plan, device)
    return run_plan(plan, setup, lambda: TorchEngine(fast_model(plan), setup))


def prepare_torch(threads: int) -> None:
    """Same counts, same threads, same bits."""
    # Small models make thousands of short calls a second; at the default of 5 ms the threads that
    # decode would keep the interpreter from the training thread for longer than a step takes.
    sys.setswitchinterval(1e-4)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    # Filling every new buffer would only cost time: nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch sets it by a module class


def engine_spec(plan: TrainPlan, device: torch.device) -> EngineSpec:
    """What every engine is made from."""
    objective, seed = objective_of(plan, device), plan.request.seed
    return EngineSpec(plan.spec.optim, objective, plan.spec.precision, device, seed)


def run_plan(
    plan: TrainPlan, setup: EngineSpec, new_engine: Callable[[], Engine]
) -> dict[str, Any]:
    """Train to the end and, on rank 0, write the model into the attempt.

    Args:
        plan: What is trained.
        setup: What an engine is made from.
        new_engine: Makes one; called again where the run is taken back.

    Returns:
        The stage's final figures by name.

    Raises:
        PausedError: On request, after a checkpoint.
        VitrailError: Whatever the loop raises.
    """
    data = open_data(plan.request, plan.spec)
    keeper = _keeper(plan, data, probe_batch(data.first, PROBE_SAMPLES, plan.model.image_px))
    validator = _validator(plan, data, setup)
    gauge = gauge_of(plan.spec, plan.model)
    back: RunProgress | None = None
    while True:
        engine = new_engine()
        watch = watch_of(plan.request, plan.progress, gauge, rank=engine.rank)
        with _loader(plan, data, engine) as loader:
            try:
                progress = train(
                    engine,
                    loader,
                    optim=plan.spec.optim,
                    total_steps=total_steps(plan.spec.duration, loader.steps_per_epoch),
                    keeper=keeper,
                    watch=watch,
                    validator=validator,
                    back=back,
                )
            except RollBackError as error:
                back = error.progress
                # Two engines at once may be more than the device holds; DeepSpeed's parts hold
                # each other, so that they are not gone before they are looked for.
                del engine
                gc.collect()
                continue
        if engine.rank == 0 and isinstance(plan.spec, PretrainSpec):
            keeper.keep(progress.step, plan.attempt / STATE_FOLDER)
        best = keeper.folder(progress.standing.best_step)
        return _hand_over(plan, data, engine, progress, best)


def _loader(plan: TrainPlan, data: TrainData, engine: Engine) -> TrainLoader:
    return TrainLoader(
        data.data,
        augment=plan.spec.augment,
        image_px=plan.model.image_px,
        batch=plan.spec.batch,
        seed=plan.request.seed,
        rank=engine.rank,
        world_size=engine.world_size,
        micro_batch=plan.micro_batch(engine.world_size),
        threads=plan.spec.resources.loader_threads,
    )


def _hand_over(
    plan: TrainPlan, data: TrainData, engine: Engine, progress: RunProgress, best: Path
) -> dict[str, Any]:
    """Write the model, which is that of the checkpoint `best` where the spec wants it."""
    validation = plan.spec.validation
    if validation is not None and validation.keep_best:
        weights, others = read_model(best) if engine.rank == 0 else ({}, {})
        steps = progress.standing.best_step
    else:
        weights, others, steps = dict(engine.weights()), engine.buffers(), progress.step
    if not plan.spec.objective.uses_labels:
        weights = encoder_weights(weights)
    lora = plan.spec.lora if isinstance(plan.spec, FinetuneSpec) else None
    if engine.rank == 0 and lora is not None:
        save_adapter(plan.attempt / ADAPTER_FOLDER, weights, lora)
        weights = without_lora(weights, lora)
    if engine.rank == 0:
        save_model(plan.attempt / MODEL_FOLDER, weights | others, _saved(plan, data, steps))
    return _final_figures(progress) | {
        "model/parameters_count": float(sum(weight.numel() for weight in weights.values()))
    }


def _final_figures(progress: RunProgress) -> dict[str, float]:
    """Of a run that has ended."""
    assert progress.train_loss is not None, "a run has at least one step"  # noqa: S101
    figures = {"train/loss": progress.train_loss, "train/steps_count": float(progress.step)}
    standing = progress.standing
    if standing.best_value is None:
        return figures
    return figures | {
        "validation/best": standing.best_value,
        "validation/best_step_count": float(standing.best_step),
    }


def _validator(plan: TrainPlan, data: TrainData, setup: EngineSpec) -> Validator | None:
    spec, objective = plan.spec, plan.spec.objective
    if spec.validation is None:
        return None
    found = plan.request.inputs["validation_data"]
    shards = ShardSet.open(Path(found.path) / DATASET_FOLDER)
    measure: Measure = OwnLoss(setup.objective)
    if objective.uses_labels:
        check_same_classes(data.class_names, shards.class_names)
        loss = objective if isinstance(objective, SupervisedSpec) else SupervisedSpec()
        setting = Setting(plan.model, plan.request.seed, setup.device)
        measure = Answers(setting, Supervised(setting, loss, label_smoothing=0.0))
    assert found.split is not None, "the spec of the stage sees to it"  # noqa: S101
    return Validator(
        spec.validation,
        shards.split(found.split),
        measure=measure,
        model=trained_model(plan).to(setup.device),
        engine=setup,
        image_px=plan.model.image_px,
        samples=min(plan.spec.batch.global_samples, VALIDATION_SAMPLES),
        threads=spec.resources.loader_threads,
    )


def _keeper(plan: TrainPlan, data: TrainData, probe: Batch) -> CheckpointKeeper:
    names, continued = plan.spec.needed_libraries(), plan.request.inputs.get("continues")
    identity = RunIdentity(
        key=plan.request.key,
        data_digest=data.digest,
        global_samples=plan.spec.batch.global_samples,
        model=plan.model,
        versions={name: importlib.metadata.version(name) for name in names},
    )
    return CheckpointKeeper(
        plan.progress / CHECKPOINTS,
        identity=identity,
        when=plan.spec.checkpoint,
        probe=probe,
        say=_say(plan.request),
        needed=lambda progress: needed_again(progress, plan.spec.optim, plan.spec.validation),
        start=None if continued is None else Path(continued.path) / STATE_FOLDER,
    )


def _say(request: StageRequest) -> Callable[[str], None]:
    return lambda line: append_line(log_path(request), f"{request.stage}: {line}")


def _saved(plan: TrainPlan, data: TrainData, steps: int) -> SavedModel:
    start = plan.request.inputs.get("init")
    objective = plan.spec.objective
    return SavedModel(
        spec=plan.model,
        class_names=data.class_names if objective.uses_labels else (),
        probabilities=objective.loss if isinstance(objective, SupervisedSpec) else "softmax",
        trained_steps=steps,
        key=plan.request.key,
        data_digest=data.digest,
        init_digest=None if start is None else start.digest,
    )

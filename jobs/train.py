"""The stage kinds `pretrain` and `finetune`: resolve the model, search, train, hand over."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from infra.ray_gang_failures import is_memory, out_of_memory
from infra.worker_gang import Foreman, Gang, run_gang
from jobs.stage import StageOutput, StageTools
from jobs.train_plan import TrainPlan, initial_model, narrow, objective_of, open_data
from jobs.train_worker import CHECKPOINTS, prepare_torch, run_alone, run_in_gang
from pipeline.model.backbone import batch_statistics
from pipeline.model.building import unfilled
from pipeline.model.freezing import is_frozen
from pipeline.model.saved import load_saved
from pipeline.training.checkpoint import newest_step
from pipeline.training.loop import Watch
from pipeline.training.objectives.distilled import check_teacher
from pipeline.training.search import Bench, run_search, trial_optim
from schemas.backbones import BackboneSpec, ResNetSpec, TimmSpec, carried_on
from schemas.checkpoint import MODEL_FILE, MODEL_FOLDER, SavedModel
from schemas.errors import OutOfMemoryError, SpecError
from schemas.experiment import STAGE_KINDS
from schemas.model import ModelChange, ViTSpec
from schemas.optim import DurationSpec
from schemas.report import SEARCH_FILE, SearchReport
from schemas.resources import ResourcesSpec
from schemas.runs import StageRequest
from schemas.spec import canonical_json
from schemas.training import FinetuneSpec, PretrainSpec
from schemas.tuning import SearchSpec

GANG_NOTES = "ray"
SEARCH_JOURNAL = "search.jsonl"


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Train the model of `request` and write it into the attempt.

    Files: `model/` (weights and description); `adapter/` (what `lora` learned); `search.json` after
    a search. Progress: checkpoints
    and finished trials, from which a later attempt at the same key goes on.

    Raises:
        PausedError: On request, after a checkpoint.
        VitrailError: What a training process found wrong.
    """
    plan = _plan(request, tools)
    _check_statistics(plan)
    figures: dict[str, float] = {}
    if isinstance(plan.spec, FinetuneSpec) and plan.spec.search is not None:
        report = _search(plan, tools, plan.spec, plan.spec.search)
        plan = _with_best(plan, report)
        figures = _search_figures(report)
        tools.metrics.log(figures, step=0)
    tools.say(_announcement(plan))
    figures |= _trained(plan, tools)
    return StageOutput(metrics=figures, spent=(CHECKPOINTS, GANG_NOTES))


def _check_statistics(plan: TrainPlan) -> None:
    """What is learned must not depend on how the work is spread, which is not in the key."""
    samples = plan.spec.batch.global_samples
    smallest = min(plan.micro_batch(world) for world in plan.spec.worlds())
    layers = [] if smallest == samples else _layers_of_batches(plan)
    if layers:
        raise SpecError(
            f"{len(layers)} layers of this model normalise by the statistics of one forward "
            f"(BatchNorm), which sees {smallest} of {samples} samples, "
            "so what is learned would depend on workers and micro-batches; train it with "
            "resources.workers 1 and without resources.micro_batch, or take a model with another "
            "kind of norm, such as type resnet"
        )


def _layers_of_batches(plan: TrainPlan) -> list[str]:
    """The layers for which the samples of one forward are more than a sum."""
    if isinstance(plan.model, ViTSpec | ResNetSpec):
        return []
    model = unfilled(plan.model)
    narrow(model, plan)
    return [name for name in batch_statistics(model) if not is_frozen(model.get_submodule(name))]


def _plan(request: StageRequest, tools: StageTools) -> TrainPlan:
    kind: Any = STAGE_KINDS[request.spec["kind"]]
    spec: PretrainSpec | FinetuneSpec = kind.parse(request.spec).in_steps()
    names = open_data(request, spec).class_names if spec.objective.uses_labels else ()
    model = resolve_model(spec, request, num_classes=len(names))
    if "teacher" in request.inputs:
        teacher = load_saved(Path(request.inputs["teacher"].path) / MODEL_FOLDER)
        check_teacher(teacher, model, names)
    return TrainPlan(
        request=request,
        spec=spec,
        model=model,
        attempt=tools.attempt.path,
        progress=tools.attempt.progress,
    )


def resolve_model(
    spec: PretrainSpec | FinetuneSpec, request: StageRequest, *, num_classes: int
) -> BackboneSpec:
    """The whole model: as the user wrote it, or that of `init` with another head and input size."""
    if isinstance(spec, PretrainSpec):
        return spec.model.resolved(num_classes=num_classes)
    start = request.inputs.get("init")
    if start is None:
        return spec.whole_model().resolved(num_classes=num_classes)
    file = Path(start.path) / MODEL_FOLDER / MODEL_FILE
    saved = SavedModel.model_validate_json(file.read_text())
    assert isinstance(spec.model, ModelChange), "with init there is no whole model"  # noqa: S101
    return carried_on(spec.model, saved.spec, num_classes=num_classes)


def _search(
    plan: TrainPlan, tools: StageTools, spec: FinetuneSpec, search: SearchSpec
) -> SearchReport:
    prepare_torch(spec.resources.threads)
    device = torch.device("cuda" if spec.resources.gpus_per_worker else "cpu")
    bench = Bench(
        spec=spec,
        search=search,
        split=open_data(plan.request, spec).first,
        new_model=lambda: initial_model(plan),
        objective=objective_of(plan, device),
        seed=plan.request.seed,
        device=device,
    )
    watch = Watch(stop=tools.stop, say=tools.say)
    report = run_search(bench, plan.progress / SEARCH_JOURNAL, watch)
    (plan.attempt / SEARCH_FILE).write_text(canonical_json(report.dump()) + "\n")
    return report


def _with_best(plan: TrainPlan, report: SearchReport) -> TrainPlan:
    """The plan with the rate and the steps that won."""
    best = report.trials[report.chosen]
    optim = trial_optim(plan.spec.optim, best.peak_lr, best.steps)
    duration = DurationSpec(steps=best.steps)
    return replace(plan, spec=plan.spec.revise(optim=optim, duration=duration))


def _search_figures(report: SearchReport) -> dict[str, float]:
    best = report.trials[report.chosen]
    return {
        "search/peak_lr": best.peak_lr,
        "search/steps_count": float(best.steps),
        "search/holdout_top1_ratio": best.holdout_top1_ratio,
    }


def _announcement(plan: TrainPlan) -> str:
    resources, model = plan.spec.resources, plan.model
    return (
        f"trains {_in_words(model)} on "
        f"{model.image_px[0]} x {model.image_px[1]} px, {_world_in_words(plan)} worker(s), "
        + ("plain torch" if resources.engine == "torch" else _stage_in_words(resources))
    )


def _stage_in_words(resources: ResourcesSpec) -> str:
    stage = resources.zero_stage
    return "ZeRO as memory asks for" if stage == "auto" else f"ZeRO-{stage}"


def _world_in_words(plan: TrainPlan) -> str:
    most, *fewer = plan.spec.worlds()
    return f"{fewer[-1]} to {most}" if fewer else str(most)


def _in_words(model: BackboneSpec) -> str:
    if isinstance(model, ViTSpec):
        return f"a ViT of width {model.width}, depth {model.depth}"
    if isinstance(model, ResNetSpec):
        return f"a ResNet of {list(model.blocks)} units, width {model.width}"
    return (
        f"{model.name} of timm"
        if isinstance(model, TimmSpec)
        else f"{model.model_type} of transformers"
    )


def _trained(plan: TrainPlan, tools: StageTools) -> dict[str, float]:
    """Train; where memory is short, once again in smaller pieces, from the last checkpoint."""
    try:
        return _train(plan, tools)
    except OutOfMemoryError as short:
        smaller = _with_half_micro_batch(plan)
        if smaller is None:
            raise
        tools.say(
            f"{short.what}; once again, with at most {smaller.largest_micro_batch} samples in a "
            "forward (the steps stay the same)"
        )
    return _train(smaller, tools)


def _with_half_micro_batch(plan: TrainPlan) -> TrainPlan | None:
    """None where the smallest piece was too large already, or pieces would change the result."""
    if _layers_of_batches(plan):
        return None
    most = max(plan.micro_batch(world) for world in plan.spec.worlds())
    smaller = replace(plan, largest_micro_batch=max(1, most // 2))
    fits = max(smaller.micro_batch(world) for world in plan.spec.worlds()) < most
    return smaller if fits else None


def _train(plan: TrainPlan, tools: StageTools) -> dict[str, float]:
    if plan.spec.resources.engine == "deepspeed":
        return _run_gang(plan, tools)
    try:
        return run_alone(plan)
    except (MemoryError, RuntimeError) as error:
        if is_memory(error):
            raise out_of_memory(error) from None  # the frames of the other would keep its memory
        raise


def _run_gang(plan: TrainPlan, tools: StageTools) -> dict[str, float]:
    resources = plan.spec.resources
    gang = Gang(
        worlds=plan.spec.worlds(),
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=resources.gpus_per_worker,
        name=f"{plan.request.key[:12]}-{plan.attempt.name}",
        storage=plan.progress / GANG_NOTES,
        env=worker_environment(resources),
    )
    foreman = Foreman(
        say=tools.say,
        stop=tools.stop.requested,
        progress=lambda: newest_step(plan.progress / CHECKPOINTS),
    )
    return run_gang(run_in_gang, {"plan": plan}, gang, foreman)


def worker_environment(resources: ResourcesSpec) -> dict[str, str]:
    """What must stand before a worker imports torch or DeepSpeed."""
    env = {"OMP_NUM_THREADS": str(resources.threads)}
    if resources.gpus_per_worker:
        return env | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # the deterministic one
    return env | {"DS_ACCELERATOR": "cpu"}

"""What `vitrail estimate` does: training stages on named GPUs, from the spec alone."""

from dataclasses import dataclass

from rich.table import Table

from jobs.console import amount, print_document, stdout, table
from jobs.target import Target
from jobs.wiring import store_at
from jobs.workspace import Workspace, open_workspace
from pipeline.cost import (
    ASSUMED_CLASSES,
    ASSUMED_MFU,
    DEVICES,
    USABLE_RATIO,
    Cluster,
    Training,
    on_clusters,
    training_of,
)
from pipeline.dag.graph import Graph, StageNode, expand
from pipeline.data.shards.shard_set import ShardSet
from pipeline.training.schedule import total_steps
from schemas.errors import SpecError, UsageError
from schemas.estimates import EstimateDocument, StageEstimate
from schemas.manifest import DATASET_FOLDER
from schemas.training import TrainingSpec
from schemas.words import nearest

_SHOWN_GPUS = ("a100", "h100", "h200", "l40s", "rtx4090", "v100")
"""Where none is named."""
_DAY_HOURS = 24
_LEAST_SHOWN = 0.01


@dataclass(frozen=True)
class Question:
    """The options of the command; None: not given."""

    gpu: tuple[str, ...]
    gpus: int | None
    images: int | None
    price_per_gpu_hour: float | None
    mfu: float | None


def show_estimate(target: Target, question: Question, output: str) -> None:
    """Print what every training stage would take."""
    document = estimate_document(target, question)
    if output == "json":
        print_document(document)
        return
    _print_estimate(document)


def estimate_document(target: Target, question: Question) -> EstimateDocument:
    """The estimate of every training stage of a spec.

    Raises:
        UsageError: If a GPU is not known.
        SpecError: If nothing is trained.
    """
    experiment, workspace = target.experiment(), open_workspace(target.workspace)
    graph = expand(experiment)
    cluster = Cluster(
        devices=[DEVICES[_known(name)] for name in question.gpu or _SHOWN_GPUS],
        gpus=question.gpus,
        mfu=question.mfu or ASSUMED_MFU,
        price_per_gpu_hour=question.price_per_gpu_hour,
    )
    stages = tuple(
        _stage(node, graph, cluster, _images(node, graph, question, workspace, experiment.name))
        for node in graph.nodes
        if isinstance(node.spec, TrainingSpec)
    )
    if not stages:
        raise SpecError("no stage of this spec trains a model, so there is nothing to estimate")
    return EstimateDocument(
        experiment=experiment.name,
        mfu=cluster.mfu,
        price_per_gpu_hour=cluster.price_per_gpu_hour,
        stages=stages,
    )


def _known(name: str) -> str:
    if name.lower() not in DEVICES:
        near = nearest(name.lower(), list(DEVICES))
        raise UsageError(
            f"--gpu {name} is not known; allowed are {', '.join(DEVICES)}",
            hint=f"--gpu {near}" if near else None,
        )
    return name.lower()


def _images(
    node: StageNode, graph: Graph, question: Question, workspace: Workspace, experiment: str
) -> int | None:
    """Those said, or those that the data of the stage, or else what it is made of, had last."""
    if question.images is not None:
        return question.images
    store, split = store_at(workspace.store), None
    while True:
        found = node.inputs.get("data") or node.inputs.get("to")
        if found is None:
            return None
        split = split or found.split or "train"
        node = graph.node(found.stage)
        made = store.get_ref(experiment, found.stage)
        if made is not None:
            return int(ShardSet.open(store.local(made) / DATASET_FOLDER).split(split).num_rows)


def _stage(node: StageNode, graph: Graph, cluster: Cluster, images: int | None) -> StageEstimate:
    training = training_of(node, graph)
    if training is None:
        nothing = "nothing is known yet of a library's model, nor of one that is imported"
        return StageEstimate(stage=node.name, kind=node.spec.kind, problem=nothing)
    steps = training.steps or _steps_of_corpus(training, images)
    unknown = "how long it takes depends on the corpus, which is not made yet: give --images"
    problem = None if steps is not None else unknown
    return on_clusters(node.name, training, cluster, steps=steps, problem=problem)


def _steps_of_corpus(training: Training, images: int | None) -> int | None:
    if images is None:
        return None
    batch = training.spec.batch
    whole = images // batch.global_samples
    per_epoch = whole if batch.tail == "drop" else -(-images // batch.global_samples)
    return total_steps(training.spec.duration, per_epoch)


def _print_estimate(document: EstimateDocument) -> None:
    for stage in document.stages:
        _print_stage(stage)
    stdout().print(
        f"Assumed: {document.mfu:.0%} of a GPU's peak (--mfu), data that keeps up, and "
        f"{ASSUMED_CLASSES} classes where the spec names none. A peak fits if it leaves "
        f"{1 - USABLE_RATIO:.0%} of the memory.",
        markup=False,
    )


def _print_stage(stage: StageEstimate) -> None:
    console = stdout()
    console.print(f"{stage.stage} ({stage.kind})", style="bold", markup=False)
    if stage.parameters is not None:
        console.print(
            f"  {amount(stage.parameters, '')} parameters; FLOPs of an image: forward "
            f"{amount(stage.forward_flops_per_image, '')}, training "
            f"{amount(stage.training_flops_per_image, '')}; {stage.precision}",
            markup=False,
        )
    if stage.images is not None:
        console.print(
            f"  {stage.steps:,} steps, {amount(stage.images, '')} images seen, "
            f"{amount(stage.flops, 'FLOP')} in all",
            markup=False,
        )
    if stage.problem:
        console.print(f"  {stage.problem}", markup=False)
    if stage.devices:
        console.print(
            f"  memory of each of {stage.gpus} GPU(s), {stage.micro_batch} images at once:"
        )
        console.print(_memory_table(stage))
        console.print(f"  on {stage.gpus} GPU(s):")
        console.print(_device_table(stage))
        if any(each.too_small for each in stage.devices):
            console.print("  <: passes are too short to keep a GPU busy; it will be far less")
    console.print()


def _memory_table(stage: StageEstimate) -> Table:
    columns = ("  ZeRO", ">weights", ">gradients", ">optimizer", ">activations", ">peak")
    rows = [
        (
            f"  {each.zero_stage}",
            amount(each.weights_bytes, "B"),
            amount(each.gradients_bytes, "B"),
            amount(each.optimizer_bytes, "B"),
            amount(each.activations_bytes, "B"),
            amount(each.peak_bytes, "B"),
        )
        for each in stage.memory
    ]
    return table(columns, rows)


def _device_table(stage: StageEstimate) -> Table:
    columns = ("  GPU", "memory", "ZeRO", "batch", ">peak", "fits", ">images/s", ">hours", ">days")
    priced = any(each.cost is not None for each in stage.devices)
    rows = []
    for each in stage.devices:
        cells = (
            f"  {each.device}",
            amount(each.memory_bytes, "B"),
            str(each.zero_stage),
            f"{each.accumulation} x {each.micro_batch}",
            amount(each.peak_bytes, "B"),
            "yes" if each.fits else "no",
            f"{'< ' if each.too_small else ''}{each.images_per_second:,.0f}",
            "-" if each.hours is None else _number(each.hours),
            "-" if each.hours is None else _number(each.hours / _DAY_HOURS),
        )
        rows.append((*cells, f"{each.cost:,.2f}") if each.cost is not None else cells)
    return table((*columns, ">cost") if priced else columns, rows)


def _number(value: float) -> str:
    if value < _LEAST_SHOWN:
        return f"< {_LEAST_SHOWN}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

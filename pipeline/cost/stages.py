"""What each stage of a graph will cost, from its spec: parameters, FLOPs, memory, disk."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pipeline.cost.flops import model_flops, training_flops
from pipeline.cost.learning import Learning, learning
from pipeline.cost.memory import training_memory
from pipeline.cost.parameters import model_parameters
from pipeline.cost.robustness import forward_passes, learning_passes
from pipeline.cost.state import FP32_BYTES, moments_of
from schemas.backbones import BackboneSpec, ResNetSpec, carried_on
from schemas.data import CorpusSpec, IngestSpec
from schemas.evaluation import EvaluateSpec
from schemas.experiment import AnyStage
from schemas.interchange import ImportSpec, WeightsSource
from schemas.interpret import InterpretSpec
from schemas.model import ModelChange, ViTSpec
from schemas.probing import FeaturesSpec
from schemas.robustness import RobustnessSpec
from schemas.sources import SourceSpec
from schemas.stage import StageRef
from schemas.training import FinetuneSpec, PretrainSpec

ASSUMED_CLASSES = 1000
"""Where the classes are known only once the corpus is read."""
SMALL_BYTES = 2**20
"""Disk taken by stages that write tables only."""
PICTURES_BYTES = 8 * 2**20
"""Disk taken by the pictures of a model: 4 MB for 8 images of 518 px, measured."""


class Node(Protocol):
    """A stage of a graph: `pipeline.dag.graph.StageNode`."""

    @property
    def spec(self) -> AnyStage:
        """The stage's spec."""
        ...

    @property
    def inputs(self) -> dict[str, StageRef]:
        """Port -> the node it reads."""
        ...


class Graph(Protocol):
    """A lookup of nodes: `pipeline.dag.graph.Graph`."""

    def node(self, name: str) -> Node:
        """The node of this name."""
        ...


def estimate(
    node: Node, graph: Graph, source_bytes: Callable[[SourceSpec | WeightsSource], int]
) -> dict[str, float]:
    """What is known of a stage's cost before it runs.

    - `parameters`: of all that the stage trains, or of the model that it runs; a head of
      `ASSUMED_CLASSES` unless the ingest behind it names its classes. Nothing is known of imported
      models and of a library's before they are there: then only the disk of small stages is told.
    - `flops`: of the whole stage, forward and backward of all samples; only where the duration is
      given in steps. A `search` counts every pair that it tries, and the longest. Of a robustness
      stage: of its passes over `samples` images, a gradient counting three.
    - `memory_bytes`: of each worker at its peak, at the most workers. What is left to be chosen
      (`auto`) is taken as where memory is no matter: ZeRO-1 (0 for one worker), the whole share.
    - `disk_bytes`: ingest and append 2 x source (staged files and shards, an upper bound unless
      images grow when encoded again); import 2 x source (half precision becomes fp32);
      training (keep_last + 1) checkpoints of weights and, of what learns, moments and average,
      and the model; of
      features, 4 bytes x width x images, nothing before the images are counted; robustness, what
      its answers take; `PICTURES_BYTES` for interpret; `SMALL_BYTES` for all others.

    Args:
        node: The stage.
        graph: Where its inputs are looked up.
        source_bytes: Size of a raw corpus.
    """
    spec = node.spec
    if isinstance(spec, CorpusSpec | ImportSpec):
        return {"disk_bytes": 2.0 * source_bytes(spec.source)}
    if isinstance(spec, PretrainSpec | FinetuneSpec):
        training = training_of(node, graph)
        return {} if training is None else _training(training)
    if isinstance(spec, EvaluateSpec | FeaturesSpec | InterpretSpec):
        model = _model(graph.node(node.inputs["model"].stage), graph)
        count = None if model is None else model_parameters(model)
        size = {} if count is None else {"parameters": float(count)}
        if isinstance(spec, FeaturesSpec):
            return size
        pictures = isinstance(spec, InterpretSpec)
        return size | {"disk_bytes": float(PICTURES_BYTES if pictures else SMALL_BYTES)}
    if isinstance(spec, RobustnessSpec):
        return _robustness(node, spec, graph)
    return {"disk_bytes": float(SMALL_BYTES)}


@dataclass(frozen=True)
class Training:
    """A training stage and the model that it trains, as far as specs tell."""

    spec: PretrainSpec | FinetuneSpec
    model: ViTSpec | ResNetSpec
    teacher_flops: int
    """Of one image forward; 0 without a teacher, or where nothing is known of it."""

    @property
    def parameters(self) -> int:
        """Numbers of all that is there while it is trained, frozen ones included."""
        return self.learning.held

    @property
    def learning(self) -> Learning:
        """What of it learns."""
        return learning(self.model, self.spec)

    @property
    def flops_per_image(self) -> int:
        """Forward and backward, and the teacher's forward."""
        recompute = self.spec.resources.recompute
        own = training_flops(
            self.model,
            self.spec.objective,
            recompute=recompute,
            first_layer=self.learning.first_layer,
        )
        return own + self.teacher_flops

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the whole stage, None if they depend on the size of the corpus."""
        search = self.spec.search if isinstance(self.spec, FinetuneSpec) else None
        if search is None:
            return self.spec.known_steps()
        return sum(search.steps) * len(search.peak_lr) * search.repeats + max(search.steps)


def training_of(node: Node, graph: Graph) -> Training | None:
    """What a stage trains; None for stages that do not, and for models of libraries."""
    if not isinstance(node.spec, PretrainSpec | FinetuneSpec):
        return None
    model = _model(node, graph)
    if not isinstance(model, ViTSpec | ResNetSpec):
        return None
    teacher = node.inputs.get("teacher")
    taught = None if teacher is None else _model(graph.node(teacher.stage), graph)
    flops = None if taught is None else model_flops(taught)
    return Training(node.spec, model, flops or 0)


def _training(training: Training) -> dict[str, float]:
    spec, params, learns = training.spec, training.parameters, training.learning
    resources, world = spec.resources, spec.worlds()[0]
    stage = (
        resources.zero_stage
        if isinstance(resources.zero_stage, int)
        else int(world > 1 or resources.offload_optimizer)
    )
    given, share = resources.micro_batch, spec.batch.global_samples // world
    memory = training_memory(
        training.model,
        spec,
        zero_stage=stage if resources.engine == "deepspeed" else 0,
        world=world,
        micro_batch=given if isinstance(given, int) else share,
    )
    kept = moments_of(spec.optim) + (spec.optim.ema_decay is not None)
    numbers = params + kept * learns.learned
    checkpoints = (spec.checkpoint.keep_last + 1) * numbers * FP32_BYTES
    costs = {
        "parameters": float(params),
        "memory_bytes": memory.peak,
        "disk_bytes": float(checkpoints + FP32_BYTES * params),
    }
    if training.steps is not None:
        samples = training.steps * spec.batch.global_samples
        costs["flops"] = float(training.flops_per_image) * samples
    return costs


def _robustness(node: Node, spec: RobustnessSpec, graph: Graph) -> dict[str, float]:
    """Forward passes of all models over `samples` images, and answers of four bytes."""
    ports = [port for port in node.inputs if port.partition("[")[0] == "model"]
    models = [_model(graph.node(node.inputs[port].stage), graph) for port in ports]
    known = [model for model in models if isinstance(model, ViTSpec | ResNetSpec)]
    if spec.samples is None or len(known) < len(models):
        return {}
    guided = spec.guide is not None or any(
        isinstance(model, ViTSpec) and model.pool == "cls" for model in known
    )
    passes = [forward_passes(spec.tests, model, guided=guided) for model in known]
    total = [spec.samples * count + learning_passes(spec.tests) for count in passes]
    flops = [(model_flops(model) or 0) * each for model, each in zip(known, total, strict=True)]
    answers = 2 * FP32_BYTES * spec.samples * sum(passes)  # pieces, and the table made of them
    return {"flops": float(sum(flops)), "disk_bytes": float(answers + SMALL_BYTES)}


def _model(node: Node, graph: Graph) -> BackboneSpec | None:
    """The model that a stage makes; None where only a file of weights can say it."""
    spec, classes = node.spec, _num_classes(node, graph)
    if isinstance(spec, ImportSpec):
        return None
    if isinstance(spec, PretrainSpec):
        return spec.model.resolved(num_classes=classes)
    assert isinstance(spec, FinetuneSpec), "ports let only training stages make models"  # noqa: S101
    if "init" not in node.inputs:
        return spec.whole_model().resolved(num_classes=classes)
    start = _model(graph.node(node.inputs["init"].stage), graph)
    if start is None or not isinstance(spec.model, ModelChange):
        return None
    return carried_on(spec.model, start, num_classes=classes)


def _num_classes(node: Node, graph: Graph) -> int:
    """Classes of the corpus behind a stage, as far as its ingest names them; 0 without labels."""
    if isinstance(node.spec, PretrainSpec) and not node.spec.objective.uses_labels:
        return 0
    while "data" in node.inputs:
        node = graph.node(node.inputs["data"].stage)
    if isinstance(node.spec, IngestSpec) and node.spec.select.classes:
        return len(node.spec.select.classes)
    return ASSUMED_CLASSES

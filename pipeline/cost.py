"""What a stage will cost, from specs alone: parameters, FLOPs, memory, disk. Rough, and stated."""

from collections.abc import Callable
from typing import Literal, Protocol

from schemas.data import CorpusSpec, IngestSpec
from schemas.evaluation import EvaluateSpec
from schemas.experiment import AnyStage
from schemas.model import ViTSpec
from schemas.sources import SourceSpec
from schemas.stage import StageRef
from schemas.training import FinetuneSpec, PretrainSpec

CHANNELS = 3
FP32_BYTES = 4
ASSUMED_CLASSES = 1000
"""Where the classes are known only once the corpus is read."""
SMALL_BYTES = 2**20
"""Disk taken by stages that write tables only."""

Algorithm = Literal["adamw", "sgd"]


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


def vit_parameters(spec: ViTSpec) -> int:
    """Learned numbers of a ViT, head included.

    With width D, depth L, MLP width M, patch side P, N patches, T tokens (N, and 1 with a class
    token), K classes:

    - patches 3 P^2 D + D, positions T D, class token D (pool `cls` only)
    - each of L blocks: two norms 4 D, attention 4 D^2 + 4 D, MLP 2 D M + M + D
    - last norm 2 D, head D K + K
    """
    width, hidden = spec.width, spec.mlp_dim
    embedding = CHANNELS * spec.patch_px**2 * width + width + tokens(spec) * width
    class_token = width if spec.pool == "cls" else 0
    block = 4 * width + (4 * width**2 + 4 * width) + (2 * width * hidden + hidden + width)
    head = width * spec.num_classes + spec.num_classes
    return embedding + class_token + spec.depth * block + 2 * width + head


def vit_flops(spec: ViTSpec) -> int:
    """FLOPs of one image forward, two for each multiply-add; in the letters of `vit_parameters`.

    2 (3 P^2 D N  +  L (4 D^2 T + 2 D M T + 2 T^2 D)  +  D K). The term in T^2 is attention. Norms,
    softmax, GELU and biases are left out: below 2 % at the sizes of the paper.
    """
    width, length = spec.width, tokens(spec)
    patches = spec.grid[0] * spec.grid[1] * CHANNELS * spec.patch_px**2 * width
    linear = length * (4 * width**2 + 2 * width * spec.mlp_dim)
    attention = 2 * length**2 * width
    return 2 * (patches + spec.depth * (linear + attention) + width * spec.num_classes)


def tokens(spec: ViTSpec) -> int:
    """Length of the sequence: patches, and the class token if there is one."""
    return spec.grid[0] * spec.grid[1] + (1 if spec.pool == "cls" else 0)


def training_state_bytes(
    params: int, algorithm: Algorithm, *, zero_stage: int, world: int
) -> float:
    """Bytes that weights, gradients and moments take on each worker, all in fp32.

    Weights 4, gradients 4, moments 8 (AdamW) or 4 (SGD) for each parameter. ZeRO-1 divides the
    moments by the number of workers, ZeRO-2 the gradients too, ZeRO-3 the weights too.
    """
    weights, gradients, moments = FP32_BYTES, FP32_BYTES, _moment_bytes(algorithm)
    held = float(weights if zero_stage < 3 else weights / world)
    held += gradients if zero_stage < 2 else gradients / world
    held += moments if zero_stage < 1 else moments / world
    return params * held


def _moment_bytes(algorithm: Algorithm) -> int:
    return 2 * FP32_BYTES if algorithm == "adamw" else FP32_BYTES


def activation_bytes(spec: ViTSpec, *, samples: int, bytes_each: int) -> int:
    """Rough bytes kept from forward to backward for one micro-batch, without recomputation.

    For each token and block about 8 D + 2 M numbers: both norms' inputs and outputs, queries, keys,
    values, the attention's output, the MLP before and after its GELU. Attention itself is computed
    in tiles and keeps nothing of size T^2.
    """
    per_token = 8 * spec.width + 2 * spec.mlp_dim
    return samples * tokens(spec) * spec.depth * per_token * bytes_each


def estimate(
    node: Node, graph: Graph, source_bytes: Callable[[SourceSpec], int]
) -> dict[str, float]:
    """What is known of a stage's cost before it runs.

    - `parameters`: of the model that the stage trains or evaluates; a head of `ASSUMED_CLASSES`
      unless the ingest behind it names its classes.
    - `flops`: of the whole stage, 3 x forward x samples (backward counts twice); only where the
      duration is given in steps. A `search` counts every pair that it tries, and the longest.
    - `memory_bytes`: of each worker: training state and the activations of one micro-batch.
    - `disk_bytes`: ingest and append 2 x source (staged files and shards, an upper bound unless
      images grow when encoded again); training (keep_last + 1) checkpoints of weights and
      moments, and the model; `SMALL_BYTES` for all others.

    Args:
        node: The stage.
        graph: Where its inputs are looked up.
        source_bytes: Size of a raw corpus.
    """
    spec = node.spec
    if isinstance(spec, CorpusSpec):
        return {"disk_bytes": 2.0 * source_bytes(spec.source)}
    if isinstance(spec, PretrainSpec | FinetuneSpec):
        return _training(spec, _model(node, graph))
    if isinstance(spec, EvaluateSpec):
        model = _model(graph.node(node.inputs["model"].stage), graph)
        return {"parameters": float(vit_parameters(model)), "disk_bytes": float(SMALL_BYTES)}
    return {"disk_bytes": float(SMALL_BYTES)}


def _training(spec: PretrainSpec | FinetuneSpec, model: ViTSpec) -> dict[str, float]:
    params = vit_parameters(model)
    resources, algorithm = spec.resources, spec.optim.algorithm
    world = resources.workers
    zero_stage = resources.zero_stage if resources.engine == "deepspeed" else 0
    state = training_state_bytes(params, algorithm, zero_stage=zero_stage, world=world)
    micro = resources.micro_batch or spec.batch.global_samples // world
    bytes_each = FP32_BYTES if spec.precision == "fp32" else FP32_BYTES // 2
    checkpoint = (FP32_BYTES + _moment_bytes(algorithm)) * params
    costs = {
        "parameters": float(params),
        "memory_bytes": state + activation_bytes(model, samples=micro, bytes_each=bytes_each),
        "disk_bytes": float((spec.checkpoint.keep_last + 1) * checkpoint + FP32_BYTES * params),
    }
    steps = _steps(spec)
    if steps is not None:
        costs["flops"] = 3.0 * vit_flops(model) * steps * spec.batch.global_samples
    return costs


def _steps(spec: PretrainSpec | FinetuneSpec) -> int | None:
    """Optimizer steps of the whole stage, None if they depend on the size of the corpus."""
    search = spec.search if isinstance(spec, FinetuneSpec) else None
    if search is None:
        return spec.duration.steps
    return sum(search.steps) * len(search.peak_lr) * search.repeats + max(search.steps)


def _model(node: Node, graph: Graph) -> ViTSpec:
    """The ViT that a training stage makes."""
    spec, classes = node.spec, _num_classes(node, graph)
    if isinstance(spec, PretrainSpec):
        return spec.model.to_vit(num_classes=classes)
    assert isinstance(spec, FinetuneSpec), "ports let only training stages make models"  # noqa: S101
    if "init" not in node.inputs:
        return spec.whole_model().to_vit(num_classes=classes)
    start = _model(graph.node(node.inputs["init"].stage), graph)
    side = spec.model.image_px
    square = (side, side) if isinstance(side, int) else side
    return start.revise(num_classes=classes, image_px=square or start.image_px)


def _num_classes(node: Node, graph: Graph) -> int:
    """Classes of the corpus behind a stage, as far as its ingest names them."""
    while "data" in node.inputs:
        node = graph.node(node.inputs["data"].stage)
    if isinstance(node.spec, IngestSpec) and node.spec.select.classes:
        return len(node.spec.select.classes)
    return ASSUMED_CLASSES

"""What a stage will cost, from specs alone: parameters, FLOPs, memory, disk. Rough, and stated."""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from schemas.backbones import BackboneSpec, ResNetSpec, carried_on
from schemas.data import CorpusSpec, IngestSpec
from schemas.evaluation import EvaluateSpec
from schemas.experiment import AnyStage
from schemas.interchange import ImportSpec, WeightsSource
from schemas.model import CHANNELS, ModelChange, ResNetStemSpec, ViTSpec
from schemas.objectives import COLOUR_LEVELS, AnyObjective, MaeSpec, MaskedPatchSpec
from schemas.sources import SourceSpec
from schemas.stage import StageRef
from schemas.training import FinetuneSpec, PretrainSpec

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

    With width D, depth L, MLP width M, V numbers in a patch, N patches, S leading tokens with a
    position, K classes, and E = D / heads:

    - stem, patches V D + D, one D for each leading token, positions `_position_numbers`
    - each of L blocks (two in an axial one): two norms 4 D, attention 4 D^2 + 4 D, MLP
      2 D M + M + D; with `layer_scale` 2 D, with `qk_norm` 4 E
    - last norm 2 D; pool `map` D and a block without its first norm; a hidden layer D^2 + D;
      each head D K + K
    """
    width, hidden = spec.width, spec.mlp_dim
    embedding = spec.patch_values * width + width + spec.leading * width
    attention, mlp = 4 * width**2 + 4 * width, 2 * width * hidden + hidden + width
    block = 4 * width + attention + mlp
    block += 2 * width if spec.layer_scale else 0
    block += 4 * (width // spec.num_heads) if spec.qk_norm else 0
    pooling = width + attention + 2 * width + mlp if spec.pool == "map" else 0
    hidden_layer = width**2 + width if spec.hidden_head else 0
    heads = (1 + spec.distillation_token) * (width + 1) * spec.num_classes
    blocks = spec.depth * (2 if spec.axial else 1) * block
    own = embedding + _position_numbers(spec) + blocks + 2 * width + pooling + hidden_layer + heads
    return own + (_stem_parameters(spec.stem) if spec.stem else 0)


def objective_parameters(objective: AnyObjective, model: ViTSpec) -> int:
    """Learned numbers that an objective adds while it trains, in the letters of `vit_parameters`.

    - `masked_patch`: a token D, and a dense layer for C colours, D C + C
    - `mae`, with a decoder of width W: D W + W, a token W, its blocks, 2 W, and W V + V
    """
    if isinstance(objective, MaskedPatchSpec):
        return model.width + (model.width + 1) * COLOUR_LEVELS**3
    if not isinstance(objective, MaeSpec):
        return 0
    decoder = objective.decoder(model)
    width, values = decoder.width, decoder.patch_values
    # As a ViT it would have patches, V W + W, and leading tokens, instead of what is around here.
    blocks = vit_parameters(decoder) - (values + 1 + decoder.leading) * width
    return blocks + (model.width + 1) * width + width + (width + 1) * values


def objective_flops(objective: AnyObjective, model: ViTSpec) -> int:
    """FLOPs of one image forward, with what the objective adds and leaves out; see `vit_flops`."""
    if isinstance(objective, MaskedPatchSpec):
        return vit_flops(model) + 2 * model.patches * model.width * COLOUR_LEVELS**3
    if not isinstance(objective, MaeSpec):
        return vit_flops(model)
    decoder, seen = objective.decoder(model), objective.kept(model.patches)
    between = 2 * (model.leading + seen) * model.width * decoder.width
    # The decoder's dense layer for pixels costs what a ViT's patches do.
    return vit_flops(model, seen=seen) + between + vit_flops(decoder)


def _position_numbers(spec: ViTSpec) -> int:
    """Tables of (S + N) D, or S D + (rows + columns) D / 2; (2 N - 1) D of distances a block."""
    if spec.position == "learned_1d":
        return spec.tables * (spec.slots + spec.patches) * spec.width
    if spec.position == "learned_2d":
        return spec.tables * (spec.slots * spec.width + sum(spec.grid) * (spec.width // 2))
    if spec.position == "relative":
        lines = spec.grid if spec.axial else (spec.patches,)
        return spec.depth * sum(2 * line - 1 for line in lines) * spec.width
    return 0


def _stem_parameters(stem: ResNetStemSpec) -> int:
    """Kernels, and two numbers for each channel of the norm after each."""
    convolutions = _convolutions(stem, (stem.stride, stem.stride))
    return sum(each.kernel + 2 * each.out for each in convolutions)


class _Convolution(NamedTuple):
    kernel: int
    """Numbers in all its kernels."""
    out: int
    """Channels."""
    cells: int
    """Places where it is computed."""


def _convolutions(
    net: ResNetStemSpec | ResNetSpec, image_px: tuple[int, int]
) -> list[_Convolution]:
    """The root, 7 x 7; in each unit 1 x 1, 3 x 3, 1 x 1; a projection in the first of a stage."""
    found = [_Convolution(CHANNELS * 49 * net.width, net.width, _cells(image_px, 2))]
    source = net.width
    for stage, units in enumerate(net.blocks):
        width, cells = net.width * 2**stage, _cells(image_px, 4 << stage)
        before = _cells(image_px, 4 << max(0, stage - 1))
        for unit in range(units):
            found.append(_Convolution(source * width, width, cells if unit else before))
            found.append(_Convolution(9 * width * width, width, cells))
            found.append(_Convolution(width * 4 * width, 4 * width, cells))
            if not unit:
                found.append(_Convolution(source * 4 * width, 4 * width, cells))
            source = 4 * width
    return found


def _cells(image_px: tuple[int, int], stride: int) -> int:
    """Of the grid that is `stride` times smaller along each side, rounded up."""
    return -(-image_px[0] // stride) * -(-image_px[1] // stride)


def resnet_parameters(spec: ResNetSpec) -> int:
    """Learned numbers of a ResNet, head included.

    Kernels as in a stem. A unit's norms are before its convolutions, so two numbers for each
    channel that goes in and for twice the width; one norm is after the last stage.
    """
    kernels = sum(each.kernel for each in _convolutions(spec, spec.image_px))
    source, norms = spec.width, 2 * spec.features
    for stage, units in enumerate(spec.blocks):
        width = spec.width * 2**stage
        norms += 2 * (source + 2 * width) + (units - 1) * 2 * (4 * width + 2 * width)
        source = 4 * width
    return kernels + norms + (spec.features + 1) * spec.num_classes


def resnet_flops(spec: ResNetSpec) -> int:
    """FLOPs of one image forward, two for each multiply-add: convolutions and the head."""
    convolutions = _convolutions(spec, spec.image_px)
    kernels = sum(each.kernel * each.cells for each in convolutions)
    return 2 * (kernels + spec.features * spec.num_classes)


def model_parameters(spec: BackboneSpec) -> int | None:
    """Learned numbers, head included; None for a model that only its library can count."""
    if isinstance(spec, ViTSpec):
        return vit_parameters(spec)
    return resnet_parameters(spec) if isinstance(spec, ResNetSpec) else None


def model_flops(spec: BackboneSpec) -> int | None:
    """FLOPs of one image forward; None for a model that only its library can count."""
    if isinstance(spec, ViTSpec):
        return vit_flops(spec)
    return resnet_flops(spec) if isinstance(spec, ResNetSpec) else None


def vit_flops(spec: ViTSpec, *, seen: int | None = None) -> int:
    """FLOPs of one image forward, two for each multiply-add; in the letters of `vit_parameters`.

    2 (stem + V D N  +  L (4 D^2 T + 2 D M T + 2 T^2 D)  +  D K) for T tokens, none dropped, or
    those of `seen` patches.
    The term in T^2 is attention: half more with relative positions, and along rows and columns
    alone in an axial block, whose other terms are doubled. Pool `map` adds 2 D (D (T + 1) + T + M).
    Norms, softmax, GELU and biases are left out: below 2 % at the sizes of the paper.
    """
    width, length = spec.width, tokens(spec)
    if seen is not None:
        length = spec.leading + seen
    stem = _convolutions(spec.stem, spec.image_px) if spec.stem else []
    convolutions = sum(each.kernel * each.cells for each in stem)
    patches = spec.patches * spec.patch_values * width
    linear = length * (4 * width**2 + 2 * width * spec.mlp_dim) * (2 if spec.axial else 1)
    others = sum(spec.grid) if spec.axial else length
    attention = (3 if spec.position == "relative" else 2) * length * others * width
    pooling = (
        2 * width * (width * (length + 1) + length + spec.mlp_dim) if spec.pool == "map" else 0
    )
    heads = (1 + spec.distillation_token) * width * spec.num_classes
    hidden = width**2 if spec.hidden_head else 0
    blocks = spec.depth * (linear + attention)
    return 2 * (convolutions + patches + blocks + pooling + hidden + heads)


def tokens(spec: ViTSpec) -> int:
    """Length of the sequence: patches, and what comes before them."""
    return spec.leading + spec.patches


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


def activation_bytes(
    spec: ViTSpec | ResNetSpec, *, samples: int, bytes_each: int, recompute: bool = False
) -> int:
    """Rough bytes kept from forward to backward for one micro-batch.

    For each token and block about 8 D + 2 M numbers: both norms' inputs and outputs, queries, keys,
    values, the attention's output, the MLP before and after its GELU; twice that in an axial block.
    Attention itself is computed in tiles and keeps nothing of size T^2, but for relative positions:
    the bias and the weights of each head. A stem, or a ResNet, keeps what goes into each norm and
    comes out.
    With `recompute`, what goes into each block, and one block's own.
    """
    if isinstance(spec, ResNetSpec):
        return samples * _kept_by_resnet(spec, recompute=recompute) * bytes_each
    blocks = spec.depth * (2 if spec.axial else 1)
    numbers = tokens(spec) * blocks * (8 * spec.width + 2 * spec.mlp_dim)
    if spec.position == "relative":
        seen = sum(spec.grid) if spec.axial else tokens(spec)
        numbers += 2 * spec.num_heads * tokens(spec) * seen * spec.depth
    if recompute:
        numbers = numbers // spec.depth + tokens(spec) * spec.depth * spec.width
    if spec.stem is not None:
        convolutions = _convolutions(spec.stem, spec.image_px)
        numbers += 2 * sum(each.out * each.cells for each in convolutions)
    return samples * numbers * bytes_each


def _kept_by_resnet(spec: ResNetSpec, *, recompute: bool) -> int:
    numbers = 2 * sum(each.out * each.cells for each in _convolutions(spec, spec.image_px))
    if not recompute:
        return numbers
    stages = enumerate(spec.blocks)
    seen = sum(
        units * (4 * spec.width << stage) * _cells(spec.image_px, 4 << stage)
        for stage, units in stages
    )
    return numbers // sum(spec.blocks) + seen


def estimate(
    node: Node, graph: Graph, source_bytes: Callable[[SourceSpec | WeightsSource], int]
) -> dict[str, float]:
    """What is known of a stage's cost before it runs.

    - `parameters`: of all that the stage trains, or of the model that it evaluates; a head of
      `ASSUMED_CLASSES` unless the ingest behind it names its classes. Nothing is known of imported
      models and of a library's before they are there: then only the disk of small stages is told.
    - `flops`: of the whole stage, 3 x forward x samples (backward counts twice); only where the
      duration is given in steps. A `search` counts every pair that it tries, and the longest.
    - `memory_bytes`: of each worker: training state and the activations of one micro-batch.
    - `disk_bytes`: ingest and append 2 x source (staged files and shards, an upper bound unless
      images grow when encoded again); import 2 x source (half precision becomes fp32);
      training (keep_last + 1) checkpoints of weights and moments, and the model; `SMALL_BYTES`
      for all others.

    Args:
        node: The stage.
        graph: Where its inputs are looked up.
        source_bytes: Size of a raw corpus.
    """
    spec = node.spec
    if isinstance(spec, CorpusSpec | ImportSpec):
        return {"disk_bytes": 2.0 * source_bytes(spec.source)}
    if isinstance(spec, PretrainSpec | FinetuneSpec):
        return _training(spec, _model(node, graph))
    if isinstance(spec, EvaluateSpec):
        model = _model(graph.node(node.inputs["model"].stage), graph)
        count = None if model is None else model_parameters(model)
        size = {} if count is None else {"parameters": float(count)}
        return size | {"disk_bytes": float(SMALL_BYTES)}
    return {"disk_bytes": float(SMALL_BYTES)}


def _training(spec: PretrainSpec | FinetuneSpec, model: BackboneSpec | None) -> dict[str, float]:
    if not isinstance(model, ViTSpec | ResNetSpec):
        return {}
    if isinstance(model, ViTSpec):
        params = vit_parameters(model) + objective_parameters(spec.objective, model)
        forward = objective_flops(spec.objective, model)
    else:
        params, forward = resnet_parameters(model), resnet_flops(model)
    resources, algorithm = spec.resources, spec.optim.algorithm
    world = spec.worlds()[0]
    zero_stage = resources.zero_stage if resources.engine == "deepspeed" else 0
    state = training_state_bytes(params, algorithm, zero_stage=zero_stage, world=world)
    micro = resources.micro_batch or spec.batch.global_samples // world
    bytes_each = FP32_BYTES if spec.precision == "fp32" else FP32_BYTES // 2
    kept = activation_bytes(
        model, samples=micro, bytes_each=bytes_each, recompute=resources.recompute
    )
    checkpoint = (FP32_BYTES + _moment_bytes(algorithm)) * params
    costs = {
        "parameters": float(params),
        "memory_bytes": state + kept,
        "disk_bytes": float((spec.checkpoint.keep_last + 1) * checkpoint + FP32_BYTES * params),
    }
    steps = _steps(spec)
    if steps is not None:
        costs["flops"] = 3.0 * forward * steps * spec.batch.global_samples
    return costs


def _steps(spec: PretrainSpec | FinetuneSpec) -> int | None:
    """Optimizer steps of the whole stage, None if they depend on the size of the corpus."""
    search = spec.search if isinstance(spec, FinetuneSpec) else None
    if search is None:
        return spec.known_steps()
    return sum(search.steps) * len(search.peak_lr) * search.repeats + max(search.steps)


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

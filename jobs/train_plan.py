"""A training stage with everything decided, and what follows from it: data, model, objective."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.data.feed.mixtures import AnyData, MixedSplit
from pipeline.data.shards.shard_set import AnySplit, ShardSet
from pipeline.model.adapters import add_lora
from pipeline.model.backbone import Backbone
from pipeline.model.building import build, compile_blocks
from pipeline.model.freezing import freeze
from pipeline.model.mae import build_mae
from pipeline.model.masked import build_masked
from pipeline.model.saved import load_model, load_weights
from pipeline.model.transfer import adapt
from pipeline.model.vit import Encoder
from pipeline.training.objectives.common import Objective, Setting
from pipeline.training.objectives.distilled import Distilled
from pipeline.training.objectives.masked import Autoencoding, MaskedPatch
from pipeline.training.objectives.supervised import Supervised
from schemas.backbones import BackboneSpec
from schemas.checkpoint import MODEL_FOLDER
from schemas.manifest import DATASET_FOLDER
from schemas.model import ViTSpec
from schemas.objectives import MaeSpec, MaskedPatchSpec, SupervisedSpec
from schemas.runs import StageRequest
from schemas.spec import digest_of
from schemas.training import FinetuneSpec, PretrainSpec

HEAD_BIASES = ("head.bias", "distillation_head.bias")


@dataclass(frozen=True)
class TrainPlan:
    """A training stage with everything decided; travels to every process."""

    request: StageRequest
    spec: PretrainSpec | FinetuneSpec
    """After a search: with the rate and the steps that it chose."""
    model: BackboneSpec
    attempt: Path
    progress: Path

    largest_micro_batch: int | None = None
    """Samples in one forward on one worker, at most; set once memory was short."""

    def micro_batch(self, world_size: int) -> int:
        """Samples in one forward on one worker of a world; the most, where memory decides."""
        share = self.spec.batch.global_samples // world_size
        given = self.spec.resources.micro_batch
        wanted = given if isinstance(given, int) else share
        limit = min(wanted, self.largest_micro_batch or wanted)
        # Pairs that are mixed stay together, so that a micro-batch is even then.
        unit = 2 if self.spec.augment.mixes else 1
        return next((n for n in range(limit, 0, -1) if share % n == 0 and n % unit == 0), unit)


@dataclass(frozen=True)
class TrainData:
    """What a stage trains on."""

    data: AnyData
    digest: str
    """Of the shard set, or of the list of all that are mixed."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class of each label."""
        return self.data.class_names

    @property
    def first(self) -> AnySplit:
        """The split, or the first of a mixture."""
        return self.data.splits[0] if isinstance(self.data, MixedSplit) else self.data


def open_data(request: StageRequest, spec: PretrainSpec | FinetuneSpec) -> TrainData:
    """The input `data`, one split or a mixture of several."""
    ports = [port for port in spec.inputs() if port.partition("[")[0] == "data"]
    found = [request.inputs[port] for port in ports]
    sets = [ShardSet.open(Path(item.path) / DATASET_FOLDER) for item in found]
    splits = [each.split(item.split or "train") for each, item in zip(sets, found, strict=True)]
    if spec.mixture is None:
        return TrainData(splits[0], sets[0].digest)
    digest = digest_of([each.digest for each in sets])
    return TrainData(MixedSplit(tuple(splits), spec.mixture), digest)


def objective_of(plan: TrainPlan, device: torch.device) -> Objective:
    """What is trained for."""
    spec, objective = plan.spec, plan.spec.objective
    setting = Setting(plan.model, plan.request.seed, device)
    if isinstance(objective, MaskedPatchSpec):
        return MaskedPatch(setting, objective)
    if isinstance(objective, MaeSpec):
        return Autoencoding(setting, objective)
    smoothing = spec.augment.label_smoothing
    if isinstance(objective, SupervisedSpec):
        return Supervised(setting, objective, smoothing)
    labels = Supervised(setting, SupervisedSpec(), smoothing)
    teacher, _ = load_model(Path(plan.request.inputs["teacher"].path) / MODEL_FOLDER)
    return Distilled(setting, objective, labels, teacher.to(device), spec.precision)


def fast_model(plan: TrainPlan) -> Backbone | Encoder:
    """What the engine trains, compiled where the spec wants it; its names are as before."""
    model = trained_model(plan)
    if plan.spec.resources.compile:
        compile_blocks(model)
    return model


def trained_model(plan: TrainPlan) -> Backbone | Encoder:
    """What the engine trains: the model, or its encoder with what the objective adds to it."""
    spec, seed, objective = plan.model, plan.request.seed, plan.spec.objective
    model: Backbone | Encoder
    if isinstance(objective, MaskedPatchSpec) and isinstance(spec, ViTSpec):
        model = build_masked(spec, seed=seed)
    elif isinstance(objective, MaeSpec) and isinstance(spec, ViTSpec):
        model = build_mae(spec, objective.decoder(spec), seed=seed)
    else:
        model = initial_model(plan)
    model.recomputes = plan.spec.resources.recompute
    return model


def initial_model(plan: TrainPlan) -> Backbone:
    """New weights, or those of the input `init` with a new head and the positions resized."""
    model = build(plan.model, seed=plan.request.seed)
    start = plan.request.inputs.get("init")
    if start is not None:
        weights, saved = load_weights(Path(start.path) / MODEL_FOLDER)
        model.load_state_dict(adapt(weights, saved.spec, plan.model))
    if isinstance(plan.spec.objective, SupervisedSpec):
        for name, parameter in model.named_parameters():
            if name in HEAD_BIASES:
                torch.nn.init.constant_(parameter, plan.spec.objective.head_bias)
    narrow(model, plan)
    return model


def narrow(model: Backbone, plan: TrainPlan) -> None:
    """Freeze what the spec wants kept, and put narrow matrices beside it where it wants such."""
    if not isinstance(plan.spec, FinetuneSpec):
        return
    if plan.spec.freeze is not None:
        freeze(model, plan.spec.freeze)
    if plan.spec.lora is not None:
        add_lora(model, plan.spec.lora, seed=plan.request.seed)

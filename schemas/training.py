"""The stage kinds `pretrain` and `finetune`."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from schemas.backbones import AnyChange, AnyModel, libraries_of
from schemas.model import ModelChange, ModelSpec
from schemas.objectives import (
    AnyObjective,
    DistillationSpec,
    LabelledObjective,
    MaeSpec,
    MaskedPatchSpec,
    SupervisedSpec,
)
from schemas.optim import DurationSpec, OptimSpec
from schemas.resources import CheckpointSpec, ResourcesSpec
from schemas.samples import AugmentSpec, BatchSpec, MixturePhase
from schemas.spec import Execution, Input, Semantic
from schemas.stage import SHARD_SETS, StageSpec
from schemas.tuning import FreezeSpec, LoraSpec, SearchSpec
from schemas.validation import ValidationSpec

MODELS = ("pretrain", "finetune", "import")
"""Kinds whose artifact is a model."""


class TrainingSpec(StageSpec):
    """What pre-training and fine-tuning have in common; both run the one loop."""

    data: Input[str | tuple[str, ...]]
    """The shard set to train on, `NAME` (its split `train`) or `NAME@SPLIT`; or a list of several,
    which `mixture` weighs. Their classes are united by name, in the order of the list."""
    mixture: Semantic[tuple[MixturePhase, ...] | None] = None
    """Phases by `from_step`, the first from step 0, for several shard sets; each set is passed over
    and over at its own pace."""
    objective: Semantic[AnyObjective] = SupervisedSpec()
    teacher: Input[str | None] = None
    """The stage whose model is the teacher, for `objective: {type: distillation}`."""
    augment: Semantic[AugmentSpec] = AugmentSpec()
    optim: Semantic[OptimSpec]
    batch: Semantic[BatchSpec]
    duration: Semantic[DurationSpec]
    precision: Semantic[Literal["fp32", "bf16", "fp16"]] = "fp32"
    """Arithmetic of forward and backward; the master weights are fp32. With fp16, for GPUs without
    bf16, the loss is scaled so that small gradients do not vanish."""
    validation: Semantic[ValidationSpec | None] = None
    """Measure the model while it trains; null: not at all."""
    validation_data: Input[str | None] = None
    """Images that nothing is learned from, as `NAME@SPLIT`; with `validation`. Not those that the
    result is told on, where `keep_best` or `patience` choose by them."""
    checkpoint: Execution[CheckpointSpec] = CheckpointSpec()
    resources: Execution[ResourcesSpec] = ResourcesSpec()
    register_as: Execution[str | None] = None
    """Name under which the tracker's registry gets the trained model; null registers nothing."""

    libraries: ClassVar[tuple[str, ...]] = (
        "deepspeed",
        "numpy",
        "pillow",
        "safetensors",
        "scipy",
        "simplejpeg",
        "torch",
    )
    uses_seed: ClassVar[bool] = True
    default_splits: ClassVar[dict[str, str]] = {"data": "train"}

    @model_validator(mode="after")
    def _some_world_can_train(self) -> "TrainingSpec":
        if not self.worlds():
            resources = self.resources
            objection = self._objection(resources.most_workers)
            if not isinstance(resources.workers, int):
                objection = (
                    f"no number of workers from {resources.fewest_workers} to "
                    f"{resources.most_workers} will do; of the last: {objection}"
                )
            raise ValueError(objection)
        return self

    def worlds(self) -> tuple[int, ...]:
        """Every permitted number of workers, the largest first."""
        most, fewest = self.resources.most_workers, self.resources.fewest_workers
        return tuple(n for n in range(most, fewest - 1, -1) if self._objection(n) is None)

    def _objection(self, world: int) -> str | None:
        """Why the batch cannot be shared by `world` workers, None if it can."""
        samples, given = self.batch.global_samples, self.resources.micro_batch
        micro = given if isinstance(given, int) else None
        if samples % world:
            return f"resources.workers {world} must divide batch.global_samples {samples}"
        share = samples // world
        if micro is not None and share % micro:
            return f"resources.micro_batch {micro} must divide a worker's share, {share}"
        if self.augment.mixes and (micro or share) % 2:
            return (
                f"mixup and CutMix mix neighbours, so a micro-batch must be even but is "
                f"{micro or share}: "
                "batch.global_samples over resources.workers, or resources.micro_batch"
            )
        return None

    @model_validator(mode="after")
    def _objective_has_what_it_needs(self) -> "TrainingSpec":
        if isinstance(self.objective, DistillationSpec) != (self.teacher is not None):
            raise ValueError(
                "teacher names the stage whose model teaches: give it with "
                "objective: {type: distillation}, and with no other"
            )
        augment = self.augment
        if not self.objective.uses_labels and (augment.mixes or augment.label_smoothing):
            raise ValueError(
                f"objective {self.objective.type} uses no labels; leave augment.mixup_alpha, "
                "cutmix_alpha and label_smoothing at 0"
            )
        if not self.objective.uses_labels and self.optim.layer_decay is not None:
            raise ValueError(
                f"objective {self.objective.type} trains a decoder that no layer below a head "
                "stands for; leave optim.layer_decay out"
            )
        return self

    @model_validator(mode="after")
    def _validation_has_its_data(self) -> "TrainingSpec":
        if (self.validation is None) != (self.validation_data is None):
            raise ValueError("give validation and validation_data together, or neither")
        if self.validation_data is not None and "@" not in self.validation_data:
            raise ValueError(
                f"validation_data {self.validation_data!r} names no split; "
                f"write {self.validation_data}@SPLIT"
            )
        by_answers = self.validation is not None and self.validation.metric == "top1_ratio"
        if by_answers and not self.objective.uses_labels:
            raise ValueError(
                f"objective {self.objective.type} gives no answers to count; "
                "set validation.metric to loss"
            )
        return self

    @model_validator(mode="after")
    def _mixture_fits_the_data(self) -> "TrainingSpec":
        sets = 1 if isinstance(self.data, str) else len(self.data)
        if self.mixture is None:
            if sets != 1:
                raise ValueError(
                    f"data names {sets} shard sets; name one, or weigh several by mixture, "
                    f"such as [{{from_step: 0, weights: {[1] * max(2, sets)}}}]"
                )
            return self
        _check_phases(self.mixture, sets)
        if self.duration.epochs is not None or self.batch.tail != "drop":
            raise ValueError(
                "a mixture has no epochs of its own: give duration.steps, and no batch.tail"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits_the_run(self) -> "TrainingSpec":
        steps, optim = self.known_steps(), self.optim.in_steps(self.batch.global_samples)
        probe = optim.linear_probe_steps
        if steps is not None and optim.warmup_steps >= steps - probe:
            beside = f" less optim.linear_probe_steps {probe}" if probe else ""
            raise ValueError(
                f"optim.warmup_steps {optim.warmup_steps} must be less than duration.steps "
                f"{steps}{beside}; lower the one or raise the other"
            )
        if steps is not None and optim.warmup_steps + optim.cooldown_steps > steps - probe:
            raise ValueError(
                f"warm-up and cool-down of {optim.warmup_steps} and {optim.cooldown_steps} steps "
                f"do not fit into duration.steps {steps}; lower the ones or raise the other"
            )
        return self

    def known_steps(self) -> int | None:
        """Optimizer steps of the run, where the spec alone says how many."""
        return self.duration.in_steps(self.batch.global_samples).steps

    def in_steps(self) -> Self:
        """The same with nothing said in samples."""
        samples = self.batch.global_samples
        optim, duration = self.optim.in_steps(samples), self.duration.in_steps(samples)
        return self.revise(optim=optim, duration=duration)


def _check_phases(phases: tuple[MixturePhase, ...], sets: int) -> None:
    starts = [phase.from_step for phase in phases]
    if starts[:1] != [0] or sorted(set(starts)) != starts:
        raise ValueError(f"mixture starts at steps {starts}; begin at 0 and go up")
    for phase in phases:
        if len(phase.weights) != sets:
            raise ValueError(
                f"mixture has {len(phase.weights)} weights from step {phase.from_step}, and data "
                f"names {sets} shard sets; give one weight for each"
            )


class PretrainSpec(TrainingSpec):
    """Train a model from random weights on the upstream corpus."""

    kind: Semantic[Literal["pretrain"]] = "pretrain"
    model: Semantic[AnyModel]
    """A ViT, unless `type` says resnet, timm or hf."""
    continues: Input[str | None] = Field(default=None, alias="continue")
    """A pre-training that this one goes on from, weights, moments and step, instead of starting
    over: with the same model, data and batch, and a longer `duration`."""

    revision: ClassVar[int] = 2
    ports: ClassVar[dict[str, tuple[str, ...]]] = {
        "continues": ("pretrain",),
        "data": SHARD_SETS,
        "teacher": MODELS,
        "validation_data": SHARD_SETS,
    }

    @model_validator(mode="after")
    def _has_no_probe(self) -> "PretrainSpec":
        if self.optim.linear_probe_steps:
            raise ValueError(
                "a linear probe learns on features of a model that is trained already; leave "
                "optim.linear_probe_steps out, or take kind: finetune"
            )
        return self

    @model_validator(mode="after")
    def _model_fits_the_objective(self) -> "PretrainSpec":
        if isinstance(self.objective, MaskedPatchSpec | MaeSpec):
            given, kind = self.model, self.objective.type
            other = f"objective {kind} hides patches of a ViT, and model.type is {given.type}"
            vit = given.resolved(num_classes=0) if isinstance(given, ModelSpec) else None
            for sentence in self.objective.conflicts(vit) if vit else [other]:
                raise ValueError(sentence)
        return self

    def needed_libraries(self) -> tuple[str, ...]:
        """With the library of the model, if it is a library's."""
        return (*self.libraries, *libraries_of(self.model))


class FinetuneSpec(TrainingSpec):
    """Train on the downstream labels, from another stage's weights or from scratch."""

    kind: Semantic[Literal["finetune"]] = "finetune"
    objective: Semantic[LabelledObjective] = SupervisedSpec()
    init: Input[str | None]
    """The stage whose weights are the start; null trains from scratch."""
    model: Semantic[AnyChange] = ModelChange()
    """With `init`: another `image_px` (positions are interpolated) and regularisation. Without:
    a whole model, a ViT unless `type` says resnet, timm or hf."""
    freeze: Semantic[FreezeSpec | None] = None
    """Parts of `init` that stay as they are; null: all learn."""
    lora: Semantic[LoraSpec | None] = None
    """Learn narrow matrices beside dense layers of `init` instead of the layers themselves."""
    search: Semantic[SearchSpec | None] = None
    """Replaces `optim.peak_lr` and `duration` by the best pair found."""

    revision: ClassVar[int] = 2
    ports: ClassVar[dict[str, tuple[str, ...]]] = {
        "data": SHARD_SETS,
        "init": MODELS,
        "teacher": MODELS,
        "validation_data": SHARD_SETS,
    }

    @model_validator(mode="after")
    def _search_knows_its_data(self) -> "FinetuneSpec":
        if self.search is not None and self.mixture is not None:
            raise ValueError("search holds out images of one shard set; give no mixture with it")
        return self

    @model_validator(mode="after")
    def _what_is_kept_is_there(self) -> "FinetuneSpec":
        if self.freeze is not None and self.lora is not None:
            raise ValueError("lora freezes all but its own matrices and the head; leave freeze out")
        for name in ("freeze", "lora"):
            if self.init is None and getattr(self, name) is not None:
                raise ValueError(f"{name} keeps weights of init, and init is null; give an init")
        return self

    @model_validator(mode="after")
    def _model_fits_its_start(self) -> "FinetuneSpec":
        if self.init is None:
            self.whole_model()
            return self
        given = self.model.given() if isinstance(self.model, ModelChange) else ("type",)
        fixed = sorted(set(given) - set(ModelChange.FREE_WITH_WEIGHTS))
        if fixed:
            raise ValueError(
                f"model.{fixed[0]} is fixed by the weights of {self.init!r}; "
                f"with init only {', '.join(ModelChange.FREE_WITH_WEIGHTS)} may be given"
            )
        return self

    def needed_libraries(self) -> tuple[str, ...]:
        """With the library of the model, if it is a library's."""
        return (*self.libraries, *libraries_of(self.model))

    def whole_model(self) -> AnyModel:
        """The model of a run from scratch."""
        if not isinstance(self.model, ModelChange):
            return self.model
        return ModelSpec.model_validate(self.model.given())

    def known_steps(self) -> int | None:
        """As for any training; a search finds its own."""
        return None if self.search is not None else super().known_steps()

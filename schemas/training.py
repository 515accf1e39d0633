"""What a user says of training: optimizer, batch, duration, augmentation, resources."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.model import ModelChange, ModelSpec
from schemas.spec import Execution, Input, Semantic, Spec
from schemas.stage import StageSpec


class OptimSpec(Spec):
    """Linear warm-up to `peak_lr`, then the schedule's decay to zero at the last step."""

    algorithm: Semantic[Literal["adamw", "sgd"]] = "adamw"
    peak_lr: Semantic[float] = Field(gt=0)
    """Learning rate at the end of warm-up, for the global batch of the run."""
    warmup_steps: Semantic[int] = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up."""
    schedule: Semantic[Literal["cosine", "linear", "constant"]] = "cosine"
    weight_decay: Semantic[float] = Field(default=0.0, ge=0)
    """Decoupled (AdamW) or in the gradient (SGD); not on biases, norms, position, class token."""
    clip_norm: Semantic[float | None] = Field(default=1.0, gt=0)
    """Largest global gradient norm; null leaves gradients as they are."""
    beta1: Semantic[float] = Field(default=0.9, ge=0, lt=1)
    """AdamW's first moment; SGD's momentum."""
    beta2: Semantic[float] = Field(default=0.999, ge=0, lt=1)
    """AdamW's second moment."""
    eps: Semantic[float] = Field(default=1e-8, gt=0)
    """AdamW's denominator."""


class AugmentSpec(Spec):
    """What happens to a training image; evaluation resizes and centre-crops."""

    crop: Semantic[Literal["none", "inception", "shift"]] = "none"
    """`none`: resize to the input; `inception`: random area and aspect; `shift`: pad and cut."""
    min_area_ratio: Semantic[float] = Field(default=0.05, gt=0, le=1)
    """Smallest share of the image that an `inception` crop covers."""
    shift_ratio: Semantic[float] = Field(default=0.125, ge=0, lt=0.5)
    """Largest `shift`, as a share of the side; the border is repeated."""
    flip: Semantic[bool] = False
    """Mirror every second image, on average."""
    label_smoothing: Semantic[float] = Field(default=0.0, ge=0, lt=1)


class BatchSpec(Spec):
    """How many samples make one optimizer step, on all workers together."""

    global_samples: Semantic[int] = Field(gt=0)


class DurationSpec(Spec):
    """How long to train: exactly one of the two."""

    steps: Semantic[int | None] = Field(default=None, gt=0)
    epochs: Semantic[float | None] = Field(default=None, gt=0)
    """Passes over the training split; whole global batches, the tail of an epoch is dropped."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "DurationSpec":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self


class ResourcesSpec(Spec):
    """Where and how the work is done; nothing here changes what is computed beyond rounding."""

    workers: Execution[int] = Field(default=1, ge=1)
    """Processes of the training world."""
    gpus_per_worker: Execution[float] = Field(default=0, ge=0)
    cpus_per_worker: Execution[float] = Field(default=0.5, gt=0)
    threads: Execution[int] = Field(default=1, ge=1)
    """Torch threads of a worker."""
    loader_threads: Execution[int] = Field(default=2, ge=1)
    """Threads of a worker that decode images."""
    micro_batch: Execution[int | None] = Field(default=None, gt=0)
    """Samples in one forward on one worker. None: the worker's whole share of the global batch."""
    engine: Execution[Literal["deepspeed", "torch"]] = "deepspeed"
    """`torch` is the single-process reference."""
    zero_stage: Execution[Literal[0, 1, 2, 3]] = 1

    @model_validator(mode="after")
    def _torch_is_alone(self) -> "ResourcesSpec":
        if self.engine == "torch" and self.workers > 1:
            raise ValueError(
                "engine torch runs one worker; set workers to 1 or engine to deepspeed"
            )
        return self


class CheckpointSpec(Spec):
    """When training state is written, so that a killed run goes on from there."""

    every_steps: Execution[int] = Field(default=500, ge=1)
    keep_last: Execution[int] = Field(default=2, ge=1)


class SupervisedSpec(Spec):
    """Softmax cross-entropy on the labels."""

    type: Semantic[Literal["supervised"]] = "supervised"


class TrainingSpec(StageSpec):
    """What pre-training and fine-tuning have in common; both run the one loop."""

    data: Input[str]
    """The shard set to train on, `NAME` (its split `train`) or `NAME@SPLIT`."""
    augment: Semantic[AugmentSpec] = AugmentSpec()
    optim: Semantic[OptimSpec]
    batch: Semantic[BatchSpec]
    duration: Semantic[DurationSpec]
    precision: Semantic[Literal["fp32", "bf16"]] = "fp32"
    """Arithmetic of forward and backward; the master weights are fp32."""
    checkpoint: Execution[CheckpointSpec] = CheckpointSpec()
    resources: Execution[ResourcesSpec] = ResourcesSpec()
    register_as: Execution[str | None] = None
    """Name under which the tracker's registry gets the trained model; null registers nothing."""

    libraries: ClassVar[tuple[str, ...]] = ("deepspeed", "numpy", "pillow", "safetensors", "torch")
    uses_seed: ClassVar[bool] = True
    default_splits: ClassVar[dict[str, str]] = {"data": "train"}

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainingSpec":
        world, samples = self.resources.workers, self.batch.global_samples
        micro = self.resources.micro_batch
        if samples % world:
            raise ValueError(
                f"resources.workers {world} must divide batch.global_samples {samples}"
            )
        if micro is not None and (samples // world) % micro:
            raise ValueError(
                f"resources.micro_batch {micro} must divide a worker's share, {samples // world}"
            )
        return self

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "TrainingSpec":
        steps, warmup = self.known_steps(), self.optim.warmup_steps
        if steps is not None and warmup >= steps:
            raise ValueError(
                f"optim.warmup_steps {warmup} must be less than duration.steps {steps}; "
                "lower the one or raise the other"
            )
        return self

    def known_steps(self) -> int | None:
        """Optimizer steps of the run, where the spec alone says how many."""
        return self.duration.steps


class PretrainSpec(TrainingSpec):
    """Train a model from random weights on the upstream corpus."""

    kind: Semantic[Literal["pretrain"]] = "pretrain"
    objective: Semantic[SupervisedSpec] = SupervisedSpec()
    model: Semantic[ModelSpec]

    revision: ClassVar[int] = 1
    ports: ClassVar[dict[str, tuple[str, ...]]] = {"data": ("ingest", "filter")}


class SearchSpec(Spec):
    """Choose learning rate and steps on a held-out part of the training labels."""

    peak_lr: Semantic[tuple[Annotated[float, Field(gt=0)], ...]] = Field(min_length=1)
    steps: Semantic[tuple[Annotated[int, Field(gt=0)], ...]] = Field(min_length=1)
    holdout_ratio: Semantic[float] = Field(default=0.3, gt=0, lt=1)
    """Share of each class held out (at least one image of each)."""
    repeats: Semantic[int] = Field(default=1, ge=1)
    """Independent draws of the held-out part; their accuracies are averaged."""


class FinetuneSpec(TrainingSpec):
    """Train on the downstream labels, from another stage's weights or from scratch."""

    kind: Semantic[Literal["finetune"]] = "finetune"
    init: Input[str | None]
    """The stage whose weights are the start; null trains from scratch."""
    model: Semantic[ModelChange] = ModelChange()
    """With `init` only `image_px` may change (positions are interpolated)."""
    search: Semantic[SearchSpec | None] = None
    """Replaces `optim.peak_lr` and `duration` by the best pair found."""

    revision: ClassVar[int] = 1
    ports: ClassVar[dict[str, tuple[str, ...]]] = {
        "data": ("ingest", "filter"),
        "init": ("pretrain", "finetune"),
    }

    @model_validator(mode="after")
    def _model_fits_its_start(self) -> "FinetuneSpec":
        if self.init is None:
            self.whole_model()
            return self
        fixed = sorted(set(self.model.given()) - {"image_px"})
        if fixed:
            raise ValueError(
                f"model.{fixed[0]} is fixed by the weights of {self.init!r}; "
                "with init only model.image_px may be given"
            )
        return self

    def whole_model(self) -> ModelSpec:
        """The model of a run from scratch."""
        return ModelSpec.model_validate(self.model.given())

    def known_steps(self) -> int | None:
        """As for any training; a search finds its own."""
        return None if self.search is not None else super().known_steps()

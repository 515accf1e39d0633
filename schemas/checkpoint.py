"""What a checkpoint and a saved model say of themselves."""

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from schemas.backbones import BackboneSpec
from schemas.interchange import Layout
from schemas.objectives import Probabilities
from schemas.spec import Semantic, Spec, digest_of

CHECKPOINT_MANIFEST = "MANIFEST.json"
CHECKPOINT_STATE = "state.json"
MODEL_FOLDER = "model"
"""Of an artifact that holds a model."""
MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"


class CheckpointFile(Spec):
    """Size and sha256 of one file of a checkpoint."""

    size_bytes: Semantic[int] = Field(ge=0)
    sha256: Semantic[str]


class CheckpointManifest(Spec):
    """`MANIFEST.json`, written last; a checkpoint that is at odds with it does not count."""

    schema_version: Semantic[Literal[1]] = 1
    files: Semantic[dict[str, CheckpointFile]]
    files_sha256: Semantic[str]
    """Of `files` as canonical JSON: a manifest that is damaged itself blames no other file."""

    @classmethod
    def of(cls, files: dict[str, CheckpointFile]) -> Self:
        """The manifest of these files."""
        return cls(files=files, files_sha256=_digest(files))

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.files_sha256 != _digest(self.files):
            raise ValueError("the manifest is damaged: its files do not have its own sha256")
        return self


def _digest(files: dict[str, CheckpointFile]) -> str:
    return digest_of({name: file.dump() for name, file in files.items()})


class Standing(Spec):
    """How the validations of a run stand."""

    best_step: Semantic[int] = Field(default=0, ge=0)
    """Step of the best one; 0 before the first."""
    best_value: Semantic[float | None] = None
    """Of the metric that they are compared by."""
    no_better: Semantic[int] = Field(default=0, ge=0)
    """Validations since the best one."""


class LossScale(Spec):
    """What the loss is multiplied by before fp16 makes gradients of it, as in torch's GradScaler.

    Halved when gradients were too large for fp16, doubled after 2,000 steps without that.
    """

    factor: Semantic[float] = Field(default=65536.0, ge=1)
    """A power of two."""
    good_steps: Semantic[int] = Field(default=0, ge=0)
    """Since it was changed last."""

    GROWS_AFTER: ClassVar[int] = 2000

    def after_step(self, *, fits: bool) -> "LossScale":
        """The scale one step later; `fits`: the gradients were finite."""
        if not fits:
            return LossScale(factor=max(1.0, self.factor / 2))
        if self.good_steps + 1 == self.GROWS_AFTER:
            return LossScale(factor=2 * self.factor)
        return self.revise(good_steps=self.good_steps + 1)


class RunProgress(Spec):
    """Where a run stands, apart from the tensors."""

    step: Semantic[int] = Field(ge=0)
    """Steps done; 0 for a fresh start."""
    train_loss: Semantic[float | None] = None
    """Mean loss of the global batch of the last step that was finite; null before the first."""
    bad_steps: Semantic[int] = Field(default=0, ge=0)
    """Steps in a row, up to the last one, whose loss or gradients were not finite."""
    rolled_back_to: Semantic[int | None] = None
    """Step whose tensors the run took up again when it was rolled back last."""
    standing: Semantic[Standing] = Standing()
    loss_scale: Semantic[LossScale | None] = None
    """Of the next step; null where the loss is not scaled."""

    @property
    def scale(self) -> float:
        """What the loss of the next step is multiplied by."""
        return 1.0 if self.loss_scale is None else self.loss_scale.factor

    def after_step(self, loss: float, norm: float) -> "RunProgress":
        """The progress one step later.

        Gradients that a smaller scale may make finite are no sign that the run is bad.
        """
        if not math.isfinite(loss):
            return self.revise(step=self.step + 1, bad_steps=self.bad_steps + 1)
        fits = math.isfinite(norm)
        scale = self.loss_scale and self.loss_scale.after_step(fits=fits)
        good = fits or (scale is not None and scale.factor < self.scale)
        if good:
            return self.revise(step=self.step + 1, train_loss=loss, bad_steps=0, loss_scale=scale)
        return self.revise(step=self.step + 1, bad_steps=self.bad_steps + 1)


class CheckpointState(RunProgress):
    """`state.json`: everything but the tensors."""

    schema_version: Semantic[Literal[1]] = 1
    updates: Semantic[int] = Field(ge=0)
    """Of the optimizer since it began, or began anew after a linear probe: the steps whose loss and
    gradients were finite."""
    key: Semantic[str]
    """Key of the stage that is training; a checkpoint of another key is refused."""
    data_digest: Semantic[str]
    global_samples: Semantic[int]
    """Samples of one step."""
    model: Semantic[BackboneSpec]
    world_size: Semantic[int]
    engine: Semantic[str]
    versions: Semantic[dict[str, str]]
    probe_loss: Semantic[float]
    """Loss of the stored probe batch with these weights; checked after a load."""

    def progress(self) -> RunProgress:
        """Where the run stood."""
        return RunProgress(**{name: getattr(self, name) for name in RunProgress.model_fields})


class ModelOrigin(Spec):
    """Where imported weights come from, and what was decided about them."""

    layout: Semantic[Layout]
    files: Semantic[dict[str, CheckpointFile]]
    """Name -> size and sha256 of every file that was read."""
    assumed: Semantic[tuple[str, ...]] = ()
    """What the files do not say and was taken from the layout, as `name value`."""
    dropped: Semantic[tuple[str, ...]] = ()
    """Tensors left out, because they are no part of the model."""
    notes: Semantic[tuple[str, ...]] = ()
    """What was changed on the way in, in sentences."""


class SavedModel(Spec):
    """`model.json`: with the weights beside it, all that a prediction needs."""

    schema_version: Semantic[Literal[1]] = 1
    spec: Semantic[BackboneSpec]
    class_names: Semantic[tuple[str, ...]]
    """Empty where there is no head, or where nobody said what its classes are."""
    probabilities: Semantic[Probabilities] = "softmax"
    """What makes them of the logits: what the model was trained with."""
    trained_steps: Semantic[int] = Field(ge=0)
    """By us; 0 for an imported model."""
    key: Semantic[str | None] = None
    """Of the stage that made it; null where a command did."""
    data_digest: Semantic[str | None] = None
    """Of what it was trained on; null for an imported model."""
    init_digest: Semantic[str | None] = None
    """Content digest of the artifact whose weights were the start."""
    origin: Semantic[ModelOrigin | None] = None
    """Where imported weights come from."""

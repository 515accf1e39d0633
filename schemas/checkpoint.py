"""What a checkpoint and a saved model say of themselves."""

from typing import Literal, Self

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


class CheckpointState(Spec):
    """`state.json`: everything but the tensors."""

    schema_version: Semantic[Literal[1]] = 1
    step: Semantic[int] = Field(ge=0)
    """Steps done."""
    updates: Semantic[int] = Field(ge=0)
    """Of the optimizer: the steps whose loss and gradients were finite."""
    key: Semantic[str]
    """Key of the stage that is training; a checkpoint of another key is refused."""
    data_digest: Semantic[str]
    model: Semantic[BackboneSpec]
    world_size: Semantic[int]
    engine: Semantic[str]
    versions: Semantic[dict[str, str]]
    train_loss: Semantic[float]
    """Mean loss of the global batch of the last step done."""
    probe_loss: Semantic[float]
    """Loss of the stored probe batch with these weights; checked after a load."""


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

"""What a checkpoint and a saved model say of themselves."""

from typing import Literal

from pydantic import Field

from schemas.model import ViTSpec
from schemas.spec import Semantic, Spec

CHECKPOINT_MANIFEST = "MANIFEST.json"
CHECKPOINT_STATE = "state.json"
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


class CheckpointState(Spec):
    """`state.json`: everything but the tensors."""

    schema_version: Semantic[Literal[1]] = 1
    step: Semantic[int] = Field(ge=0)
    """Optimizer steps done."""
    key: Semantic[str]
    """Key of the stage that is training; a checkpoint of another key is refused."""
    data_digest: Semantic[str]
    model: Semantic[ViTSpec]
    world_size: Semantic[int]
    engine: Semantic[str]
    versions: Semantic[dict[str, str]]
    train_loss: Semantic[float]
    """Mean loss of the global batch of the last step done."""
    probe_loss: Semantic[float]
    """Loss of the stored probe batch with these weights; checked after a load."""


class SavedModel(Spec):
    """`model.json`: with the weights beside it, all that a prediction needs."""

    schema_version: Semantic[Literal[1]] = 1
    backbone: Semantic[Literal["vit"]] = "vit"
    spec: Semantic[ViTSpec]
    class_names: Semantic[tuple[str, ...]]
    trained_steps: Semantic[int] = Field(ge=0)
    key: Semantic[str]
    data_digest: Semantic[str]
    init_digest: Semantic[str | None]
    """Content digest of the artifact whose weights were the start."""

"""What `vitrail model` and `vitrail predict` print as JSON."""

from typing import Literal

from pydantic import Field

from schemas.backbones import BackboneSpec
from schemas.checkpoint import CheckpointFile, ModelOrigin
from schemas.interchange import ExportLayout, Layout
from schemas.objectives import Probabilities
from schemas.spec import Semantic, Spec


class ModelDocument(Spec):
    """`vitrail model info --output json`, and of `vitrail model import`."""

    schema_version: Semantic[Literal[1]] = 1
    location: Semantic[str]
    layout: Semantic[Layout]
    spec: Semantic[BackboneSpec]
    parameters: Semantic[int] = Field(ge=0)
    flops: Semantic[int | None] = Field(ge=0)
    """Of one image forward, two for each multiply-add; null for a library's model."""
    class_names: Semantic[tuple[str, ...]]
    probabilities: Semantic[Probabilities] = "softmax"
    """What makes them of the logits."""
    trained_steps: Semantic[int | None] = None
    """None for a file that is not ours."""
    key: Semantic[str | None] = None
    data_digest: Semantic[str | None] = None
    init_digest: Semantic[str | None] = None
    origin: Semantic[ModelOrigin | None] = None
    """Of weights from elsewhere."""


class ExportedModel(Spec):
    """`vitrail model export --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    location: Semantic[str]
    layout: Semantic[ExportLayout]
    out: Semantic[str]
    files: Semantic[dict[str, CheckpointFile]]
    notes: Semantic[tuple[str, ...]]
    """What the layout does not carry."""


class CardArtifact(Spec):
    """One step of a model's lineage."""

    artifact: Semantic[str]
    stage: Semantic[str]
    kind: Semantic[str]
    digest: Semantic[str | None]
    """Of its content; None where the artifact is gone."""
    reads: Semantic[dict[str, str]]
    """Port -> artifact."""


class CardMeasurement(Spec):
    """Figures of a stage that measured the model."""

    artifact: Semantic[str]
    stage: Semantic[str]
    data: Semantic[str]
    metrics: Semantic[dict[str, float]]


class ModelCard(Spec):
    """`vitrail model card --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    model: Semantic[ModelDocument]
    lineage: Semantic[tuple[CardArtifact, ...]]
    """The model's own artifact first, then what it was made from; empty without a store."""
    training: Semantic[dict[str, str]]
    """Settings of the stage by dotted name."""
    metrics: Semantic[dict[str, float]]
    """Of the training itself."""
    measured: Semantic[tuple[CardMeasurement, ...]]
    environment: Semantic[dict[str, str]]


class Guess(Spec):
    """A class and its probability."""

    class_name: Semantic[str]
    probability: Semantic[float] = Field(ge=0, le=1)


class ImagePrediction(Spec):
    """What a model says of one image."""

    image: Semantic[str]
    top: Semantic[tuple[Guess, ...]]
    """Most probable first; empty for a model without a head."""
    overlay: Semantic[str | None]
    """Picture of where the model looks; None where its attention cannot be drawn."""


class PredictDocument(Spec):
    """`vitrail predict --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    location: Semantic[str]
    attention: Semantic[str]
    """What the overlays show."""
    images: Semantic[tuple[ImagePrediction, ...]]
    notes: Semantic[tuple[str, ...]]

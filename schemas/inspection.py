"""What `vitrail data` prints as JSON."""

from typing import Literal

from pydantic import Field

from schemas.spec import Semantic, Spec


class SplitFacts(Spec):
    """One split of a shard set."""

    split: Semantic[str]
    rows: Semantic[int] = Field(ge=0)
    """Live rows."""
    removed: Semantic[int] = Field(ge=0)
    """Rows in the shards that readers leave out."""
    shards: Semantic[int] = Field(ge=0)
    bytes: Semantic[int] = Field(ge=0)
    """Of the shard files."""
    images_of_class: Semantic[dict[str, int]]
    """Class -> stored rows, removed ones included."""


class SetDocument(Spec):
    """`vitrail data inspect --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    location: Semantic[str]
    digest: Semantic[str]
    """Of the manifest."""
    record_version: Semantic[int]
    order_version: Semantic[int]
    class_names: Semantic[tuple[str, ...]]
    splits: Semantic[tuple[SplitFacts, ...]]
    rejections: Semantic[dict[str, int]]
    """Reason -> source files that are in no shard."""
    removed: Semantic[dict[str, int]]
    """Reason -> rows taken out."""
    parents: Semantic[tuple[str, ...]]
    transform: Semantic[dict[str, str]]
    figures: Semantic[tuple[str, ...]]
    """Files that were drawn."""


class VerifyDocument(Spec):
    """`vitrail data verify --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    location: Semantic[str]
    digest: Semantic[str | None]
    """None where the manifest itself is damaged."""
    shards: Semantic[int]
    bytes: Semantic[int]
    faults: Semantic[tuple[str, ...]]
    """One sentence for each file that is not what was written."""


class ExportDocument(Spec):
    """`vitrail data export --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    location: Semantic[str]
    digest: Semantic[str]
    form: Semantic[str]
    out: Semantic[str]
    splits: Semantic[tuple[str, ...]]
    images: Semantic[int]


class TakenImage(Spec):
    """One sample of a step, in the order of the global batch."""

    uid: Semantic[str]
    class_name: Semantic[str]
    source: Semantic[str]
    data: Semantic[str]
    """STAGE@SPLIT that it stands in."""
    epoch: Semantic[int]
    position: Semantic[int]
    """In that epoch's order."""


class StepDocument(Spec):
    """`vitrail data which --step --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    stage: Semantic[str]
    step: Semantic[int]
    steps: Semantic[int]
    """Of the whole run."""
    images: Semantic[tuple[TakenImage, ...]]


class ImageSteps(Spec):
    """One place where an image stands, and when it is taken from there."""

    data: Semantic[str]
    class_name: Semantic[str]
    source: Semantic[str]
    removed: Semantic[bool]
    steps: Semantic[tuple[int, ...]]


class ImageDocument(Spec):
    """`vitrail data which --uid --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    stage: Semantic[str]
    uid: Semantic[str]
    steps: Semantic[int]
    """Of the whole run."""
    found: Semantic[tuple[ImageSteps, ...]]

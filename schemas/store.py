"""Documents about the store: what was found in its bytes, what is in nobody's use, what is kept."""

from typing import Literal

from pydantic import Field

from schemas.artifacts import StageResult
from schemas.spec import Semantic, Spec

Part = Literal["result", "attempt", "progress", "remains"]
"""Of an artifact: what was committed last; another try at it; what a later try would go on from; or
what a killed process left half written."""
Sweep = Literal["trash", "delete", "take back", "in the trash"]
"""What a collection does with a part: `in the trash` waits there for its day."""


class FileFault(Spec):
    """A file of the store that is not what was written."""

    artifact: Semantic[str]
    file: Semantic[str]
    """Path or URI."""
    expected: Semantic[str]
    """`12 bytes`, `sha256 0123...`, or a sentence's end such as `the manifest committed`."""
    found: Semantic[str]
    """Likewise; `nothing` where there is no such file."""

    def __str__(self) -> str:
        """One sentence."""
        if self.found == "nothing":
            return f"{self.file} is missing"
        if self.found.endswith("bytes"):
            return f"{self.file} has {self.found}, not {self.expected}"
        if self.found.startswith("sha256"):
            return f"{self.file} has other bytes"
        return f"{self.file} is not {self.expected}"


class VerifyDocument(Spec):
    """`vitrail verify --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    store: Semantic[str]
    artifacts: Semantic[int] = Field(ge=0)
    files: Semantic[int] = Field(ge=0)
    size_bytes: Semantic[int] = Field(ge=0)
    """Read and compared."""
    faults: Semantic[tuple[FileFault, ...]]


class TrashNote(Spec):
    """`trash/<artifact>/<attempt>.json`: out of sight, its bytes still in their place."""

    schema_version: Semantic[Literal[1]] = 1
    part: Semantic[Part]
    reason: Semantic[str]
    at: Semantic[str]
    """ISO 8601, UTC."""
    result: Semantic[StageResult | None]
    """What is put back when the artifact is wanted again."""


class Garbage(Spec):
    """A part of an artifact that nobody needs."""

    artifact: Semantic[str]
    part: Semantic[Part]
    name: Semantic[str]
    """Of the attempt, or of the file."""
    reason: Semantic[str]
    sweep: Semantic[Sweep]
    size_bytes: Semantic[int] = Field(ge=0)

    @property
    def kind(self) -> str:
        """Kind of the stage that made it."""
        return self.artifact.rpartition("-")[0]


class GcDocument(Spec):
    """`vitrail gc --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    store: Semantic[str]
    applied: Semantic[bool]
    kept_artifacts: Semantic[int] = Field(ge=0)
    garbage: Semantic[tuple[Garbage, ...]]


class PinDocument(Spec):
    """`pins/<artifact>.json`, and `vitrail gc --pin | --unpin | --restore --output json`."""

    schema_version: Semantic[Literal[1]] = 1
    artifact: Semantic[str]
    done: Semantic[Literal["pinned", "unpinned", "restored"]]
    at: Semantic[str]
    """ISO 8601, UTC."""

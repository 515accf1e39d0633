"""What a page is made from: artifacts, and documents whose numbers remember where they stand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.evaluation.tables import read_document
from schemas.artifacts import StageRecord
from schemas.report_page import RECORD_FILE, Number, Trace, Unit
from schemas.runs import InputArtifact
from schemas.spec import Spec


@dataclass(frozen=True)
class Made:
    """An artifact of the store, with the record of how it was made."""

    artifact: str
    digest: str
    path: Path
    """Folder of its files."""
    record: StageRecord
    costs: Mapping[str, float] = field(default_factory=dict)
    """`parameters` and `flops`, as far as they can be counted."""


@dataclass(frozen=True)
class Origin:
    """How the artifacts of a page came to be."""

    experiment: str
    run: str
    made: Sequence[Made]
    """The artifacts given to the report and all their ancestors, each after all that it reads."""
    spec_yaml: str = ""
    """The experiment as a file; empty where nobody kept it."""


@dataclass(frozen=True)
class Document:
    """A JSON document of an artifact."""

    artifact: str
    file: str
    content: Any

    @classmethod
    def read(cls, source: InputArtifact, file: str, kind: type[Spec]) -> "Document":
        """Read and check a document.

        Raises:
            IntegrityError: If it is missing or is not what its schema says.
        """
        path = Path(source.path) / file
        read_document(path, kind)
        return cls(source.artifact, file, json.loads(path.read_bytes()))

    def at(self, *path: str | int) -> Any:
        """What stands below these names and indices."""
        found = self.content
        for part in path:
            found = found[part]
        return found

    def trace(self, *path: str | int) -> Trace:
        """Where that is."""
        return Trace(artifact=self.artifact, file=self.file, where=pointer(*path))

    def number(self, *path: str | int, unit: Unit, label: str = "") -> Number:
        """The number that stands there."""
        return Number(value=self.at(*path), unit=unit, traces=(self.trace(*path),), label=label)


def record_of(made: Made) -> Document:
    """The record of an artifact as a document."""
    return Document(made.artifact, RECORD_FILE, made.record.dump())


def metrics_of(source: InputArtifact) -> Document:
    """The final figures of an artifact, which stand in its record."""
    return Document(source.artifact, RECORD_FILE, {"metrics": source.metrics})


def pointer(*path: str | int) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def of_kinds(sources: Sequence[InputArtifact], *kinds: str) -> list[InputArtifact]:
    """The artifacts of these kinds, in their order."""
    return [source for source in sources if source.kind in kinds]

"""What the store holds for each stage: key record, artifact manifest, result."""

from typing import Any, Literal

from pydantic import Field

from schemas.spec import Semantic, Spec, digest_of

KEY_SCHEMA = "stagekey/1"

FILES_FOLDER = "files"
"""Folder of an attempt that holds what its stage writes; the store's documents lie beside it."""
LOGS_FOLDER = "logs"
"""Folder of those files that are kept but are not content: not in the manifest."""
STATE_FOLDER = "state"
"""Likewise, for checkpoints to go on from: how they are laid out follows the world that wrote them,
and each has a manifest of its own."""


class KeyRecord(Spec):
    """Everything that identifies the work of a stage; its digest is the key."""

    key_schema: Semantic[Literal["stagekey/1"]] = "stagekey/1"
    kind: Semantic[str]
    revision: Semantic[int]
    fields: Semantic[dict[str, Any]]
    """The semantic fields of the stage's spec."""
    inputs: Semantic[dict[str, str]]
    """Port -> content digest of the artifact read, `@split` appended; `source` -> a fingerprint."""
    libraries: Semantic[dict[str, str]]
    """Distribution -> version, of those that shape the bytes."""
    seed: Semantic[int | None]

    def key(self) -> str:
        """The stage key, 64 hex digits."""
        return digest_of(self.dump())


class ArtifactFile(Spec):
    """One file of an artifact."""

    path: Semantic[str]
    """Relative to the folder of the attempt's files, with forward slashes."""
    size_bytes: Semantic[int] = Field(ge=0)
    sha256: Semantic[str]
    mtime_ns: Semantic[int]
    """As committed: a cheap first look before reuse. Not part of the digest."""


class ArtifactManifest(Spec):
    """`manifest.json` of an attempt: its content files (all outside `logs/` and `state/`)."""

    schema_version: Semantic[Literal[1]] = 1
    files: Semantic[tuple[ArtifactFile, ...]]

    def content_digest(self) -> str:
        """Identity of the artifact's content, whatever made it and when."""
        return digest_of([[file.path, file.size_bytes, file.sha256] for file in self.files])


class Environment(Spec):
    """Where an artifact was made; recorded, never keyed."""

    python: Semantic[str]
    platform: Semantic[str]
    cpu: Semantic[str]
    hostname: Semantic[str]
    packages: Semantic[dict[str, str]]
    code_digest: Semantic[str]
    """Digest of `code_files`."""
    code_files: Semantic[dict[str, str]]
    """First-party source file that the stage uses -> sha256."""
    git_commit: Semantic[str | None]
    git_dirty: Semantic[bool | None]


class StageRecord(Spec):
    """`record.json` of an attempt: the whole story of one artifact."""

    schema_version: Semantic[Literal[1]] = 1
    experiment: Semantic[str]
    stage: Semantic[str]
    key: Semantic[str]
    key_record: Semantic[KeyRecord]
    spec: Semantic[dict[str, Any]]
    """The stage's spec as resolved, execution fields included."""
    input_artifacts: Semantic[dict[str, str]]
    """Port -> the artifact it read, as `<kind>-<key12>`."""
    environment: Semantic[Environment]
    run: Semantic[str]
    started_at: Semantic[str]
    """ISO 8601, UTC."""
    seconds: Semantic[float] = Field(ge=0)
    metrics: Semantic[dict[str, float]]
    """Final figures of the stage, `split/name_unit` -> value."""


class StageResult(Spec):
    """`result.json`, the commit point: created exactly once for a key, the first one wins."""

    schema_version: Semantic[Literal[1]] = 1
    kind: Semantic[str]
    key: Semantic[str]
    attempt: Semantic[str]
    digest: Semantic[str]
    """Content digest of the artifact."""
    manifest_sha256: Semantic[str]
    metrics: Semantic[dict[str, float]]
    seconds: Semantic[float] = Field(ge=0)
    committed_at: Semantic[str]
    """ISO 8601, UTC."""

    @property
    def artifact(self) -> str:
        """Name of the artifact, `<kind>-<key12>`."""
        return artifact_name(self.kind, self.key)


def artifact_name(kind: str, key: str) -> str:
    """Folder of a key in the store."""
    return f"{kind}-{key[:12]}"

"""The key of a stage, and what changed between two of them."""

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.dag.graph import StageNode
from schemas.artifacts import KeyRecord
from schemas.runs import Change
from schemas.spec import semantic_fields


def key_record(
    node: StageNode,
    input_digests: Mapping[str, str],
    *,
    fingerprint: str | None,
    libraries: Mapping[str, str],
) -> KeyRecord:
    """Everything that identifies the work of a stage.

    Args:
        node: The stage.
        input_digests: Port -> content digest of the artifact that it reads, for every port.
        fingerprint: Of the raw source, for a stage that has one.
        libraries: Distribution -> version, for the distributions that shape the stage's bytes.
    """
    inputs = {port: _input_text(node, port, input_digests[port]) for port in node.inputs}
    if fingerprint is not None:
        inputs["source"] = fingerprint
    return KeyRecord(
        kind=node.kind,
        revision=node.spec.revision,
        fields=semantic_fields(node.spec),
        inputs=inputs,
        libraries=dict(libraries),
        seed=node.seed if node.spec.uses_seed else None,
    )


def _input_text(node: StageNode, port: str, digest: str) -> str:
    """`[name=]digest[@split]`."""
    stage, split = node.inputs[port]
    named = f"{stage}={digest}" if node.spec.shows_names else digest
    return f"{named}@{split}" if split else named


def digest_in(text: str) -> str:
    """The digest in one of a key record's inputs."""
    return text.rpartition("=")[2].partition("@")[0]


def diff(old: KeyRecord, new: KeyRecord) -> tuple[Change, ...]:
    """What differs, field by field: of the spec first, then inputs, libraries, revision, seed.

    Of two kinds only the kind is told, because their fields mean different things.
    """
    if old.kind != new.kind:
        return (Change(field="kind", before=old.kind, after=new.kind),)
    return tuple(
        Change(field=name, before=before, after=after)
        for name, before, after in (
            *_differences("", old.fields, new.fields),
            *_differences("inputs", old.inputs, new.inputs),
            *_differences("libraries", old.libraries, new.libraries),
            *_differences("revision", old.revision, new.revision),
            *_differences("seed", old.seed, new.seed),
            *_differences("key_schema", old.key_schema, new.key_schema),
        )
    )


def _differences(name: str, before: Any, after: Any) -> Iterable[tuple[str, Any, Any]]:
    """Leaves of nested mappings that differ; what is absent counts as None."""
    if _as_mapping(before, after) and _as_mapping(after, before):
        before, after = before or {}, after or {}
        for key in dict.fromkeys((*after, *before)):
            dotted = f"{name}.{key}" if name else key
            yield from _differences(dotted, before.get(key), after.get(key))
    elif before != after:
        yield name, before, after


def _as_mapping(value: Any, other: Any) -> bool:
    """A mapping, or nothing where the other side is a mapping with something in it."""
    return isinstance(value, dict) or (value is None and isinstance(other, dict) and bool(other))

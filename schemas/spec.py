"""What every spec is: frozen, closed, canonical, each field tagged by what its change means."""

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


class Tag(Enum):
    """What a field is to the key of its stage; a test refuses a field without a tag."""

    SEMANTIC = "semantic"
    """Shapes the result: it is in the key."""
    EXECUTION = "execution"
    """Shapes how the result is made: recorded, so that a run can be reproduced, but not keyed."""
    INPUT = "input"
    """Names another stage: the content digest of what that stage made is keyed, not its name."""


T = TypeVar("T")
Semantic = Annotated[T, Tag.SEMANTIC]
Execution = Annotated[T, Tag.EXECUTION]
Input = Annotated[T, Tag.INPUT]


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces, shortest floats; NaN and infinity refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_of(value: object) -> str:
    """sha256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class Spec(BaseModel):
    """An immutable, fully resolved description; equal content means equal digest."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        # Some words that users write are Python's own, such as `continue`.
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """Validate plain data as it comes from YAML or JSON (lists for tuples are accepted)."""
        return cls.model_validate_json(json.dumps(data))

    def dump(self) -> dict[str, Any]:
        """Plain data, ready for JSON: the inverse of `parse`."""
        return self.model_dump(mode="json")

    def revise(self, **changes: Any) -> Self:
        """A copy with `changes` applied and every rule checked again."""
        return type(self).model_validate({**dict(self), **changes})


def tag_of(field: FieldInfo) -> Tag | None:
    """The tag of a field, or None where its author forgot it."""
    return next((mark for mark in field.metadata if isinstance(mark, Tag)), None)


def semantic_fields(spec: Spec) -> dict[str, Any]:
    """The part of `spec` that belongs in a key, as plain data, nested specs likewise reduced."""
    fields = type(spec).model_fields
    return {
        name: _semantic_value(getattr(spec, name))
        for name, field in fields.items()
        if tag_of(field) is Tag.SEMANTIC
    }


def _semantic_value(value: Any) -> Any:
    if isinstance(value, Spec):
        return semantic_fields(value)
    if isinstance(value, tuple | list):
        return [_semantic_value(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _semantic_value(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return value.value
    return value

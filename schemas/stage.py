"""What all stage kinds share: which fields name other stages, and what their keys hold."""

import re
from typing import ClassVar, NamedTuple

from schemas.spec import Spec, Tag, tag_of

_NAME = r"[A-Za-z][A-Za-z0-9_-]*"
SHARD_SETS = ("ingest", "filter", "append", "remove")
"""Kinds whose artifact is a shard set."""
STAGE_NAME = re.compile(rf"^{_NAME}$")
_REFERENCE = re.compile(rf"^(?P<stage>{_NAME}(\[[^\]@]*\])?)(@(?P<split>[A-Za-z0-9_-]+))?$")


class StageRef(NamedTuple):
    """A stage named by another, and the split that is meant, if one is."""

    stage: str
    split: str | None

    def __str__(self) -> str:
        """As a user writes it."""
        return f"{self.stage}@{self.split}" if self.split else self.stage


def parse_reference(text: str) -> StageRef:
    """Read `NAME` or `NAME@SPLIT`.

    Raises:
        ValueError: If the text is of neither form.
    """
    match = _REFERENCE.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a stage reference; write NAME or NAME@SPLIT")
    return StageRef(match["stage"], match["split"])


class StageSpec(Spec):
    """Base of the typed stage kinds; a subclass adds `kind`, its fields and its facts."""

    revision: ClassVar[int]
    """Raised by hand when the meaning of the kind changes; part of every key."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version shapes the bytes of the artifact; part of every key."""
    uses_seed: ClassVar[bool] = False
    """Whether the experiment's seed is part of the key."""
    ports: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Field that names stages -> the kinds it accepts."""
    default_splits: ClassVar[dict[str, str]] = {}
    """Port -> the split that is meant where the reference names none."""
    fixed_splits: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Port -> the splits that are read through it always; a reference there names none."""
    whole_sets: ClassVar[tuple[str, ...]] = ()
    """Ports that read all splits of a shard set; a reference there names none."""
    shows_names: ClassVar[bool] = False
    """Whether the names of the stages that it reads stand in what it makes; then they are keyed."""

    def needed_libraries(self) -> tuple[str, ...]:
        """`libraries`, and what this very spec needs besides."""
        return self.libraries

    def outside(self) -> Spec | None:
        """What the stage reads that no other stage made; its fingerprint is part of the key."""
        return getattr(self, "source", None)

    def inputs(self) -> dict[str, StageRef]:
        """Port -> the stage it reads; the ports of a list are numbered, `against[0]`."""
        found: dict[str, StageRef] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if tag_of(field) is not Tag.INPUT or value is None:
                continue
            if isinstance(value, str):
                found[name] = self._reference(name, value)
                continue
            for index, item in enumerate(value):
                found[f"{name}[{index}]"] = self._reference(name, item)
        return found

    def _reference(self, port: str, text: str) -> StageRef:
        reference = parse_reference(text)
        return StageRef(reference.stage, reference.split or self.default_splits.get(port))

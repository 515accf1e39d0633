"""Dotted paths into an experiment: how profiles, `--set` and matrix axes name what they change."""

from collections.abc import Collection
from typing import Any

from schemas.errors import SpecError
from schemas.words import nearest

Path = tuple[str | int, ...]
"""Keys and list positions from the root of the experiment's plain data."""

ROOT_FIELDS = ("seed", "name", "matrix")
"""What an override may name besides `STAGE.field...`."""


def spec_path(path: Path) -> str:
    """A path as people write it: `stages.clean.against[0]`."""
    text = ""
    for segment in path:
        text += f"[{segment}]" if isinstance(segment, int) else f".{segment}"
    return text.lstrip(".") or "the experiment"


def parse_path(dotted: str, *, stages: Collection[str], where: str) -> Path:
    """The place in the experiment's plain data that an override names.

    Raises:
        SpecError: If it names neither a field of a stage nor one of `ROOT_FIELDS`.
    """
    first, *rest = dotted.split(".")
    if first == "matrix" and rest:
        return "matrix", ".".join(rest)  # an axis is itself a dotted path
    if not all((first, *rest)):
        raise SpecError(f"{dotted!r} has an empty part; write STAGE.field.subfield", where=where)
    if first in stages:
        if not rest:
            raise SpecError(f"{dotted!r} is a stage; name a field of it", where=where)
        return "stages", first, *rest
    if first not in ROOT_FIELDS:
        raise SpecError(_unknown(first, [*stages, *ROOT_FIELDS]), where=where)
    if rest:
        raise SpecError(f"{first!r} has no fields; {dotted!r} cannot be set", where=where)
    return (first,)


def _unknown(word: str, allowed: list[str]) -> str:
    meant = nearest(word, allowed)
    question = f" (did you mean {meant!r}?)" if meant else ""
    return f"there is no stage {word!r}{question}; allowed are {', '.join(allowed)}"


def set_at(data: dict[str, Any], path: Path, value: Any, *, where: str) -> None:
    """Put `value` at `path`, in place; what stands there goes whole, mappings above are created.

    Raises:
        SpecError: If something that is not a mapping stands on the way.
    """
    *parents, last = path
    here = data
    for depth, segment in enumerate(parents, start=1):
        if here.get(str(segment)) is None:
            here[str(segment)] = {}
        here = here[str(segment)]
        if not isinstance(here, dict):
            raise SpecError(
                f"{spec_path(path[:depth])} is {here!r}, which has no field {path[depth]!r}",
                where=where,
            )
    here[str(last)] = value

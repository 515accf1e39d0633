"""`${corpus.source}`: a value that repeats another of the same file; one override serves both.

Only a whole value can be a reference. References are followed after profile and `--set`, and before
the matrix, which therefore changes the place that it names and no other.
"""

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from pipeline.dag.overrides import Path, parse_path
from schemas.errors import SpecError

_REFERENCE = re.compile(r"^\$\{([^}]*)\}$")


def resolve_references(data: dict[str, Any], *, place: Callable[[Path], str]) -> dict[str, Any]:
    """The same data with every reference replaced by a copy of what it names.

    Raises:
        SpecError: If a reference names nothing, or leads back to itself.
    """
    resolved = _resolve(data.get("stages", {}), ("stages",), data, place, ())
    return {**data, "stages": resolved}


def _resolve(
    value: Any,
    at: Path,
    data: dict[str, Any],
    place: Callable[[Path], str],
    trail: tuple[Path, ...],
) -> Any:
    if isinstance(value, dict):
        return {k: _resolve(v, (*at, k), data, place, trail) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v, (*at, i), data, place, trail) for i, v in enumerate(value)]
    match = _REFERENCE.match(value) if isinstance(value, str) else None
    if match is None:
        return value
    target = parse_path(match[1], stages=data.get("stages", {}), where=place(at))
    if target in trail:
        raise SpecError(f"{value} leads back to itself", where=place(at))
    found = _value_at(data, target, reference=value, where=place(at))
    return _resolve(deepcopy(found), target, data, place, (*trail, target))


def _value_at(data: Any, path: Path, *, reference: str, where: str) -> Any:
    for segment in path:
        if not isinstance(data, dict) or segment not in data:
            raise SpecError(
                f"{reference} names nothing: there is no {segment!r} there; "
                "write ${STAGE.field} for a value that the file or an override sets",
                where=where,
            )
        data = data[segment]
    return data

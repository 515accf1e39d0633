"""Values of a label column as class names, and what to say of a column that is not there."""

from collections.abc import Sequence
from typing import Any

from schemas.errors import DataError, SpecError
from schemas.words import nearest

MISSING_LABEL = "missing_label"
"""Reason of rejection: the image is there, its class is not."""


def class_name_of(value: Any, where: str) -> str | None:
    """A text without the blanks around it, or a whole number in digits; None where none is given.

    Raises:
        DataError: If it is neither; `where` names the column and row.
    """
    if value is None:
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value != value:  # noqa: PLR0124  # NaN: how tables say none
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    what = "a list" if isinstance(value, list | tuple) else f"{value!r}"
    several = "; several labels for one image are not supported" if what == "a list" else ""
    raise DataError(
        f"{where} holds {what}; a label is a text or a whole number{several}",
        hint="name a column with one class for each image",
    )


def need_column(name: str, *, columns: Sequence[str], place: str, where: str) -> None:
    """Refuse a column that a table does not have, with the nearest that it has.

    Raises:
        SpecError: If it is not among `columns`.
    """
    if name in columns:
        return
    near = nearest(name, list(columns))
    raise SpecError(
        f"{place} has no column {name!r}; it has {', '.join(columns[:20])}"
        + (f" (did you mean {near!r}?)" if near else ""),
        where=where,
    )

"""Small builders of tables."""

from collections.abc import Sequence

from schemas.report_page import Cell, Column, Number, Row, Trace, Unit


def text(words: str) -> Cell:
    """A cell of words."""
    return Cell(text=words)


def numbers(*shown: Number, between: str = ", ") -> Cell:
    """A cell of numbers; a dash where there are none."""
    return Cell(numbers=shown, between=between) if shown else Cell(text="-")


def interval(low: Number, high: Number) -> Cell:
    """From the low to the high end."""
    return Cell(numbers=(low, high), between=" to ")


def row(cells: Sequence[Cell], *artifacts: str, marked: bool = False) -> Row:
    """A row of the artifacts of its numbers, and of `artifacts` besides."""
    traced = [it.artifact for cell in cells for number in cell.numbers for it in number.traces]
    return Row(
        cells=tuple(cells), artifacts=tuple(dict.fromkeys([*artifacts, *traced])), marked=marked
    )


def names(*titles: str) -> tuple[Column, ...]:
    """Columns of names that a user gave."""
    return tuple(Column(title=title, kind="name") for title in titles)


def words(*titles: str) -> tuple[Column, ...]:
    """Columns of words."""
    return tuple(Column(title=title) for title in titles)


def amounts(*titles: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(title=title, kind="number") for title in titles)


def main(title: str) -> tuple[Column, ...]:
    """The column of numbers that the table is about."""
    return (Column(title=title, kind="main"),)


def computed(
    value: float, unit: Unit, traces: Sequence[Trace], *, how: str, label: str = ""
) -> Number:
    """A number that follows from others."""
    return Number(value=value, unit=unit, traces=tuple(traces), how=how, label=label)

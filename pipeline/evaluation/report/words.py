"""How the numbers of a page read; the same on the page and in Markdown."""

from collections.abc import Callable, Mapping

from schemas.report_page import Cell, Number, Unit

_NBSP = "\N{NO-BREAK SPACE}"


def number_text(number: Number) -> str:
    """A number in its unit, without its label."""
    return _UNITS[number.unit](number.value)


def cell_text(cell: Cell) -> str:
    """A cell as plain text."""
    return cell.text or cell.between.join(
        f"{it.label} {number_text(it)}".strip() for it in cell.numbers
    )


def in_words(name: str) -> str:
    """A name of the code, such as `nearest_neighbour`, for people."""
    return name.replace("_", " ")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}{_NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_NBSP}min {rest:02}{_NBSP}s"
    return f"{minutes // 60}{_NBSP}h {minutes % 60:02}{_NBSP}min"


def _scaled(value: float, unit: str, *, base: int, prefixes: tuple[str, ...]) -> str:
    power = 0
    while abs(value) >= base and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g}{_NBSP}{prefixes[power]}{unit}"


_UNITS: Mapping[Unit, Callable[[float], str]] = {
    "count": lambda value: f"{value:,.0f}",
    "ratio": lambda value: f"{100 * value:.1f}{_NBSP}%",
    "points": lambda value: f"{100 * value:+.1f}",
    "loss": lambda value: f"{value:.4f}",
    "plain": lambda value: f"{value:.4g}",
    "seconds": _duration,
    "bytes": lambda value: _scaled(
        value, "B", base=1024, prefixes=("", "Ki", "Mi", "Gi", "Ti", "Pi")
    ),
    "flops": lambda value: _scaled(
        value, "FLOP", base=1000, prefixes=("", "k", "M", "G", "T", "P", "E")
    ),
    "per_second": lambda value: f"{value:,.0f}/s",
}

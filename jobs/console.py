"""How Vitrail speaks: data on stdout, progress and errors on stderr, tables for people."""

import json
import os
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from schemas.errors import VitrailError
from schemas.runs import PlanDocument, RunDocument
from schemas.spec import Spec

_STATUS_STYLE = {
    "ran": "green",
    "run": "green",
    "reused": "cyan",
    "reuse": "cyan",
    "pending": "yellow",
    "skipped": "yellow",
    "skip": "yellow",
    "paused": "yellow",
    "failed": "bold red",
    "ok": "green",
    "fix": "bold red",
}

_PLAIN_WIDTH = 400

_TOLD_FILES = 3
"""Files that a note names; the rest are counted."""


def stdout() -> Console:
    """For data that a person asked for."""
    return _console(is_terminal=sys.stdout.isatty(), stderr=False)


def stderr() -> Console:
    """For progress and errors."""
    return _console(is_terminal=sys.stderr.isatty(), stderr=True)


def _console(*, is_terminal: bool, stderr: bool) -> Console:
    # Lines that go to a file or another program are never broken at a width nobody set.
    width = None if is_terminal else _PLAIN_WIDTH
    return Console(stderr=stderr, width=width, soft_wrap=not is_terminal, highlight=False)


def print_document(document: Spec) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document.dump(), indent=2))  # noqa: T201  # JSON must not meet Rich's markup


def print_error(error: VitrailError) -> None:
    """An error as the user reads it."""
    console = stderr()
    console.print(f"[bold red]error:[/] {escape(error.what)}")
    if error.where:
        console.print(f"  where: {escape(error.where)}")
    if error.hint:
        console.print(f"  try: {escape(error.hint)}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table; a cell that is a status word gets its colour."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column, overflow="fold", justify="right" if column.startswith(">") else "left"
        )
        made.columns[-1].header = column.lstrip(">")
    for row in rows:
        made.add_row(*(_cell(cell) for cell in row))
    return made


def _cell(text: str) -> str:
    style = _STATUS_STYLE.get(text)
    return f"[{style}]{text}[/]" if style else escape(text)


def print_plan(document: PlanDocument) -> None:
    """What will run and why, and what it needs."""
    rows = [
        (
            decision.stage,
            decision.action,
            amount(decision.estimate.get("parameters"), ""),
            amount(decision.estimate.get("flops"), "F"),
            amount(decision.estimate.get("memory_bytes"), "B"),
            amount(decision.estimate.get("disk_bytes"), "B"),
            _seconds(decision.estimate.get("last_seconds")),
            decision.reason,
        )
        for decision in document.stages
    ]
    columns = ("stage", "action", ">params", ">FLOPs", ">memory", ">disk", ">last time", "why")
    console = stdout()
    console.print(table(columns, rows))
    for decision in document.stages:
        if decision.code_changed:
            note = f"note: {decision.stage}: {code_note(decision.code_changed)}"
            console.print(note, markup=False)
    needed, free = document.disk_bytes_needed, document.disk_bytes_free
    console.print(
        f"disk: at most {amount(needed, 'B')} needed, {amount(free, 'B')} free "
        f"({needed} and {free} bytes)"
    )
    if needed > free:
        console.print("[bold red]warning:[/] the disk may not be large enough")


def code_note(files: Sequence[str]) -> str:
    """What is said of a stage that is reused although code it uses has changed."""
    told = ", ".join(files[:_TOLD_FILES])
    more = f" and {len(files) - _TOLD_FILES} more" if len(files) > _TOLD_FILES else ""
    return f"code changed: {told}{more}; reused"


def print_outcomes(document: RunDocument) -> None:
    """Stage, status, seconds, artifact."""
    rows = [
        (stage.name, stage.status, f"{stage.seconds:.1f}", stage.artifact or "-")
        for stage in document.stages
    ]
    stdout().print(table(("stage", "status", ">seconds", "artifact"), rows))


def amount(value: float | None, unit: str) -> str:
    """A number with a decimal prefix."""
    if value is None:
        return "-"
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 1000 or prefix == "E":
            digits = f"{value:.0f}" if prefix == "" else f"{value:.3g}"
            return f"{digits} {prefix}{unit}".rstrip()
        value /= 1000
    raise AssertionError


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def is_terminal() -> bool:
    """Whether progress may be drawn over."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

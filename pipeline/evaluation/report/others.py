"""Sections of the kinds that measure models in ways of their own: figures, and final figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.report.cells import main, names, numbers, row, text
from pipeline.evaluation.report.insights import INSIGHTS, absent_table
from pipeline.evaluation.report.pictures import copy_figures
from pipeline.evaluation.report.probes import PROBES, probe_tables
from pipeline.evaluation.report.sources import metrics_of, of_kinds
from pipeline.evaluation.report.words import in_words
from schemas.report_page import Section, Table, Unit
from schemas.runs import InputArtifact

Tables = Callable[[InputArtifact], tuple[Table, ...]]


@dataclass(frozen=True)
class Kind:
    """How a page shows what a stage of some kind measured."""

    kind: str
    title: str
    intro: str
    tables: Tables
    """Of one artifact."""
    folded: bool = False
    """Whether its figures are folded."""


def final_figures(source: InputArtifact) -> tuple[Table, ...]:
    """The final figures of a stage, as its record has them."""
    metrics = metrics_of(source)
    rows = tuple(
        row([text(in_words(name)), numbers(metrics.number("metrics", name, unit=_unit(name)))])
        for name in source.metrics
    )
    head = (*names("figure"), *main("value"))
    return (Table(title=f"{source.stage}: final figures", columns=head, rows=rows),) if rows else ()


def _insights(source: InputArtifact) -> tuple[Table, ...]:
    return (*final_figures(source), *absent_table(source))


KINDS = (
    Kind("probe", "Probes", PROBES, probe_tables),
    Kind("interpret", "What the model has learned", INSIGHTS, _insights),
)


def own_sections(folder: Path, sources: Sequence[InputArtifact]) -> list[Section]:
    """One for each kind that has an artifact; copies its figures into `folder`."""
    found = []
    for kind in KINDS:
        measured = of_kinds(sources, kind.kind)
        if measured:
            found.append(
                Section(
                    name=kind.kind,
                    title=kind.title,
                    intro=kind.intro,
                    tables=tuple(table for it in measured for table in kind.tables(it)),
                    figures=copy_figures(folder, measured, folded=kind.folded),
                )
            )
    return found


def _unit(name: str) -> Unit:
    units: Mapping[str, Unit] = {"_ratio": "ratio", "_count": "count", "_seconds": "seconds"}
    return next((unit for end, unit in units.items() if name.endswith(end)), "plain")

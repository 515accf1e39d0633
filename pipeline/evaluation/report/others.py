"""Sections of the kinds that look at models in ways of their own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.report.comparisons import COMPARISONS, comparison_tables
from pipeline.evaluation.report.insights import INSIGHTS, insight_tables
from pipeline.evaluation.report.pictures import copy_figures
from pipeline.evaluation.report.probes import PROBES, probe_tables
from pipeline.evaluation.report.robustness import ROBUSTNESS, robustness_tables
from pipeline.evaluation.report.sources import of_kinds
from schemas.report_page import Section, Table
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


KINDS = (
    Kind("compare", "Comparison", COMPARISONS, comparison_tables),
    Kind("probe", "Probes", PROBES, probe_tables),
    Kind("robustness", "Robustness", ROBUSTNESS, robustness_tables),
    Kind("interpret", "What the model has learned", INSIGHTS, insight_tables),
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
                    figures=copy_figures(folder, measured, folded=False),
                )
            )
    return found

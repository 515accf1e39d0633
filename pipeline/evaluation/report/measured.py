"""The numbers of one measured method, and where they stand."""

from pipeline.evaluation.tables import ACCURACY_FILE
from schemas.report import AccuracyRow
from schemas.report_page import Number, Trace, Unit


def measured(found: AccuracyRow, name: str, unit: Unit) -> Number:
    """A figure of a measured method, by its name in `schemas.evaluation.Accuracy`."""
    trace = trace_in(found, f"/accuracies/{found.place}/{name}")
    return Number(value=getattr(found, name), unit=unit, traces=(trace,))


def trace_in(found: AccuracyRow, where: str) -> Trace:
    """A place in the document of a measured method."""
    return Trace(artifact=found.artifact, file=ACCURACY_FILE, where=where)

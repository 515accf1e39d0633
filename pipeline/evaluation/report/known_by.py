"""The figures that an artifact is known by, read from the final figures of its stage."""

import re
from collections.abc import Mapping

from pipeline.evaluation.report.sources import Document
from schemas.report_page import Number, Unit

_FIGURES: Mapping[str, tuple[tuple[str, Unit, str], ...]] = {
    "ingest": (("corpus/images_count", "count", "images"),),
    "append": (("append/images_count", "count", "images"),),
    "filter": (("filter/removed_count", "count", "taken out"),),
    "remove": (("remove/removed_count", "count", "taken out"),),
    "pretrain": (("train/steps_count", "count", "steps"), ("train/loss", "loss", "loss")),
    "finetune": (("train/steps_count", "count", "steps"), ("train/loss", "loss", "loss")),
    "import": (("model/parameters_count", "count", "parameters"),),
}
"""Kind -> metrics, each with its unit and the word before it."""
_ANY = r".*top1_ratio"
"""Of all other kinds, the best accuracy."""


def known_by(kind: str, record: Document) -> tuple[Number, ...]:
    """What its kind is known by; of other kinds the best accuracy, where they measure any."""
    metrics = record.at("metrics")
    if kind not in _FIGURES:
        measured = [name for name in metrics if re.fullmatch(_ANY, name)]
        best = max(measured, key=metrics.__getitem__, default=None)
        label = "top-1" if len(measured) == 1 else "best top-1"
        return () if best is None else (_number(record, best, "ratio", label),)
    return tuple(
        _number(record, name, unit, label)
        for name, unit, label in _FIGURES[kind]
        if name in metrics
    )


def _number(record: Document, name: str, unit: Unit, label: str) -> Number:
    return record.number("metrics", name, unit=unit, label=label)

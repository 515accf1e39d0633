"""`accuracy.json` from predictions alone: any figure can be made again without the model.

    from pipeline.evaluation.accuracy import accuracy_of
    accuracy_of(Path("artifact"))   # reads predictions.arrow, and predictions-112px.arrow if any

Holds 48 bytes for each image, and the logits of one record batch.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.staging import read_table
from pipeline.evaluation.answers import Answers, read_answers, right_of_sets
from pipeline.evaluation.calibration import calibrate
from pipeline.evaluation.metrics import accuracy_report, share
from schemas.errors import DataError
from schemas.evaluation import (
    AccuracyReport,
    LabelSetFacts,
    LabelSetFigures,
    ModelFigures,
    PredictionFacts,
    SizeFigures,
)

METHOD = "model"
PREDICTIONS_FILE = "predictions.arrow"
FACTS_KEY = b"vitrail"
"""Of the metadata of a file of predictions: `PredictionFacts`."""
_TOP = 5


def accuracy_of(folder: Path) -> AccuracyReport:
    """What the files of predictions in a folder say, with those at other sizes of images.

    Raises:
        DataError: If a file lacks what it should say of itself.
    """
    table = read_table(folder / PREDICTIONS_FILE)
    facts = facts_of(table, folder / PREDICTIONS_FILE)
    answers = read_answers(table, facts.probabilities)
    report = accuracy_report(
        answers.labels,
        {METHOD: answers.predicted},
        split=facts.split,
        class_names=facts.class_names,
        chosen={},
    )
    others = [_at_size(path) for path in sorted(folder.glob("predictions-*px.arrow"))]
    sizes = [_size(facts, answers), *others] if others else []
    model = _figures(answers, facts, tuple(report.per_class[METHOD].values()))
    return report.revise(
        model=model.revise(
            sizes=tuple(sorted(sizes, key=lambda it: it.image_px)),
            label_sets=None if facts.label_sets is None else _of_sets(table, facts.label_sets),
        )
    )


def facts_of(table: pa.Table, path: Path) -> PredictionFacts:
    """What a file of predictions says of itself.

    Raises:
        DataError: If it says nothing.
    """
    text = (table.schema.metadata or {}).get(FACTS_KEY)
    if text is None:
        raise DataError(f"{path} is no file of predictions: its schema has no metadata `vitrail`")
    return PredictionFacts.model_validate_json(text)


def _figures(
    answers: Answers, facts: PredictionFacts, class_ratios: tuple[float, ...]
) -> ModelFigures:
    total = len(answers.labels)
    in_top5 = int((answers.ranks < _TOP).sum())
    return ModelFigures(
        probabilities=facts.probabilities,
        top1=share(int(answers.right.sum()), total),
        top5=share(in_top5, total) if len(facts.class_names) > _TOP else None,
        class_mean_ratio=float(np.mean(class_ratios)),
        nll=float(answers.nlls.mean()),
        brier=float(answers.briers.mean()),
        calibration=calibrate(answers.confidences, answers.right),
    )


def _at_size(path: Path) -> SizeFigures:
    table = read_table(path)
    facts = facts_of(table, path)
    return _size(facts, read_answers(table, facts.probabilities))


def _size(facts: PredictionFacts, answers: Answers) -> SizeFigures:
    return SizeFigures(
        image_px=facts.image_px,
        top1=share(int(answers.right.sum()), len(answers.labels)),
        nll=float(answers.nlls.mean()),
    )


def _of_sets(table: pa.Table, facts: LabelSetFacts) -> LabelSetFigures:
    right_N, size_N = right_of_sets(table)
    counted = int((size_N > 0).sum())
    return LabelSetFigures(
        **dict(facts),
        top1=share(int(right_N.sum()), counted) if counted else None,
        left_out=int((size_N == 0).sum()),
        unnamed=int((size_N < 0).sum()),
    )

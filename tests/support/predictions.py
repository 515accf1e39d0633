"""What models answered, as `evaluate` leaves it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.staging import write_table
from pipeline.evaluation.metrics import accuracy_report
from schemas.records import PREDICTIONS

CLASSES = ("ant", "bee", "cat")


def write_answers(
    folder: Path,
    predicted: np.ndarray,
    labels: np.ndarray,
    *,
    classes: tuple[str, ...] = CLASSES,
    first_uid: int = 0,
) -> Path:
    """`predictions.arrow` and `accuracy.json` of images with rising uids; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    uids = [(first_uid + row).to_bytes(16, "little") for row in range(len(labels))]
    columns = {
        "uid": pa.array(uids, pa.binary(16)),
        "label": pa.array(labels, pa.int32()),
        "predicted": pa.array(predicted, pa.int32()),
        "logits": pa.array(list(np.eye(len(classes))[predicted]), pa.list_(pa.float32())),
    }
    none = {field.name: pa.nulls(len(uids), field.type) for field in PREDICTIONS}
    table = pa.table({**none, **columns}).select(PREDICTIONS.names).cast(PREDICTIONS)
    write_table(folder / "predictions.arrow", table)
    report = accuracy_report(
        labels, {"model": predicted}, split="test", class_names=classes, chosen={}
    )
    (folder / "accuracy.json").write_text(json.dumps(report.dump()))
    return folder

"""Run a model over a split, every image exactly once.

Axes: B batch, N images of the split, M images kept to be shown, K classes, H W pixels, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Integer, UInt8

from pipeline.data.loader import eval_batches
from pipeline.data.shards import Split
from pipeline.model.vit import ViT, normalise
from schemas.errors import DataError, IntegrityError, StageFailedError
from schemas.model import ViTSpec
from schemas.records import PREDICTIONS

SHOWN_IMAGES = 16


@dataclass(frozen=True)
class Predictions:
    """What a model says of every image of a split, in storage order."""

    uid_N: tuple[bytes, ...]
    label_N: Integer[np.ndarray, " N"]
    logits_NK: Float[np.ndarray, "N K"]
    shown_MHWC: UInt8[np.ndarray, "M H W C"]
    """The first images as the model saw them; storage order is shuffled, so they are a sample."""

    @property
    def predicted_N(self) -> Integer[np.ndarray, " N"]:
        """The class of the largest logit; the first one of a tie."""
        return self.logits_NK.argmax(axis=1)


def check_same_classes(model: Sequence[str], data: Sequence[str]) -> None:
    """Refuse to measure a model on classes that are not its own.

    Raises:
        DataError: If names or their order differ; the sentence lists the difference.
    """
    if tuple(model) == tuple(data):
        return
    unknown, missing = sorted(set(data) - set(model)), sorted(set(model) - set(data))
    parts = [
        f"only in the data: {', '.join(unknown)}" if unknown else "",
        f"only in the model: {', '.join(missing)}" if missing else "",
        "" if unknown or missing else f"the order is {list(model)} against {list(data)}",
    ]
    raise DataError(
        f"the model knows {len(model)} classes that differ from the {len(data)} of the data; "
        + "; ".join(part for part in parts if part),
        hint="evaluate on the data set that the model was trained on, or fine-tune it on this one",
    )


def classify(
    model: ViT, spec: ViTSpec, split: Split, *, batch_samples: int, threads: int
) -> Predictions:
    """Logits for every image of `split`, on the device where the model's weights are.

    All logits are held in memory: 4 x images x classes bytes.

    Raises:
        DataError: If the split is empty.
        IntegrityError: If the loader gave an image twice or left one out.
        StageFailedError: If a logit is not finite.
    """
    if split.num_rows == 0:
        raise DataError(f"split {split.name!r} has no images to measure a model on")
    uids: list[bytes] = []
    labels, logits, shown = [], [], []
    device = next(model.parameters()).device
    model.eval()
    for batch in eval_batches(
        split, image_px=spec.image_px, batch_samples=batch_samples, threads=threads
    ):
        with torch.inference_mode():
            pixels_BCHW = normalise(torch.from_numpy(batch.pixels_BHWC).to(device), spec)
            logits.append(model(pixels_BCHW).float().cpu().numpy())
        labels.append(np.asarray(batch.label_B))
        shown.append(batch.pixels_BHWC[: max(0, SHOWN_IMAGES - len(uids))].copy())
        uids.extend(bytes(uid) for uid in batch.uid_B)
    found = Predictions(
        tuple(uids), np.concatenate(labels), np.concatenate(logits), np.concatenate(shown)
    )
    _check(found, split)
    return found


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write `schemas.records.PREDICTIONS`, one row for each image, as an Arrow IPC file."""
    table = pa.table(
        {
            "uid": pa.array(predictions.uid_N, pa.binary(16)),
            "label": pa.array(predictions.label_N, pa.int32()),
            "predicted": pa.array(predictions.predicted_N, pa.int32()),
            "logits": pa.array(list(predictions.logits_NK), pa.list_(pa.float32())),
        },
        schema=PREDICTIONS,
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, PREDICTIONS) as writer:
        writer.write_table(table)


def _check(predictions: Predictions, split: Split) -> None:
    given, distinct = len(predictions.uid_N), len(set(predictions.uid_N))
    if given != split.num_rows or distinct != given:
        raise IntegrityError(
            f"split {split.name!r} has {split.num_rows} images but the loader gave {given}, "
            f"{distinct} of them distinct; an accuracy needs each exactly once"
        )
    if not np.isfinite(predictions.logits_NK).all():
        raise StageFailedError(
            "the model answers with numbers that are not finite, so it cannot be measured",
            hint="look at the training loss; a smaller optim.peak_lr or optim.clip_norm may help",
        )

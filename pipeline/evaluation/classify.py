"""Run a model over a split, every image exactly once.

Axes: B batch, N images of the split, M images kept to be shown, K classes, H W pixels, C channels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Integer, UInt8

from pipeline.data.feed.loader import eval_batches
from pipeline.data.shards.shard_set import AnySplit
from pipeline.model.backbone import Backbone, normalise
from schemas.errors import DataError, IntegrityError, StageFailedError
from schemas.records import PREDICTIONS

SHOWN_IMAGES = 16


@dataclass(frozen=True)
class Predictions:
    """What a model says of every image of a split, in storage order."""

    uids: tuple[bytes, ...]
    labels: Integer[np.ndarray, " N"]
    logits: Float[np.ndarray, "N K"]
    shown: UInt8[np.ndarray, "M H W C"]
    """The first images as the model saw them; storage order is shuffled, so they are a sample."""

    @property
    def predicted(self) -> Integer[np.ndarray, " N"]:
        """The class of the largest logit; the first one of a tie."""
        predicted: np.ndarray = self.logits.argmax(axis=1)
        return predicted


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


def classify(model: Backbone, split: AnySplit, *, batch_samples: int, threads: int) -> Predictions:
    """Logits for every image of `split`, on the device where the model's weights are.

    `threads` decode, and as many compute: their number is fixed because it shapes the last bits.
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
    batches = eval_batches(
        split, image_px=model.spec.image_px, batch_samples=batch_samples, threads=threads
    )
    with _torch_threads(threads):
        for batch in batches:
            logits.append(_answer(model, batch.pixels_BHWC))
            labels.append(batch.label_B)
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
            "uid": pa.array(predictions.uids, pa.binary(16)),
            "label": pa.array(predictions.labels, pa.int32()),
            "predicted": pa.array(predictions.predicted, pa.int32()),
            "logits": pa.array(list(predictions.logits), pa.list_(pa.float32())),
        },
        schema=PREDICTIONS,
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, PREDICTIONS) as writer:
        writer.write_table(table)


@torch.inference_mode()
def _answer(model: Backbone, pixels_BHWC: UInt8[np.ndarray, "B H W C"]) -> Float[np.ndarray, "B K"]:
    device = next(model.parameters()).device
    pixels_BCHW = normalise(torch.from_numpy(pixels_BHWC).to(device), model.spec)
    logits_BK: np.ndarray = model.eval()(pixels_BCHW).float().cpu().numpy()
    return logits_BK


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(predictions: Predictions, split: AnySplit) -> None:
    given, distinct = len(predictions.uids), len(set(predictions.uids))
    if given != split.num_rows or distinct != given:
        raise IntegrityError(
            f"split {split.name!r} has {split.num_rows} images but the loader gave {given}, "
            f"{distinct} of them distinct; an accuracy needs each exactly once"
        )
    if not np.isfinite(predictions.logits).all():
        raise StageFailedError(
            "the model answers with numbers that are not finite, so it cannot be measured",
            hint="look at the training loss; a smaller optim.peak_lr or optim.clip_norm may help",
        )

"""A model's logits for every image of a split, as a `Work` of `passes`.

Axes: B batch, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pipeline.data.feed.loader import Batch
from pipeline.evaluation.accuracy import FACTS_KEY
from pipeline.evaluation.label_sets import LabelSets
from pipeline.evaluation.passes import KEYS, list_column, pixels_of
from pipeline.model.backbone import Backbone
from pipeline.model.saved import load_model
from schemas.checkpoint import SavedModel
from schemas.errors import DataError, StageFailedError
from schemas.evaluation import PredictionFacts
from schemas.records import PREDICTIONS
from schemas.spec import canonical_json

SHOWN_IMAGES = 16


@dataclass(frozen=True)
class Classify:
    """Show a saved model the images; gives the rest of `schemas.records.PREDICTIONS`."""

    model: Path
    """Folder of a saved model."""
    split: str
    image_px: tuple[int, int] | None = None
    """Height and width of the images; None: as the model was trained. Positions are resized."""
    label_sets: Path | None = None
    """Table of right classes by uid, as `write_label_sets` wrote it."""

    def load(self, device: torch.device) -> "Classifier":
        """Read the model onto the device.

        Raises:
            SpecError: If it cannot take images of that size.
            IntegrityError: If it cannot be read.
        """
        model, saved = load_model(self.model, image_px=self.image_px)
        sets = None if self.label_sets is None else LabelSets(self.label_sets)
        return Classifier(model.to(device), saved, self.split, sets)


@dataclass
class Classifier:
    """A model that is ready to answer."""

    model: Backbone
    saved: SavedModel
    split: str
    label_sets: LabelSets | None

    @property
    def image_px(self) -> tuple[int, int]:
        """See `Loaded`."""
        return self.model.spec.image_px

    @cached_property
    def columns(self) -> pa.Schema:
        """See `Loaded`."""
        facts = PredictionFacts(
            split=self.split,
            class_names=self.saved.class_names,
            probabilities=self.saved.probabilities,
            image_px=self.image_px,
            label_sets=None if self.label_sets is None else self.label_sets.facts,
        )
        fields = list(PREDICTIONS)[len(KEYS) :]
        return pa.schema(fields, metadata={FACTS_KEY: canonical_json(facts.dump())})

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> list[pa.Array]:
        """See `Loaded`.

        Raises:
            StageFailedError: If a logit is not finite.
        """
        logits_BK = self.model(pixels_of(batch, self.model)).float().cpu().numpy()
        if not np.isfinite(logits_BK).all():
            raise StageFailedError(
                "the model answers with numbers that are not finite, so it cannot be measured",
                hint="look at the training loss; a lower optim.peak_lr or optim.clip_norm may help",
            )
        predicted = pa.array(logits_BK.argmax(axis=1), pa.int32())
        return [predicted, list_column(logits_BK), self._sets(batch)]

    def _sets(self, batch: Batch) -> pa.Array:
        if self.label_sets is None:
            return pa.nulls(len(batch), pa.list_(pa.int32()))
        return self.label_sets.of([bytes(uid) for uid in batch.uid_B])


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

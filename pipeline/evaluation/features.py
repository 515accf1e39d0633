"""Features of images: computed by a pass over a split, and read back memory-mapped.

Axes: N images, B batch, C chunk of images, D features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Integer
from numpy.typing import NDArray

from pipeline.data.feed.loader import Batch
from pipeline.data.staging import read_table
from pipeline.evaluation.passes import pixels_of, uids_of
from pipeline.model.backbone import Backbone
from pipeline.model.saved import load_model
from schemas.errors import DataError, StageFailedError
from schemas.probing import FEATURES_FILE, FEATURES_FOLDER, FeaturesDocument
from schemas.records import features_field
from schemas.words import nearest

CHUNK_IMAGES = 4096
"""Features that are held in memory together."""


@dataclass(frozen=True)
class Extract:
    """The work of a pass: what the head of a model sees of each image."""

    model: Path
    image_px: tuple[int, int] | None = None
    """Height and width of what it is shown; None: as it was trained."""

    def load(self, device: torch.device) -> "Extractor":
        """With the model on the device."""
        return Extractor(load_model(self.model, image_px=self.image_px)[0].to(device))


@dataclass(frozen=True)
class Extractor:
    """`Extract`, ready to work."""

    model: Backbone

    @property
    def image_px(self) -> tuple[int, int]:
        """Height and width of the images that the model takes."""
        return self.model.spec.image_px

    @property
    def columns(self) -> pa.Schema:
        """One feature, as long as the model says."""
        return pa.schema([features_field(width_of(self.model))])

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> list[pa.Array]:
        """The features of a batch.

        Raises:
            StageFailedError: If one is not finite.
        """
        features_BD = self.model.forward_features(pixels_of(batch, self.model)).float().cpu()
        if not bool(torch.isfinite(features_BD).all()):
            raise StageFailedError(
                "the model's features are not finite numbers, so nothing can be learned from them",
                hint="look at the training loss; a smaller optim.peak_lr or clip_norm may help",
            )
        values = pa.array(features_BD.numpy().ravel())
        return [pa.FixedSizeListArray.from_arrays(values, features_BD.shape[1])]


@torch.inference_mode()
def width_of(model: Backbone) -> int:
    """Numbers in one feature; shows the model one black image."""
    device = next(model.parameters()).device
    black_BCHW = torch.zeros(1, 3, *model.spec.image_px, device=device)
    return int(model.forward_features(black_BCHW).shape[1])


@dataclass(frozen=True)
class Features:
    """The features of one split, in storage order; the numbers stay on disk."""

    table: pa.Table

    def __len__(self) -> int:
        """Number of images."""
        return len(self.table)

    @property
    def labels(self) -> Integer[np.ndarray, " N"]:
        """Class of each image; 8 bytes each."""
        return np.asarray(self.table["label"].to_numpy(), np.int64)

    @property
    def uids(self) -> NDArray[np.bytes_]:
        """Uid of each image as 16 bytes; copies them."""
        return uids_of(self.table)

    def take(self, rows: Integer[np.ndarray, " C"]) -> Float[np.ndarray, "C D"]:
        """The features of some images, in the order given."""
        return _matrix(self.table["features"].take(pa.array(rows)).combine_chunks())

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[Float[np.ndarray, "C D"]]:
        """The features of a range of images, `CHUNK_IMAGES` at a time; the last are fewer."""
        end = len(self) if stop is None else stop
        for first in range(start, end, CHUNK_IMAGES):
            column = self.table["features"].slice(first, min(CHUNK_IMAGES, end - first))
            yield _matrix(column.combine_chunks())

    def all(self) -> Float[np.ndarray, "N D"]:
        """All of them in memory: 4 x N x D bytes, twice for a moment."""
        return np.concatenate(list(self.chunks()))


def open_features(folder: Path, document: FeaturesDocument, split: str) -> Features:
    """The features of a split from the artifact in `folder`.

    Raises:
        DataError: If it has no features of this split.
    """
    if split not in document.split_rows:
        splits = sorted(document.split_rows)
        meant = nearest(split, splits)
        raise DataError(
            f"there are features of the splits {', '.join(splits)}, not of {split!r}"
            + (f" (did you mean {meant!r}?)" if meant else ""),
            hint="name the split in `splits` of the features stage, or leave `splits` out",
        )
    return Features(read_table(features_path(folder, split)))


def features_path(folder: Path, split: str) -> Path:
    """File of a split's features in an artifact."""
    return folder / FEATURES_FOLDER / f"{split}.arrow"


def document_path(folder: Path) -> Path:
    """File of the `FeaturesDocument` in an artifact."""
    return folder / FEATURES_FILE


def _matrix(column: pa.FixedSizeListArray) -> Float[np.ndarray, "C D"]:
    """A column of equally long lists as rows."""
    width = column.type.list_size
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(-1, width)

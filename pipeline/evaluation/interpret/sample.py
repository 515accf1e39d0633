"""Which images are looked at, and what a model makes of them.

Axes: N images that were drawn, D features, B images of a batch, M images that are shown,
H W pixels, C channels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from pipeline.data.feed.batches import Batch
from pipeline.data.feed.loader import eval_batches
from pipeline.data.order import KeyedPermutation, derive_key
from pipeline.data.shards.shard_set import AnySplit
from pipeline.evaluation.interpret.distances import AttentionTotals
from pipeline.evaluation.passes import pixels_of
from pipeline.model.anatomy import pooled_layers
from pipeline.model.attention_maps import Attended, each_attention
from pipeline.model.backbone import Backbone
from pipeline.model.vit import ViT
from schemas.errors import DataError, PausedError, SpecError, StageFailedError
from schemas.interpret import Attention

_WEIGHTS_BYTES = 2**28
"""What the attention of one layer over a batch may take."""
_FP32_BYTES = 4
LAYER_IMAGES = 512
"""Over which layers are compared: 2 MiB for each layer."""
Rows = Integer[np.ndarray, " N"]


@dataclass(frozen=True)
class Reader:
    """Gives some images of a split to a model, in batches."""

    split: AnySplit
    image_px: tuple[int, int]
    batch_samples: int
    threads: int
    stopped: Callable[[], bool]
    """Whether somebody asked for a clean stop."""

    def batches(self, rows_N: Rows) -> Iterator[Batch]:
        """The rows, each once, ascending.

        Raises:
            PausedError: If a stop was asked for.
        """
        for batch in eval_batches(
            self.split.subset(np.sort(rows_N)),
            image_px=self.image_px,
            batch_samples=self.batch_samples,
            threads=self.threads,
        ):
            if self.stopped():
                raise PausedError("stopped on request while looking at images")
            yield batch


@dataclass(frozen=True)
class Made:
    """What a model makes of the images that were drawn, in the order of the draw."""

    uids: tuple[str, ...]
    label_N: Integer[np.ndarray, " N"]
    features_ND: Float[np.ndarray, "N D"]
    layers: dict[str, Float[np.ndarray, "_ _"]]
    """Layer -> its mean over the patches of each of the first images of the draw, in any order;
    empty if layers are not known."""
    why_no_layers: str


def draw(split: AnySplit, count: int, *, seed: int) -> Rows:
    """Rows of images drawn at random, the same for equal (seed, images); all, if there are fewer.

    O(count), whatever the size of the split: a keyed permutation of its rows.

    Raises:
        DataError: If the split is empty.
    """
    if split.num_rows == 0:
        raise DataError(f"split {split.name!r} has no images to look at")
    permuted = KeyedPermutation(split.num_rows, derive_key("interpret", split.order_digest, seed))
    return permuted.forward(np.arange(min(count, split.num_rows)))


def make(model: Backbone, reader: Reader, rows_N: Rows) -> Made:
    """Features of the rows, layers of the first `LAYER_IMAGES` of them; all of it is in memory.

    Raises:
        PausedError: If a stop was asked for.
        StageFailedError: If a feature is not finite.
    """
    features, labels = [], []
    uids: list[str] = []
    layers: dict[str, list[np.ndarray]] = {}
    why_no_layers = ""
    order = np.argsort(rows_N)  # of what comes k-th, ascending, the place in the draw
    for batch in reader.batches(rows_N):
        compared_B = order[len(uids) : len(uids) + len(batch)] < LAYER_IMAGES
        try:
            made, features_BD = pooled_layers(model, pixels_of(batch, model))
        except SpecError as error:
            why_no_layers, made = error.what, {}
            with torch.no_grad():
                features_BD = model.forward_features(pixels_of(batch, model))
        for name, layer_BD in made.items():
            layers.setdefault(name, []).append(layer_BD.float().cpu().numpy()[compared_B])
        features.append(features_BD.float().cpu().numpy())
        labels.append(batch.label_B)
        uids.extend(bytes(uid).hex() for uid in batch.uid_B)
    drawn = np.argsort(order)
    features_ND = np.concatenate(features)[drawn]
    if not np.isfinite(features_ND).all():
        raise StageFailedError(
            "the model's features are numbers that are not finite, so nothing can be drawn of them",
            hint="look at the training loss; a smaller optim.peak_lr or optim.clip_norm may help",
        )
    return Made(
        uids=tuple(uids[it] for it in drawn),
        label_N=np.concatenate(labels)[drawn],
        features_ND=features_ND,
        layers={name: np.concatenate(parts) for name, parts in layers.items()},
        why_no_layers=why_no_layers,
    )


def attend(model: Backbone, reader: Reader, rows_N: Rows) -> Attention:
    """Attention averaged over the rows; in memory is that of one layer over a few images.

    Raises:
        PausedError: If a stop was asked for.
        SpecError: If the model has no attention that could be had.
    """
    grid = model.spec.grid if isinstance(model, ViT) else None
    totals = AttentionTotals(model.spec.image_px, grid)
    at_once = 0
    for batch in reader.batches(rows_N):
        pixels_BCHW = pixels_of(batch, model)
        at_once = at_once or _affordable(model, pixels_BCHW[:1])
        for part_BCHW in torch.split(pixels_BCHW, at_once):
            each_attention(model, part_BCHW, totals.add)
    return totals.result(len(rows_N))


def _affordable(model: Backbone, image_1CHW: Float[Tensor, "1 C H W"]) -> int:
    """Images whose attention may be in memory together."""
    sizes = []

    def see(attended: Attended) -> None:
        sizes.append(attended.weights_SAMT.numel() * _FP32_BYTES)

    each_attention(model, image_1CHW, see)
    return max(1, _WEIGHTS_BYTES // max(sizes))


def in_turn(label_N: Integer[np.ndarray, " N"], count: int) -> Integer[np.ndarray, " M"]:
    """Places of up to `count` images: the first of each class, then the second of each, ..."""
    seen: dict[int, int] = {}
    rounds = []
    for label in label_N.tolist():
        rounds.append(seen.get(label, 0))
        seen[label] = rounds[-1] + 1
    return np.argsort(rounds, kind="stable")[:count]


def pixels_shown(reader: Reader, rows_M: Rows) -> UInt8[np.ndarray, "M H W C"]:
    """The images of the rows as the model sees them, in the order of `rows_M`."""
    pixels_MHWC = np.concatenate([batch.pixels_BHWC for batch in reader.batches(rows_M)])
    return pixels_MHWC[np.argsort(np.argsort(rows_M))]

"""Features of images that were never seen: noise around a centre for each class."""

import numpy as np
import pyarrow as pa

from pipeline.evaluation.features import Features
from pipeline.evaluation.passes import KEYS
from schemas.records import features_field


def made_features(
    images: int, *, classes: int = 4, width: int = 12, seed: int = 0, spread: float = 1.5
) -> Features:
    """Labels in turn; the centres are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(classes, width))
    rng = np.random.default_rng([seed, images])
    labels = np.arange(images) % classes
    features = centres[labels] + spread * rng.normal(size=(images, width))
    uids = [rng.bytes(16) for _ in labels]
    return features_table(uids, labels, features)


def features_table(uids: list[bytes], labels: np.ndarray, features: np.ndarray) -> Features:
    """In batches of 64, as a pass writes them."""
    schema = pa.schema([*KEYS, features_field(features.shape[1])])
    batches = [
        pa.record_batch(
            [
                pa.array(uids[start : start + 64], pa.binary(16)),
                pa.array(labels[start : start + 64], pa.int32()),
                pa.array(list(features[start : start + 64]), schema.field("features").type),
            ],
            schema=schema,
        )
        for start in range(0, len(uids), 64)
    ]
    return Features(pa.Table.from_batches(batches, schema))

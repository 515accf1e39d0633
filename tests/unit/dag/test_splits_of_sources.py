from typing import Any

import pytest

from pipeline.dag.splits import check_reference, splits_made
from schemas.data import IngestSpec
from schemas.errors import SpecError
from schemas.evaluation import EvaluateSpec
from schemas.stage import StageRef

LABELS = {"file": "labels.csv", "image_column": "a", "label_column": "b"}
BY_COLUMN = {**LABELS, "split_column": "c"}
TWO = {"train": "a", "test": "b"}


@pytest.mark.parametrize(
    ("source", "splits"),
    [
        ({"type": "image_folder", "uri": "x"}, ("train",)),
        ({"type": "image_folder", "uri": "x", "splits": TWO}, ("train", "test")),
        ({"type": "image_folder", "uri": "x", "labels": LABELS}, ("train",)),
        ({"type": "image_folder", "uri": "x", "labels": BY_COLUMN}, None),
        ({"type": "webdataset", "uri": "x"}, ("train",)),
        ({"type": "parquet", "uri": "x", "splits": TWO}, ("train", "test")),
        ({"type": "hf", "uri": "x"}, None),
        ({"type": "hf", "uri": "x", "splits": TWO}, ("train", "test")),
        ({"type": "arrow", "uri": "x"}, None),
        ({"type": "idx", "uri": "x"}, ("train", "test")),
        ({"type": "cifar", "uri": "x", "name": "cifar10"}, ("train", "test")),
        ({"type": "sklearn"}, ("train",)),
    ],
)
def test_splits_are_known_from_the_spec_or_not_guessed(
    source: dict[str, Any], splits: tuple[str, ...] | None
) -> None:
    spec = IngestSpec.parse({"source": source})
    assert splits_made(spec, {}, {}) == splits
    reader = EvaluateSpec.parse({"data": "pets@valid", "model": "m"})
    if splits is None:
        check_reference(reader, "data", StageRef("pets", "valid"), splits=splits, where="here")
    else:
        with pytest.raises(SpecError, match="has no split 'valid'"):
            check_reference(reader, "data", StageRef("pets", "valid"), splits=splits, where="here")

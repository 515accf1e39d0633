"""Which stage of features belongs to which split that a filter reads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.curation.filter import NamedSplit
from pipeline.evaluation.features import document_path, features_path
from pipeline.evaluation.tables import read_document
from schemas.errors import DataError
from schemas.probing import FeaturesDocument
from schemas.runs import StageRequest


@dataclass(frozen=True)
class SetFeatures:
    """The artifact of a stage of features."""

    stage: str
    folder: Path
    document: FeaturesDocument


def with_features(splits: Sequence[NamedSplit], request: StageRequest) -> list[NamedSplit]:
    """The splits, each with the table of its features, of those that the request names.

    Raises:
        DataError: If the features are of several models, or a split has none.
    """
    found = [_read(request, port) for port in request.inputs if port.startswith("features[")]
    if len({(it.document.model_digest, it.document.image_px) for it in found}) > 1:
        names = ", ".join(it.stage for it in found)
        raise DataError(f"the features of {names} are of several models and cannot be compared")
    return [replace(split, features=_table(split, found)) for split in splits]


def _read(request: StageRequest, port: str) -> SetFeatures:
    source = request.inputs[port]
    folder = Path(source.path)
    return SetFeatures(source.stage, folder, read_document(document_path(folder), FeaturesDocument))


def _table(split: NamedSplit, features: Sequence[SetFeatures]) -> Path:
    """The table of the very same set: its rows are counted."""
    for it in features:
        if it.document.data_digest == split.data.digest and split.split in it.document.split_rows:
            return features_path(it.folder, split.split)
    stage, names = split.name.partition("@")[0], ", ".join(it.stage for it in features)
    raise DataError(
        f"{names} have no features of {split.name} as it is now",
        hint=f"add a stage {{kind: features, data: {stage}, model: MODEL}}; name it in features",
    )

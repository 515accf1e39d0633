"""Artifacts of a store and all that they were made from, with what each took to make."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.store_documents import StoreDocuments
from pipeline.cost import Training, model_flops
from pipeline.evaluation.report import Made
from pipeline.model.saved import load_saved
from schemas.artifacts import StageRecord
from schemas.backbones import BackboneSpec, ResNetSpec
from schemas.checkpoint import MODEL_FILE, MODEL_FOLDER
from schemas.experiment import STAGE_KINDS
from schemas.model import ViTSpec
from schemas.training import FinetuneSpec, PretrainSpec

_PARAMETERS, _STEPS = "model/parameters_count", "train/steps_count"


def ancestry(store: StoreDocuments, artifacts: Iterable[str]) -> tuple[Made, ...]:
    """These artifacts and their ancestors, each after all that it reads.

    What is no longer in the store is left out; its name stands in the records of its readers.

    Raises:
        IntegrityError: If a record is missing or unreadable.
    """
    found: dict[str, Made] = {}
    for artifact in artifacts:
        _add(store, artifact, found)
    costs = _Costs(found)
    return tuple(
        Made(it.artifact, it.digest, it.path, it.record, costs.of(it)) for it in found.values()
    )


def _add(store: StoreDocuments, artifact: str, found: dict[str, Made]) -> None:
    if artifact in found:
        return
    result = store.named(artifact)
    if result is None:
        return
    record = store.record(result)
    for read in record.input_artifacts.values():
        _add(store, read, found)
    found[artifact] = Made(artifact, result.digest, store.path(result), record)


class _Costs:
    """Parameters and FLOPs, as far as our own models say them; nothing of a library's."""

    def __init__(self, made: Mapping[str, Made]) -> None:
        self._made = made

    def of(self, made: Made) -> dict[str, float]:
        record = made.record
        found = dict(self._flops(made))
        if _PARAMETERS in record.metrics:
            found["parameters"] = record.metrics[_PARAMETERS]
        return found

    def _flops(self, made: Made) -> Iterator[tuple[str, float]]:
        record = made.record
        kind = record.key_record.kind
        if kind in ("pretrain", "finetune"):
            flops = self._training_flops(made)
        elif kind == "evaluate":
            flops = self._forward_flops(record, "model") * _images(record)
        else:
            return
        if flops:
            yield "flops", flops

    def _training_flops(self, made: Made) -> float:
        """Of all trials of a search and of the training that it led to."""
        record, model = made.record, _model_in(made.path)
        if not isinstance(model, ViTSpec | ResNetSpec) or _STEPS not in record.metrics:
            return 0.0
        spec: Any = STAGE_KINDS[record.spec["kind"]].parse(record.spec)
        assert isinstance(spec, PretrainSpec | FinetuneSpec)  # noqa: S101 -- by its kind
        training = Training(spec, model, self._forward_flops(record, "teacher"))
        search = spec.search if isinstance(spec, FinetuneSpec) else None
        steps = record.metrics[_STEPS]
        if search is not None:
            steps += sum(search.steps) * len(search.peak_lr) * search.repeats
        return float(training.flops_per_image) * steps * spec.batch.global_samples

    def _forward_flops(self, record: StageRecord, port: str) -> int:
        """Of one image through the model that was read; 0 where nothing is known of it."""
        read = self._made.get(record.input_artifacts.get(port, ""))
        model = None if read is None else _model_in(read.path)
        return 0 if model is None else model_flops(model) or 0


def _images(record: StageRecord) -> float:
    return sum(value for name, value in record.metrics.items() if name.endswith("/images_count"))


def _model_in(files: Path) -> BackboneSpec | None:
    """The model that an artifact holds; None where it holds none."""
    folder = files / MODEL_FOLDER
    return load_saved(folder).spec if (folder / MODEL_FILE).is_file() else None

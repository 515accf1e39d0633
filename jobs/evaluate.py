"""Stage `evaluate`: a saved model over every image of a split."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.passes import PASSES_FOLDER, do_pass, pass_of
from jobs.stage import StageOutput, StageTools
from jobs.stage_sources import read_source
from pipeline.data.feed.loader import probe_batch
from pipeline.data.shards.shard_set import ShardSet, Split
from pipeline.evaluation import figures
from pipeline.evaluation.accuracy import METHOD, PREDICTIONS_FILE, accuracy_of
from pipeline.evaluation.accuracy_figures import draw_reliability, draw_sizes
from pipeline.evaluation.classify import SHOWN_IMAGES, Classify, check_same_classes
from pipeline.evaluation.label_sets import parse_label_sets, write_label_sets
from pipeline.evaluation.tables import ACCURACY_FILE
from pipeline.model.saved import load_model, load_saved
from schemas.checkpoint import MODEL_FOLDER, SavedModel
from schemas.errors import DataError
from schemas.evaluation import (
    AccuracyReport,
    EvaluateSpec,
    ModelFigures,
    Share,
    height_and_width,
    size_name,
)
from schemas.manifest import DATASET_FOLDER
from schemas.report import FIGURES_FOLDER, FigureNote
from schemas.runs import StageRequest
from schemas.spec import canonical_json

_SETS_FILE = "label_sets.arrow"


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Classify the split; write predictions, accuracy and figures into the attempt."""
    spec = EvaluateSpec.parse(request.spec)
    data = request.inputs["data"]
    model = Path(request.inputs["model"].path) / MODEL_FOLDER
    saved = load_saved(model)
    shards = ShardSet.open(Path(data.path) / DATASET_FOLDER)
    check_same_classes(saved.class_names, shards.class_names)
    split = shards.split(data.split or EvaluateSpec.default_splits["data"])
    others = _other_sizes(spec, saved, model)
    sets = _label_sets(request, spec, split, tools)
    tools.say(f"classifying {split.num_rows} images of {data.stage}@{split.name}")
    folder = tools.attempt.path
    work = Classify(model, split.name, label_sets=sets)
    table = do_pass(pass_of(work, data, spec), folder / PREDICTIONS_FILE, spec, tools)
    for size in others:
        tools.say(f"the same at {size_name(size)}")
        task = pass_of(replace(work, image_px=size, label_sets=None), data, spec)
        do_pass(task, folder / f"predictions-{size_name(size)}.arrow", spec, tools)
    report = accuracy_of(folder)
    (folder / ACCURACY_FILE).write_text(canonical_json(report.dump()) + "\n")
    _draw(folder, report, split, table, saved)
    metrics = _metrics(report)
    tools.say(f"top-1 {metrics[f'{split.name}/top1_ratio']:.1%} of {split.num_rows} images")
    return StageOutput(metrics=metrics, spent=(PASSES_FOLDER, _SETS_FILE))


def _other_sizes(spec: EvaluateSpec, saved: SavedModel, model: Path) -> list[tuple[int, int]]:
    """Sizes besides the model's own; one that it cannot take is refused before any work."""
    sizes = dict.fromkeys(height_and_width(size) for size in spec.resolutions_px)
    others = [size for size in sizes if size != saved.spec.image_px]
    for size in others:
        load_model(model, image_px=size)
    return others


def _label_sets(
    request: StageRequest, spec: EvaluateSpec, split: Split, tools: StageTools
) -> Path | None:
    if spec.label_sets is None:
        return None
    text = read_source(spec.label_sets.uri, tools.files)
    if hashlib.sha256(text).hexdigest() != request.key_record.inputs["source"]:
        raise DataError(f"{spec.label_sets.uri} has changed since the run began", hint="run again")
    path = tools.attempt.progress / _SETS_FILE
    facts = write_label_sets(path, split, parse_label_sets(text, split.class_names))
    if facts.unknown_count:
        names = ", ".join(facts.unknown_names)
        more = facts.unknown_count - len(facts.unknown_names)
        tail = f" and {more} more" if more else ""
        tools.say(
            f"{facts.unknown_count} names of {spec.label_sets.uri} are of no image of the split: "
            f"{names}{tail}"
        )
    return path


def _draw(
    folder: Path, report: AccuracyReport, split: Split, table: pa.Table, saved: SavedModel
) -> None:
    place, model = folder / FIGURES_FOLDER, report.of_model()
    confusion = np.array(report.confusion[METHOD])
    figures.draw_confusion(place / "confusion.png", confusion, report.class_names)
    shown = probe_batch(split, SHOWN_IMAGES, saved.spec.image_px)
    figures.draw_predictions(
        place / "predictions.png",
        shown.pixels_BHWC,
        label_M=shown.label_B,
        predicted_M=table["predicted"][: len(shown)].to_numpy(),
        class_names=report.class_names,
    )
    draw_reliability(place / "reliability.png", model.calibration)
    if model.sizes:
        draw_sizes(place / "sizes.png", model.sizes, saved.spec.image_px)
    figures.write_notes(folder, *_notes(report, model))


def _notes(report: AccuracyReport, model: ModelFigures) -> list[FigureNote]:
    top1 = model.top1
    notes = [
        FigureNote(
            file="predictions.png",
            title="First images and their answers",
            caption=f"The first images of split {report.split}, as the model saw them; storage "
            "order is shuffled. A mistake is framed and says the true class.",
        ),
        FigureNote(
            file="confusion.png",
            title="Confusion",
            caption=f"Rows are true classes, columns answers; {top1.correct:,} of {top1.total:,} "
            f"images are answered right ({top1.ratio:.1%}, 95 % interval {top1.low_ratio:.1%} to "
            f"{top1.high_ratio:.1%}).",
        ),
        FigureNote(
            file="reliability.png",
            title="Calibration",
            caption="Share of right answers by the probability that the model gives them, in "
            f"{len(model.calibration.bins)} bins of equal width; below, how many answers are in "
            f"each. Expected calibration error {model.calibration.ece_ratio:.1%}.",
        ),
    ]
    if model.sizes:
        notes.append(
            FigureNote(
                file="sizes.png",
                title="Accuracy by size of images",
                caption="The same weights shown images of other sizes, positions resized. Whiskers "
                "are 95 % intervals of each point; the points share their images.",
            )
        )
    return notes


def _metrics(report: AccuracyReport) -> dict[str, float]:
    model = report.of_model()
    found = _share("top1", model.top1) | {
        "class_mean_ratio": model.class_mean_ratio,
        "nll": model.nll,
        "brier": model.brier,
        "ece_ratio": model.calibration.ece_ratio,
        "images_count": float(model.top1.total),
    }
    if model.top5 is not None:
        found |= _share("top5", model.top5)
    if model.label_sets is not None:
        sets = model.label_sets
        found["sets_images_count"] = float(sets.top1.total if sets.top1 else 0)
        found["sets_left_out_count"] = float(sets.left_out + sets.unnamed)
        found |= _share("sets_top1", sets.top1) if sets.top1 else {}
    for size in model.sizes:
        found[f"top1_{size_name(size.image_px)}_ratio"] = size.top1.ratio
    return {f"{report.split}/{name}": value for name, value in found.items()}


def _share(name: str, found: Share) -> dict[str, float]:
    return {
        f"{name}_ratio": found.ratio,
        f"{name}_low_ratio": found.low_ratio,
        f"{name}_high_ratio": found.high_ratio,
    }

"""Stage `interpret`: pictures of what a model has learned, and the numbers behind them."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jobs.stage import StageOutput, StageTools
from pipeline.data.shards.shard_set import ShardSet
from pipeline.evaluation import figures
from pipeline.evaluation.interpret.album import draw_all
from pipeline.evaluation.interpret.sample import Reader
from pipeline.evaluation.interpret.study import interpret
from pipeline.evaluation.passes import torch_threads
from pipeline.model.saved import load_model
from schemas.checkpoint import MODEL_FOLDER
from schemas.interpret import ARRAYS_FILE, INTERPRET_FILE, InterpretReport, InterpretSpec
from schemas.manifest import DATASET_FOLDER
from schemas.runs import StageRequest
from schemas.spec import canonical_json


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Look at the model over images of the split; write document, arrays and figures."""
    spec = InterpretSpec.parse(request.spec)
    data = request.inputs["data"]
    model, _ = load_model(Path(request.inputs["model"].path) / MODEL_FOLDER)
    split = ShardSet.open(Path(data.path) / DATASET_FOLDER).split(
        data.split or InterpretSpec.default_splits["data"]
    )
    reader = Reader(
        split=split,
        image_px=model.spec.image_px,
        batch_samples=spec.batch_samples,
        threads=spec.threads,
        stopped=tools.stop.requested,
    )
    with torch_threads(spec.threads):
        found = interpret(model, reader, spec, seed=request.seed, tell=tools.say)
    for it in found.report.absent:
        tools.say(f"no {it.section.replace('_', ' ')}: {it.reason}")
    folder = tools.attempt.path
    (folder / INTERPRET_FILE).write_text(canonical_json(found.report.dump()) + "\n")
    arrays = {name: np.ascontiguousarray(it) for name, it in found.arrays.items()}
    save_file(arrays, folder / ARRAYS_FILE)
    figures.write_notes(folder, *draw_all(folder, found))
    return StageOutput(metrics=_metrics(found.report))


def _metrics(report: InterpretReport) -> dict[str, float]:
    found = {}
    if report.attention is not None:
        found["attention_distance_px"] = float(np.mean(report.attention.distances_px))
        found["attention_entropy_ratio"] = float(np.mean(report.attention.entropies))
    if report.neighbourhood is not None:
        found["images_count"] = float(report.neighbourhood.images)
        found["same_class_ratio"] = report.neighbourhood.same_class_ratio
        found["same_class_chance_ratio"] = report.neighbourhood.same_class_chance
    return {f"{report.split}/{name}": value for name, value in found.items()}

"""Stage `features`: what the head of a saved model sees of every image, as Arrow tables."""

from pathlib import Path

from jobs.passes import PASSES_FOLDER, do_pass, pass_of
from jobs.stage import StageOutput, StageTools
from pipeline.data.shards.shard_set import ShardSet
from pipeline.evaluation.features import Extract, document_path, features_path
from pipeline.model.saved import load_saved
from schemas.checkpoint import MODEL_FOLDER
from schemas.errors import DataError
from schemas.manifest import DATASET_FOLDER
from schemas.probing import FeaturesDocument, FeaturesSpec
from schemas.runs import StageRequest
from schemas.spec import canonical_json


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Write the features of each split, and what they are of, into the attempt."""
    spec = FeaturesSpec.parse(request.spec)
    data, model = request.inputs["data"], request.inputs["model"]
    shards = ShardSet.open(Path(data.path) / DATASET_FOLDER)
    size = (spec.image_px, spec.image_px) if isinstance(spec.image_px, int) else spec.image_px
    work = Extract(Path(model.path) / MODEL_FOLDER, size)
    out, rows, width = tools.attempt.path, {}, 0
    for split in _splits(spec, shards):
        tools.say(f"features of {shards.split(split).num_rows} images of {data.stage}@{split}")
        path = features_path(out, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        task = pass_of(work, data.revise(split=split), spec)
        table = do_pass(task, path, spec, tools, label="extracting features")
        rows[split], width = len(table), table.schema.field("features").type.list_size
    document = FeaturesDocument(
        data_digest=shards.digest,
        model_digest=model.digest,
        class_names=shards.class_names,
        width=width,
        image_px=size or load_saved(work.model).spec.image_px,
        split_rows=rows,
    )
    document_path(out).write_text(canonical_json(document.dump()) + "\n")
    metrics = {f"{split}/images_count": float(count) for split, count in rows.items()}
    return StageOutput(
        metrics | {"features/width_count": float(width)},
        spent=(PASSES_FOLDER,),
    )


def _splits(spec: FeaturesSpec, shards: ShardSet) -> list[str]:
    """Those that the spec names, or all that have images.

    Raises:
        DataError: If one is not there, or no split has images.
    """
    if spec.splits is not None:
        return [shards.split(name).name for name in spec.splits]
    found = [name for name, entry in sorted(shards.manifest.splits.items()) if entry.rows]
    if not found:
        raise DataError("the shard set has no images to compute features of")
    return found

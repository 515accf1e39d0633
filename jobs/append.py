"""The append stage: a shard set grows by the images of one more source."""

import json
from pathlib import Path

from jobs.quality import write_quality
from jobs.stage import StageOutput, StageTools
from pipeline.data.ingest.append import APPEND_PIECES, append_images
from pipeline.data.ingest.build import BuildResult
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BuildTools, write_bytes
from schemas.curation import AppendSpec
from schemas.manifest import DATASET_FOLDER, ShardSetManifest
from schemas.runs import StageRequest


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Add the images of the request's source to the shard set that `to` names."""
    spec = AppendSpec.parse(request.spec)
    old = ShardSet.open(Path(request.inputs["to"].path) / DATASET_FOLDER)
    out = tools.attempt.path / DATASET_FOLDER
    build = BuildTools(tools.pool, tools.attempt.progress, tools.stop, tools.say, tools.files)
    fingerprint = request.key_record.inputs["source"]
    whole, new = append_images(old, spec, fingerprint=fingerprint, tools=build, out=out)
    write_quality(tools.attempt.path, ShardSet.open(out), build)
    metrics = _metrics(whole.manifest, new)
    summary = {"digest": whole.digest, "metrics": metrics, "added_to": old.digest}
    write_bytes(tools.attempt.path / "summary.json", json.dumps(summary, indent=2).encode())
    tools.metrics.log(metrics, step=0)
    tools.say(_sentence(whole.manifest, new.manifest, request.inputs["to"].stage))
    known = {f"{DATASET_FOLDER}/{path}": sha256 for path, sha256 in whole.known_sha256.items()}
    return StageOutput(metrics, known, spent=APPEND_PIECES)


def _metrics(whole: ShardSetManifest, new: BuildResult) -> dict[str, float]:
    """Of the new images, and how many there are of each split now."""
    counts = {
        "added": new.manifest.num_rows,
        "images": sum(entry.rows for entry in whole.splits.values()),
        "classes": len(whole.class_names),
        "rejected": sum(new.manifest.rejections.values()),
    }
    counts |= {f"rejected_{reason}": count for reason, count in new.manifest.rejections.items()}
    counts |= {split: entry.rows for split, entry in whole.splits.items()}
    return {f"append/{name}_count": count for name, count in counts.items()}


def _sentence(whole: ShardSetManifest, new: ShardSetManifest, to: str) -> str:
    splits = ", ".join(f"{name} {entry.rows:,}" for name, entry in whole.splits.items())
    rejected = ", ".join(f"{count} {reason}" for reason, count in new.rejections.items())
    return (
        f"added {new.num_rows:,} images in {new.num_shards} shards to {to}, which has {splits} of "
        f"{len(whole.class_names)} classes now; rejected: {rejected or 'none'}"
    )

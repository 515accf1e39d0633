"""The remove stage: a shard set without images that somebody named."""

import json
from pathlib import Path

from jobs.stage import StageOutput, StageTools
from pipeline.data.curation.removing import REMOVE_PIECES, Found, remove_images
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BuildTools, write_bytes
from schemas.curation import RemoveSpec
from schemas.manifest import DATASET_FOLDER, ShardSetManifest
from schemas.runs import StageRequest


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Take the images that the request's spec names out of its shard set."""
    spec = RemoveSpec.parse(request.spec)
    derived, found = remove_images(
        ShardSet.open(Path(request.inputs["data"].path) / DATASET_FOLDER),
        spec,
        tools=BuildTools(tools.pool, tools.attempt.progress, tools.stop, tools.say),
        out=tools.attempt.path / DATASET_FOLDER,
    )
    metrics = _metrics(found, derived.manifest)
    summary = {
        "digest": derived.digest,
        "metrics": metrics,
        "note": spec.note,
        "missing": found.missing,
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False)
    write_bytes(tools.attempt.path / "summary.json", text.encode())
    tools.metrics.log(metrics, step=0)
    tools.say(_sentence(found, request.inputs["data"].stage))
    return StageOutput(
        metrics,
        {f"{DATASET_FOLDER}/{path}": sha256 for path, sha256 in derived.known_sha256.items()},
        spent=REMOVE_PIECES,
    )


def _metrics(found: Found, manifest: ShardSetManifest) -> dict[str, float]:
    counts = {
        "removed": len(found.rows),
        "removed_before": found.before,
        "missing": len(found.missing),
    }
    counts |= {split: entry.rows for split, entry in manifest.splits.items()}
    return {f"remove/{name}_count": count for name, count in counts.items()}


def _sentence(found: Found, stage: str) -> str:
    sentence = f"took {len(found.rows)} images out of {stage}"
    if found.before:
        sentence += f"; {found.before} had been taken out before"
    if found.missing:
        sentence += f"; {len(found.missing)} are not in it: {', '.join(found.missing[:5])}"
    return sentence

"""The ingest stage: a raw corpus becomes a shard set, with a report of its quality."""

import json
from pathlib import Path

from jobs.quality import write_quality
from jobs.stage import StageOutput, StageTools
from pipeline.data.ingest.build import BuildResult, build_shard_set
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BUILD_PIECES, BuildTools, write_bytes
from schemas.data import IngestSpec
from schemas.manifest import DATASET_FOLDER, ShardSetManifest
from schemas.quality import QualityReport
from schemas.runs import StageRequest


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Build the shard set of the request's spec into the attempt."""
    spec = IngestSpec.parse(request.spec)
    out = tools.attempt.path / DATASET_FOLDER
    build = BuildTools(tools.pool, tools.attempt.progress, tools.stop, tools.say, tools.files)
    fingerprint = request.key_record.inputs["source"]
    result = build_shard_set(spec, fingerprint=fingerprint, tools=build, out=out)
    report = write_quality(tools.attempt.path, ShardSet.open(out), build)
    metrics = _metrics(result)
    _write_summary(tools.attempt.path / "summary.json", report, metrics)
    tools.metrics.log(metrics, step=0)
    tools.say(_sentence(result.manifest))
    known = {f"{DATASET_FOLDER}/{path}": sha256 for path, sha256 in result.known_sha256.items()}
    # Shards of the artifact are links of those in the progress: were they kept, a damaged one would
    # be linked again instead of made again.
    return StageOutput(metrics, known, spent=BUILD_PIECES)


def _metrics(result: BuildResult) -> dict[str, float]:
    manifest = result.manifest
    metrics: dict[str, float] = {
        "corpus/images_count": manifest.num_rows,
        "corpus/bytes_count": manifest.num_bytes,
        "corpus/classes_count": len(manifest.class_names),
        "corpus/rejected_count": sum(manifest.rejections.values()),
    }
    for reason, count in manifest.rejections.items():
        metrics[f"corpus/rejected_{reason}_count"] = count
    for split, entry in manifest.splits.items():
        metrics[f"corpus/{split}_count"] = entry.rows
    return metrics


def _write_summary(path: Path, report: QualityReport, metrics: dict[str, float]) -> None:
    counts = {
        it.split: dict(zip(report.class_names, it.images_of_class, strict=True))
        for it in report.splits
    }
    summary = {"digest": report.digest, "metrics": metrics, "images_of_class": counts}
    write_bytes(path, json.dumps(summary, indent=2, ensure_ascii=False).encode())


def _sentence(manifest: ShardSetManifest) -> str:
    splits = ", ".join(f"{name} {entry.rows:,}" for name, entry in manifest.splits.items())
    rejected = ", ".join(f"{count} {reason}" for reason, count in manifest.rejections.items())
    return (
        f"{manifest.num_rows:,} images of {len(manifest.class_names)} classes ({splits}) in "
        f"{manifest.num_shards} shards; rejected: {rejected or 'none'}"
    )

"""The ingest stage: a raw corpus becomes a shard set, with a contact sheet to look at."""

import json
from pathlib import Path

import numpy as np

from jobs.stage import StageOutput, StageTools
from pipeline.data.build import BuildResult, build_shard_set
from pipeline.data.images.render import decode
from pipeline.data.images.sheet import tile
from pipeline.data.shards import ShardSet
from pipeline.data.staging import BUILD_PIECES, BuildTools, write_bytes
from schemas.data import IngestSpec
from schemas.manifest import DATASET_FOLDER, ShardSetManifest
from schemas.runs import StageRequest

_SHEET_COLUMNS = 8
_SHEET_IMAGES = 64


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Build the shard set of the request's spec into the attempt."""
    spec = IngestSpec.parse(request.spec)
    out = tools.attempt.path / DATASET_FOLDER
    result = build_shard_set(
        spec,
        fingerprint=request.key_record.inputs["source"],
        tools=BuildTools(tools.pool, tools.attempt.progress, tools.stop, tools.say),
        out=out,
    )
    data = ShardSet.open(out)
    metrics = _metrics(result)
    _write_summary(tools.attempt.path / "summary.json", data, metrics)
    write_bytes(tools.attempt.path / "figures" / "contact_sheet.png", _contact_sheet(data))
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


def _write_summary(path: Path, data: ShardSet, metrics: dict[str, float]) -> None:
    counts = {}
    for split in sorted(data.manifest.splits):
        labels = np.bincount(data.split(split).labels(), minlength=len(data.class_names))
        counts[split] = dict(zip(data.class_names, labels.tolist(), strict=True))
    summary = {"digest": data.digest, "metrics": metrics, "images_of_class": counts}
    write_bytes(path, json.dumps(summary, indent=2, ensure_ascii=False).encode())


def _contact_sheet(data: ShardSet) -> bytes:
    """The first images of the first split that is not for testing; storage order is random."""
    name = "train" if "train" in data.manifest.splits else min(data.manifest.splits)
    split = data.split(name)
    rows = [split.row(index) for index in range(min(_SHEET_IMAGES, split.num_rows))]
    return tile(
        [(decode(row.image), data.class_names[row.label]) for row in rows],
        columns=_SHEET_COLUMNS,
    )


def _sentence(manifest: ShardSetManifest) -> str:
    splits = ", ".join(f"{name} {entry.rows:,}" for name, entry in manifest.splits.items())
    rejected = ", ".join(f"{count} {reason}" for reason, count in manifest.rejections.items())
    return (
        f"{manifest.num_rows:,} images of {len(manifest.class_names)} classes ({splits}) in "
        f"{manifest.num_shards} shards; rejected: {rejected or 'none'}"
    )

"""The filter stage: a shard set without the images that also stand in test splits."""

import json
from pathlib import Path

from jobs.stage import StageOutput, StageTools
from pipeline.data.filter import INDEX_FILE, FilterResult, Removal, TestSplit, decontaminate
from pipeline.data.images.codec import Pixels
from pipeline.data.images.render import decode
from pipeline.data.images.sheet import tile
from pipeline.data.shards import ShardSet
from pipeline.data.staging import BuildTools, write_bytes
from schemas.data import FilterSpec
from schemas.manifest import DATASET_FOLDER
from schemas.runs import InputArtifact, StageRequest

_PAIRS_SHOWN = 16


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Clean the split that the request's `data` names, against all of its `against`."""
    spec = FilterSpec.parse(request.spec)
    source = request.inputs["data"]
    split = source.split or FilterSpec.default_splits["data"]
    data = _open(source)
    against = _against(request)
    result = decontaminate(
        (data, split),
        against,
        spec,
        tools=BuildTools(tools.pool, tools.attempt.progress, tools.stop, tools.say),
        out=tools.attempt.path / DATASET_FOLDER,
    )
    metrics = _metrics(result, split)
    _write_report(tools.attempt.path, result, metrics, against)
    if result.removals:
        pairs = _pairs(data, split, result.removals[:_PAIRS_SHOWN], against)
        write_bytes(tools.attempt.path / "figures" / "pairs.png", tile(pairs, columns=4))
    tools.metrics.log(metrics, step=0)
    tools.say(_sentence(result, f"{source.stage}@{split}"))
    known = {f"{DATASET_FOLDER}/{path}": sha256 for path, sha256 in result.known_sha256.items()}
    return StageOutput(metrics, known, spent=(INDEX_FILE,))


def _open(source: InputArtifact) -> ShardSet:
    return ShardSet.open(Path(source.path) / DATASET_FOLDER)


def _against(request: StageRequest) -> list[TestSplit]:
    """The test splits in the order of the spec; an input without a split means all of its own."""
    tests = []
    for number in range(sum(port.startswith("against[") for port in request.inputs)):
        source = request.inputs[f"against[{number}]"]
        data = _open(source)
        splits = [source.split] if source.split else sorted(data.manifest.splits)
        tests += [TestSplit(f"{source.stage}@{split}", data, split) for split in splits]
    return tests


def _metrics(result: FilterResult, split: str) -> dict[str, float]:
    metrics: dict[str, float] = {
        f"filter/{name}_count": count for name, count in result.counts.items()
    }
    return metrics | {f"filter/{split}_count": result.manifest.splits[split].rows}


def _sentence(result: FilterResult, cleaned: str) -> str:
    counts = result.counts
    sentence = (
        f"removed {counts['removed']} images of {cleaned}: {counts['exact']} exact and "
        f"{counts['near']} near copies of test images"
    )
    if counts["not_comparable"]:
        sentence += f"; {counts['not_comparable']} images too small for the near search (no hash)"
    return sentence


def _write_report(
    folder: Path, result: FilterResult, metrics: dict[str, float], against: list[TestSplit]
) -> None:
    pairs = [
        {
            "source": removal.source,
            "reason": removal.reason,
            "matched_set": against[removal.matched].name,
            "matched_source": removal.matched_source,
            "hamming_bits": removal.hamming_bits,
            "thumbnail_difference": removal.thumbnail_difference,
        }
        for removal in result.removals
    ]
    summary = {"digest": result.digest, "metrics": metrics}
    for name, value in (("pairs.json", pairs), ("summary.json", summary)):
        write_bytes(folder / name, json.dumps(value, indent=2, ensure_ascii=False).encode())


def _pairs(
    data: ShardSet, split: str, removals: tuple[Removal, ...], against: list[TestSplit]
) -> list[tuple[Pixels, str]]:
    """Each removed image, and beside it the test image that it repeats."""
    cleaned = data.split(split)
    pictures = []
    for removal in removals:
        test = against[removal.matched]
        matched = test.data.split(test.split).row(removal.matched_row)
        pictures.append((decode(cleaned.read(removal.shard, removal.row).image), removal.reason))
        pictures.append((decode(matched.image), test.name))
    return pictures

"""The filter stage: a shard set without copies of test images, poor images and near duplicates."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.stage import StageOutput, StageTools
from pipeline.data.curation.filter import FILTER_PIECES, FilterResult, NamedSplit, filter_split
from pipeline.data.curation.judging import NO_TEST
from pipeline.data.images.codec import Pixels
from pipeline.data.images.decode import decode
from pipeline.data.images.sheet import tile
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BuildTools, write_bytes, write_canonical
from pipeline.evaluation.figures import write_notes
from schemas.artifacts import LOGS_FOLDER
from schemas.curation import FilterSpec
from schemas.manifest import DATASET_FOLDER
from schemas.report import FIGURES_FOLDER, TEST_COPIES_FILE, FigureNote, TestCopiesReport
from schemas.runs import InputArtifact, StageRequest

_PAIRS_SHOWN = 24
_PAIRS_NOTE = FigureNote(
    file="pairs.png",
    title="images taken out",
    caption="Each beside the image that it repeats, least alike first; = stands for the same "
    "bytes, a number for the mean difference of the thumbnails in grey levels, cos for the cosine "
    "of the features.",
)
_CAPTION_CHARS = 18
_LISTED = 1000
"""Removed images in `pairs.json`; all are in the table of tombstones."""
_LISTED_COLUMNS = [
    "source",
    "reason",
    "matched_set",
    "matched_source",
    "hamming_bits",
    "thumbnail_difference",
    "cosine",
]


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Clean the split that the request's `data` names, by the rules of its spec."""
    spec = FilterSpec.parse(request.spec)
    cleaned = _named(request.inputs["data"], FilterSpec.default_splits["data"])
    against = _against(request)
    if spec.features:
        from jobs.set_features import with_features  # what reads features needs torch

        cleaned, *against = with_features([cleaned, *against], request)
    result = filter_split(
        cleaned,
        against,
        spec,
        tools=BuildTools(tools.pool, tools.attempt.progress, tools.stop, tools.say),
        out=tools.attempt.path / DATASET_FOLDER,
    )
    metrics = _metrics(result, cleaned.split)
    _write_report(tools.attempt.path, result, metrics)
    pairs = _pairs(cleaned, _most_doubtful(result.removals), against)
    if pairs:
        sheet = tools.attempt.path / FIGURES_FOLDER / _PAIRS_NOTE.file
        write_bytes(sheet, tile(pairs, columns=6))
        # Among the logs: words about a figure are no part of a data set's identity.
        write_notes(tools.attempt.path / LOGS_FOLDER, _PAIRS_NOTE)
    tools.metrics.log(metrics, step=0)
    tools.say(_sentence(result, cleaned.name))
    known = result.derived.known_sha256
    return StageOutput(
        metrics,
        {f"{DATASET_FOLDER}/{path}": sha256 for path, sha256 in known.items()},
        spent=FILTER_PIECES,
    )


def _named(source: InputArtifact, default_split: str) -> NamedSplit:
    split = source.split or default_split
    return NamedSplit(f"{source.stage}@{split}", _open(source), split)


def _open(source: InputArtifact) -> ShardSet:
    return ShardSet.open(Path(source.path) / DATASET_FOLDER)


def _against(request: StageRequest) -> list[NamedSplit]:
    """The test splits in the order of the spec; an input without a split means all of its own."""
    tests = []
    for number in range(sum(port.startswith("against[") for port in request.inputs)):
        source = request.inputs[f"against[{number}]"]
        data = _open(source)
        splits = [source.split] if source.split else sorted(data.manifest.splits)
        tests += [NamedSplit(f"{source.stage}@{split}", data, split) for split in splits]
    return tests


def _metrics(result: FilterResult, split: str) -> dict[str, float]:
    """Counts of rows; of each test split also how many of its images were found in the data."""
    counts = {"removed": len(result.removals), "not_comparable": result.not_comparable}
    counts |= {f"removed_{reason}": count for reason, count in result.reasons.items()}
    if result.other_label:
        counts["near_duplicate_other_label"] = result.other_label
    counts[split] = result.derived.manifest.splits[split].rows
    for test in result.tests:
        name = re.sub(r"[^A-Za-z0-9_.-]+", ".", test.test_set).strip(".")
        counts |= {f"{name}_removed": test.removed, f"{name}_found": test.found}
    return {f"filter/{name}_count": count for name, count in counts.items()}


def _sentence(result: FilterResult, cleaned: str) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in result.reasons.items())
    sentence = f"removed {len(result.removals)} images of {cleaned}: {reasons or 'none'}"
    for test in result.tests:
        sentence += f"; {test.found} of {test.images} images of {test.test_set} had a copy"
    if result.other_label:
        sentence += f"; {result.other_label} near duplicates had another label than what stays"
    if result.not_comparable:
        sentence += f"; {result.not_comparable} images too small for the near search (no hash)"
    return sentence


def _write_report(folder: Path, result: FilterResult, metrics: dict[str, float]) -> None:
    pairs = result.removals.slice(0, _LISTED).select(_LISTED_COLUMNS).to_pylist()
    summary = {"digest": result.derived.digest, "metrics": metrics, "reasons": result.reasons}
    write_canonical(folder / TEST_COPIES_FILE, TestCopiesReport(tests=result.tests).dump())
    for name, value in (("pairs.json", pairs), ("summary.json", summary)):
        write_bytes(folder / name, json.dumps(value, indent=2, ensure_ascii=False).encode())


def _most_doubtful(removals: pa.Table) -> pa.Table:
    """The removed rows that repeat another image, those least like their match first.

    What only features say comes before all that looks the same.
    """
    matched = removals.filter(removals["matched_row"].is_valid())
    difference = matched["thumbnail_difference"].fill_null(-1.0).to_numpy()
    cosine = matched["cosine"].fill_null(2.0).to_numpy()
    order = np.lexsort((-difference, cosine))
    return matched.take(pa.array(order[:_PAIRS_SHOWN]))


def _pairs(
    cleaned: NamedSplit, removals: pa.Table, against: list[NamedSplit]
) -> list[tuple[Pixels, str]]:
    """Each removed image, and beside it the one that it repeats: how far apart, and in which set.

    `=` stands for the same bytes, a number for the difference of the thumbnails in grey levels, or,
    with `cos`, for the cosine of the features.
    """
    split = cleaned.data.split(cleaned.split)
    splits = {place: test.data.split(test.split) for place, test in enumerate(against)}
    pictures = []
    for row in removals.to_pylist():
        theirs = split if row["test"] == NO_TEST else splits[row["test"]]
        matched = theirs.read(row["matched_place"], row["matched_row"])
        removed = split.read(row["place"], row["row"])
        pictures.append((decode(removed.image), removed.source[-_CAPTION_CHARS:]))
        pictures.append((decode(matched.image), f"{_nearness(row)} {row['matched_set']}"))
    return pictures


def _nearness(row: dict[str, Any]) -> str:
    difference, cosine = row["thumbnail_difference"], row["cosine"]
    if cosine is not None:
        return f"cos {cosine:.2f}"
    return "=" if difference is None else f"{difference:.1f}"

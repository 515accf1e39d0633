"""Builds a shard set in five steps: list, map, select, reduce, seal.

The bytes of the result depend on the source and the spec alone: not on the number of workers, the
order in which tasks end, or what failed and was tried again. A re-run redoes only pieces that were
not committed.

Costs. The driver holds the numbers of units (512 files each) and of buckets (`shard_bytes` each),
the class names, at most `select.per_class` candidates for each class, and the rejections; nothing
else grows with the corpus. A map task holds one unit, a reduce task about four times one bucket.
On disk, staged rows and shards exist side by side until the progress folder goes.
"""

import hashlib
import heapq
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.mapping import UnitTask, stage_unit
from pipeline.data.reduce import (
    BucketTask,
    Candidate,
    is_committed,
    reduce_bucket,
    select_bucket,
)
from pipeline.data.seal import BuildResult, Pieces, RejectionRow, seal
from pipeline.data.sources import check, list_units, split_names
from pipeline.data.sources import fingerprint as source_fingerprint
from pipeline.data.staging import BuildTools, Progress, Staging, write_json
from pipeline.data.tree import class_folders, path_parts
from schemas.data import HoldBackSpec, IngestSpec, SelectSpec
from schemas.errors import DataError, SpecError
from schemas.experiment import nearest
from schemas.sources import SourceSpec
from schemas.spec import digest_of, semantic_fields

__all__ = ["BuildResult", "build_shard_set", "resolve_classes"]

PLAN_VERSION = 1
"""Raised when the pieces in a progress folder change their form."""


@dataclass
class _Listing:
    """What the list step found; the units themselves are on disk."""

    units: int = 0
    digest: str = ""
    classes: set[str] = field(default_factory=set)
    images: Counter[str] = field(default_factory=Counter)
    """Split -> files that may be images."""
    nested: bool = True
    """No image lies directly in its class folder."""


@dataclass
class _Staged:
    """What the map step has come to, over all units."""

    rows: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    rejections: list[RejectionRow] = field(default_factory=list)


def build_shard_set(
    spec: IngestSpec, *, fingerprint: str, tools: BuildTools, out: Path
) -> BuildResult:
    """Build or finish building the shard set of a spec below `out`.

    Args:
        spec: What to build.
        fingerprint: Of the source, as `pipeline.data.sources.fingerprint` gives it.
        tools: Pool, progress folder, stop signal and voice of the build.
        out: Folder of the shard set; files in it are hard links of the progress folder's.

    Raises:
        SpecError: If the spec names a class or split that the source does not have.
        DataError: If the source cannot be used or changed meanwhile, or too much was rejected.
        DiskFullError: If no space is left.
        PausedError: If a stop was requested; the next call goes on.
    """
    check(spec.source)
    staging = Staging(tools.progress)
    splits = _splits(spec)
    tools.say("listing the corpus")
    listing = _list(spec, staging)
    classes = resolve_classes(spec.select, listing.classes)
    plan = {"spec": spec.dump(), "classes": classes, "splits": splits, "units": listing.units}
    identity = [PLAN_VERSION, semantic_fields(spec), fingerprint, listing.digest]
    staging.begin(digest_of(identity), plan)
    _map(staging, listing, tools)
    staged = _gather_units(staging, listing.units)
    _check_budget(spec, staged)
    sizes = {**staged.bytes, **_select(spec, staging, staged, tools)}
    buckets = _reduce(spec, staging, sizes, tools)
    rejections = [tuple(row) for bucket in buckets for row in bucket["rejections"]]
    pieces = Pieces(
        class_names=classes,
        splits=splits,
        shards=[bucket for bucket in buckets if bucket["rows"]],
        rejections=staged.rejections + rejections,
    )
    _refuse_changes(spec.source, fingerprint)
    return seal(spec, pieces, staging=staging, out=out)


def _refuse_changes(source: SourceSpec, planned: str) -> None:
    """The artifact bears the fingerprint of the plan; costs one more listing of the source."""
    if source_fingerprint(source) != planned:
        raise DataError(
            "the corpus changed while it was read; run again",
            where=getattr(source, "uri", None),
            hint="let the corpus rest until the run ends",
        )


def resolve_classes(select: SelectSpec, found: set[str]) -> tuple[str, ...]:
    """The class names in the order of their labels.

    Raises:
        SpecError: If the spec names a class that was not found, or holds back too many.
    """
    for field_name, names in (
        ("classes", select.classes or ()),
        ("exclude_classes", select.exclude_classes),
    ):
        for name in names:
            if name not in found:
                raise _unknown(f"select.{field_name}", name, sorted(found))
    if select.classes is not None:
        return select.classes
    if select.hold_back is not None:
        return _drawn(select.hold_back, found)
    return tuple(sorted(found - set(select.exclude_classes)))


def _drawn(spec: HoldBackSpec, found: set[str]) -> tuple[str, ...]:
    """One side of the draw of classes: those whose keyed hashes are smallest are held back."""
    if spec.num_classes >= len(found):
        raise SpecError(
            f"select.hold_back.num_classes is {spec.num_classes}, but the source has "
            f"{len(found)} classes; at least one must be left",
            where="select.hold_back.num_classes",
        )
    ranked = sorted(found, key=lambda name: digest_of(["hold_back", spec.seed, name]))
    held = set(ranked[: spec.num_classes])
    return tuple(sorted(held if spec.keep == "held_back" else found - held))


def _unknown(where: str, name: str, allowed: list[str]) -> SpecError:
    near = nearest(name, allowed)
    more = f" and {len(allowed) - 20} more" if len(allowed) > 20 else ""
    return SpecError(
        f"{where} names {name!r}; the source has {', '.join(allowed[:20])}{more}"
        + (f" (did you mean {near!r}?)" if near else ""),
        where=where,
    )


def _splits(spec: IngestSpec) -> tuple[str, ...]:
    splits = split_names(spec.source) if spec.split is None else ("test", "train")
    for name in spec.select.per_class:
        if name not in splits:
            raise _unknown("select.per_class", name, list(splits))
    return splits


def _list(spec: IngestSpec, staging: Staging) -> _Listing:
    """Write the units to disk; only their number, digest and class names stay in memory."""
    listing = _Listing(classes=class_folders(spec.source))
    digest = hashlib.sha256()
    for unit in list_units(spec.source):
        document = unit.dump()
        write_json(staging.listing(listing.units), document)
        listing.units += 1
        content = [document["members"], document["refused"]]
        digest.update(json.dumps(content).encode())
        listing.images.update(member.split for member in unit.members)
        listing.classes.update(member.class_name for member in unit.members)
        listing.nested &= all(len(path_parts(member.path)) > 2 for member in unit.members)
        listing.classes.update(file.class_name for file in unit.refused if file.class_name)
    listing.digest = digest.hexdigest()
    _check_listing(spec.source, listing)
    return listing


def _check_listing(source: SourceSpec, listing: _Listing) -> None:
    uri = getattr(source, "uri", "the source")
    if not listing.images:
        raise DataError(f"{uri} holds no image; images are expected as CLASS/image")
    if len(listing.classes) == 1 and listing.nested and not getattr(source, "splits", {}):
        (wrapper,) = listing.classes
        raise DataError(
            f"{uri} has one folder on top, {wrapper}, with nothing but folders in it: it seems to "
            "wrap the class folders, and would be the only class",
            where="source.splits",
            hint=f"source.splits: {{train: {wrapper}}}, which goes together with split, too",
        )
    for split in split_names(source):
        if not listing.images[split]:
            folder = getattr(source, "splits", {}).get(split)
            raise DataError(
                f"{uri} holds no image for the split {split!r}: nothing lies below {folder!r}",
                where=f"source.splits.{split}",
            )


def _map(staging: Staging, listing: _Listing, tools: BuildTools) -> None:
    pending = [unit for unit in range(listing.units) if not staging.unit(unit).is_file()]
    if len(pending) < listing.units:
        tools.say(f"{listing.units - len(pending)} of {listing.units} units are prepared already")
    progress = Progress(tools, "preparing images", len(pending))
    tasks = (UnitTask(staging.root, unit) for unit in pending)
    for _, images in tools.pool.map(stage_unit, tasks, label="prepare"):
        progress.finished(images)


def _gather_units(staging: Staging, units: int) -> _Staged:
    staged = _Staged()
    for unit in range(units):
        sidecar = json.loads(staging.unit(unit).read_bytes())
        staged.rows.update(sidecar["rows"])
        staged.bytes.update(sidecar["bytes"])
        staged.rejections += [tuple(row) for row in sidecar["rejections"]]
    return staged


def _check_budget(spec: IngestSpec, staged: _Staged) -> None:
    rejected = len(staged.rejections)
    files = rejected + staged.rows.total()
    if files == 0:
        raise DataError("no image is left; select.classes or exclude_classes leaves nothing")
    if rejected <= spec.max_rejected_ratio * files and staged.rows.total():
        return
    example = {reason: source for source, reason, _ in reversed(staged.rejections)}
    counts = Counter(reason for _, reason, _ in staged.rejections).most_common(3)
    reasons = ", ".join(f"{count} {reason} (as {example[reason]})" for reason, count in counts)
    raise DataError(
        f"{rejected} of {files} files were rejected: {reasons}; max_rejected_ratio allows "
        f"{spec.max_rejected_ratio:.1%}",
        where="max_rejected_ratio",
        hint="mend or remove these files, or allow a larger share",
    )


def _select(
    spec: IngestSpec, staging: Staging, staged: _Staged, tools: BuildTools
) -> dict[str, int]:
    """Draw what `select.per_class` keeps; returns the bytes kept of each split drawn from."""
    thresholds: dict[str, dict[str, Any]] = {}
    sizes: dict[str, int] = {}
    for split, count in sorted(spec.select.per_class.items()):
        drawn = _draw(_tasks(staging, split, staged.bytes[split], spec), count, tools)
        thresholds[split] = {str(label): max(some)[:2] for label, some in sorted(drawn.items())}
        sizes[split] = sum(size for some in drawn.values() for _, _, size in some)
        short = sum(len(some) < count for some in drawn.values())
        if short:
            tools.say(f"{short} classes of the split {split} have fewer than {count} images")
    write_json(staging.thresholds, thresholds)
    return sizes


def _draw(tasks: list[BucketTask], count: int, tools: BuildTools) -> dict[int, list[Candidate]]:
    """Label -> the `count` candidates with the smallest hashes over all buckets."""
    drawn: dict[int, list[Candidate]] = {}
    progress = Progress(tools, "drawing images", len(tasks))
    for _, found in tools.pool.map(select_bucket, tasks, label="select"):
        for label, candidates in found.items():
            drawn[label] = heapq.nsmallest(count, drawn.get(label, []) + candidates)
        progress.finished(sum(map(len, found.values())))
    return drawn


def _tasks(staging: Staging, split: str, num_bytes: int, spec: IngestSpec) -> list[BucketTask]:
    """One task for each bucket: a power of two of them, about `shard_bytes` in each."""
    needed = max(1, math.ceil(num_bytes / spec.shard_bytes))
    buckets = 1 << (needed - 1).bit_length()
    return [BucketTask(staging.root, split, bucket, buckets) for bucket in range(buckets)]


def _reduce(
    spec: IngestSpec, staging: Staging, sizes: dict[str, int], tools: BuildTools
) -> list[dict[str, Any]]:
    """The buckets' commits, in the order of (split, bucket)."""
    tasks = [task for split in sorted(sizes) for task in _tasks(staging, split, sizes[split], spec)]
    pending = [task for task in tasks if not is_committed(task)]
    progress = Progress(tools, "writing shards", len(pending))
    for _, rows in tools.pool.map(reduce_bucket, pending, label="write"):
        progress.finished(rows)
    return [
        json.loads(staging.bucket(task.split, task.bucket, task.buckets).read_bytes())
        for task in tasks
    ]

"""Builds a shard set in five steps: list, map, select, reduce, seal.

The bytes of the result depend on the source and the spec alone: not on the number of workers, the
order in which tasks end, or what failed and was tried again. A re-run redoes only pieces that were
not committed.

Costs. The driver holds the numbers of units (512 files each) and of buckets (`shard_bytes` each),
the class names, and at most `select.per_class` candidates for each class; nothing else grows with
the corpus. A map task holds one unit, a reduce task about three times one bucket. On disk, staged
rows and shards exist side by side until the progress folder goes.
"""

import heapq
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.ingest.known import find_known
from pipeline.data.ingest.listing import Listing, list_corpus, load_listing, save_listing
from pipeline.data.ingest.mapping import UnitTask, stage_unit
from pipeline.data.ingest.reduce import (
    BucketTask,
    Candidate,
    is_committed,
    reduce_bucket,
    select_bucket,
)
from pipeline.data.ingest.rejections import Tally
from pipeline.data.ingest.seal import BuildResult, Pieces, seal
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.sources import corpus_of
from pipeline.data.sources import fingerprint as source_fingerprint
from pipeline.data.staging import BuildTools, Progress, Staging, write_json
from schemas.data import HoldBackSpec, IngestSpec, SelectSpec
from schemas.errors import DataError, SpecError
from schemas.sources import SourceSpec
from schemas.spec import digest_of, semantic_fields
from schemas.words import nearest

__all__ = ["BuildResult", "build_shard_set", "resolve_classes"]

PLAN_VERSION = 3
"""Raised when the pieces in a progress folder change their form."""
_BUCKETS_IN_MEMORY = 3
"""How often a reduce task holds its bucket at the most."""


@dataclass
class _Staged:
    """What the map step has come to, over all units."""

    rows: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    rejected: Tally = field(default_factory=Tally)


def build_shard_set(
    spec: IngestSpec,
    *,
    fingerprint: str,
    tools: BuildTools,
    out: Path,
    onto: ShardSet | None = None,
) -> BuildResult:
    """Build or finish building the shard set of a spec below `out`.

    Args:
        spec: What to build.
        fingerprint: Of the source, as `pipeline.data.sources.fingerprint` gives it.
        tools: Pool, progress folder, stop signal and voice of the build.
        out: Folder of the shard set; files in it are hard links of the progress folder's.
        onto: A set that this one will be added to: its labels are continued, and its images are
            rejected as copies.

    Raises:
        SpecError: If the spec names a class or split that the source does not have.
        DataError: If the source cannot be used or changed meanwhile, or too much was rejected.
        DiskFullError: If no space is left.
        PausedError: If a stop was requested; the next call goes on.
    """
    staging = Staging(tools.progress)
    added_to = "" if onto is None else onto.digest
    identity = digest_of([PLAN_VERSION, semantic_fields(spec), fingerprint, added_to])
    staging.resume(identity)
    staging.begin(identity, {})
    listing = _list(spec, fingerprint, staging, tools)
    splits = _splits(spec, listing)
    chosen = resolve_classes(spec.select, listing.classes)
    classes = chosen if onto is None else tuple(dict.fromkeys((*onto.class_names, *chosen)))
    plan = {
        "spec": spec.dump(),
        "classes": classes,
        "chosen": chosen,
        "splits": splits,
        "units": listing.units,
    }
    staging.begin(identity, plan)
    _map(staging, listing, tools)
    staged = _gather_units(staging, listing.units)
    _check_budget(spec, staged)
    if onto is not None:
        find_known(onto, staging, listing.units, tools)
    sizes = {**staged.bytes, **_select(spec, staging, staged, tools)}
    tasks = _reduce(spec, staging, sizes, tools)
    for bucket in _commits(staging, tasks):
        staged.rejected.merge(bucket["rejected"])
    pieces = Pieces(
        class_names=classes,
        splits=splits,
        shards=(bucket for bucket in _commits(staging, tasks) if bucket["rows"]),
        rejections=(
            *(staging.unit_rejections(unit) for unit in range(listing.units)),
            *(staging.bucket_rejections(it.split, it.bucket, it.buckets) for it in tasks),
        ),
        rejected=staged.rejected.counts,
        known_classes=frozenset() if onto is None else frozenset(onto.class_names),
        known_splits=frozenset() if onto is None else frozenset(onto.manifest.splits),
    )
    _refuse_changes(spec.source, fingerprint, staging, tools)
    return seal(spec, pieces, staging=staging, out=out)


def _list(spec: IngestSpec, planned: str, staging: Staging, tools: BuildTools) -> Listing:
    """List the corpus, unless an earlier attempt did so at the same state of the corpus."""
    done = load_listing(staging)
    if done is not None:
        return done
    corpus_of(spec.source, tools.files).check()
    tools.say("listing the corpus")
    listing = list_corpus(spec.source, staging, tools)
    _refuse_changes(spec.source, planned, staging, tools)
    save_listing(staging, listing)
    return listing


def _refuse_changes(source: SourceSpec, planned: str, staging: Staging, tools: BuildTools) -> None:
    """The artifact bears the fingerprint of the plan; costs one more listing of the source."""
    if source_fingerprint(source, tools.files) != planned:
        staging.forget()
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
    return in_order(found - set(select.exclude_classes))


def in_order(names: set[str]) -> tuple[str, ...]:
    """Class names as their labels count them: by name, whole numbers by their value."""
    numbers = all(name.isdecimal() and str(int(name)) == name for name in names)
    return tuple(sorted(names, key=int)) if numbers else tuple(sorted(names))


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
    return in_order(held if spec.keep == "held_back" else found - held)


def _unknown(where: str, name: str, allowed: list[str]) -> SpecError:
    near = nearest(name, allowed)
    more = f" and {len(allowed) - 20} more" if len(allowed) > 20 else ""
    return SpecError(
        f"{where} names {name!r}; the source has {', '.join(allowed[:20])}{more}"
        + (f" (did you mean {near!r}?)" if near else ""),
        where=where,
    )


def _splits(spec: IngestSpec, listing: Listing) -> tuple[str, ...]:
    """The source's own splits, sorted, or the two of a split by hash."""
    splits = tuple(sorted(listing.images))
    if spec.split is not None and len(splits) > 1:
        raise SpecError(
            f"split divides one split, but the source has {', '.join(splits)}; leave split out, or "
            "name one split of the source",
            where="split",
        )
    splits = splits if spec.split is None else ("test", "train")
    for name in spec.select.per_class:
        if name not in splits:
            raise _unknown("select.per_class", name, list(splits))
    return splits


def _map(staging: Staging, listing: Listing, tools: BuildTools) -> None:
    pending = [unit for unit in range(listing.units) if not staging.unit(unit).is_file()]
    if len(pending) < listing.units:
        tools.say(f"{listing.units - len(pending)} of {listing.units} units are prepared already")
    progress = Progress(tools, "preparing images", len(pending))
    tasks = (UnitTask(staging.root, unit, tools.files) for unit in pending)
    for _, (images, rejected) in tools.pool.map(stage_unit, tasks, label="prepare"):
        progress.finished(images, rejected=rejected)


def _gather_units(staging: Staging, units: int) -> _Staged:
    staged = _Staged()
    for unit in range(units):
        sidecar = json.loads(staging.unit(unit).read_bytes())
        staged.rows.update(sidecar["rows"])
        staged.bytes.update(sidecar["bytes"])
        staged.rejected.merge(sidecar["rejected"])
    return staged


def _check_budget(spec: IngestSpec, staged: _Staged) -> None:
    rejected = staged.rejected.total
    files = rejected + staged.rows.total()
    if files == 0:
        raise DataError("no image is left; select.classes or exclude_classes leaves nothing")
    if rejected <= spec.max_rejected_ratio * files and staged.rows.total():
        return
    examples = staged.rejected.examples
    counts = Counter(staged.rejected.counts).most_common(3)
    reasons = ", ".join(f"{count} {reason} (as {examples[reason]})" for reason, count in counts)
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


def _all_tasks(spec: IngestSpec, staging: Staging, sizes: dict[str, int]) -> list[BucketTask]:
    return [task for split in sorted(sizes) for task in _tasks(staging, split, sizes[split], spec)]


def _reduce(
    spec: IngestSpec, staging: Staging, sizes: dict[str, int], tools: BuildTools
) -> list[BucketTask]:
    """Write what is missing of the shards; returns all tasks, in the order of (split, bucket)."""
    tasks = _all_tasks(spec, staging, sizes)
    memory_bytes = _BUCKETS_IN_MEMORY * min(spec.shard_bytes, max(sizes.values()))
    pending = [task for task in tasks if not is_committed(task)]
    progress = Progress(tools, "writing shards", len(pending))
    written = tools.pool.map(reduce_bucket, pending, label="write", memory_bytes=memory_bytes)
    for _, rows in written:
        progress.finished(rows)
    return tasks


def _commits(staging: Staging, tasks: list[BucketTask]) -> Iterator[dict[str, Any]]:
    """What became of each bucket; read one by one, since each counts all of its labels."""
    for task in tasks:
        yield json.loads(staging.bucket(task.split, task.bucket, task.buckets).read_bytes())

"""Decontamination: removes from one split what also stands in test splits, exactly or nearly.

A new manifest over the same shards plus a table of removed rows, each with its match; no image is
written again: the shard files get a second name (one hard link each; a copy where the disk has no
links). Exact copies share the uid. Near copies: perceptual hashes (of the image or of its
mirror) at most `max_hamming_bits` apart, confirmed on the thumbnails. Rows without a hash (short
sides, or hashes off at ingest) are compared exactly only.

Costs. The index of the test images is one memory-mapped file of about 1.1 kB for each; a task
holds one shard's hashes and thumbnails. Matches are few and held by the driver.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.matching import INDEX, Copy, FilterTask, find_copies
from pipeline.data.seal import place
from pipeline.data.shards import ShardSet, Split
from pipeline.data.staging import (
    BuildTools,
    Progress,
    committing,
    read_table,
    write_canonical,
    write_table,
)
from schemas.data import FilterSpec
from schemas.errors import DataError
from schemas.manifest import (
    MANIFEST_FILE,
    REJECTIONS_FILE,
    SHARD_TABLE_FILE,
    SHARDS_FOLDER,
    TOMBSTONES_FILE,
    ShardSetManifest,
    TombstoneEntry,
)
from schemas.records import TOMBSTONES

INDEX_FILE = "tests.arrow"
"""Index of the test images, in the progress folder; of no use once the filter is committed."""


@dataclass(frozen=True)
class TestSplit:
    """A split whose images must not be in the data."""

    __test__ = False  # no test case, whatever pytest thinks of the name

    name: str
    """`STAGE@SPLIT`, as matches are reported."""
    data: ShardSet
    split: str


@dataclass(frozen=True)
class Removal:
    """A row that the filter removes, and the image that it repeats."""

    reason: str
    """`exact_copy` or `near_copy`."""
    uid: bytes
    source: str
    shard: int
    row: int
    matched: int
    """Place of the test split among those given."""
    matched_row: int
    """Live row of the test split."""
    matched_uid: bytes
    matched_source: str
    hamming_bits: int | None
    """None for an exact copy, as the next."""
    thumbnail_difference: float | None


@dataclass(frozen=True)
class FilterResult:
    """A sealed shard set with fewer live rows."""

    manifest: ShardSetManifest
    digest: str
    known_sha256: dict[str, str]
    """Path below `out` -> sha256 in hex, of every file in it."""
    removals: tuple[Removal, ...]
    """What this filter removed, in storage order."""
    counts: dict[str, int]
    """Of the rows: `removed`, `exact`, `near`, and `not_comparable`, which have no hash."""


def decontaminate(
    cleaned: tuple[ShardSet, str],
    against: Sequence[TestSplit],
    spec: FilterSpec,
    *,
    tools: BuildTools,
    out: Path,
) -> FilterResult:
    """Write a shard set without the rows of one split that repeat an image of `against`.

    Args:
        cleaned: The shard set, and the one split of it that may lose rows.
        against: Where the images stand that must not be in it.
        spec: How near is a near copy.
        tools: Pool, progress folder, stop signal and voice.
        out: Folder of the new shard set; its shards are links of the old one's.

    Raises:
        DataError: If a split does not exist, or nothing of the data is left.
        PausedError: If a stop was requested; the next call begins again.
        DiskFullError: If no space is left.
    """
    data, split = cleaned[0], cleaned[0].split(cleaned[1])
    index = tools.progress / INDEX_FILE
    _write_index(against, index)
    removals = _search(data, split, spec, index=index, tools=tools)
    if len(removals) == split.num_rows:
        raise DataError(
            f"every image of the split {split.name!r} also stands in {', '.join(spec.against)}"
        )
    tombstones = _tombstones(data, split, removals, against=against)
    known = _carry_over(data, out)
    known[TOMBSTONES_FILE] = write_table(out / TOMBSTONES_FILE, tombstones)
    manifest = data.manifest.revise(
        parents=(data.digest, *(test.data.digest for test in against)),
        tombstones=TombstoneEntry(sha256=known[TOMBSTONES_FILE], rows=len(tombstones)),
        splits={
            **data.manifest.splits,
            split.name: data.manifest.splits[split.name].revise(
                rows=split.num_rows - len(removals)
            ),
        },
    )
    digest = write_canonical(out / MANIFEST_FILE, manifest.dump())
    exact = sum(removal.reason == "exact_copy" for removal in removals)
    return FilterResult(
        manifest=manifest,
        digest=digest,
        known_sha256={**known, MANIFEST_FILE: digest},
        removals=tuple(removals),
        counts={
            "removed": len(removals),
            "exact": exact,
            "near": len(removals) - exact,
            "not_comparable": _without_hash(split),
        },
    )


def _without_hash(split: Split) -> int:
    """Live rows that only the exact search can find; reads one column."""
    shards = range(len(split.shard_names))
    return sum(split.live_table(shard, ["phash"])["phash"].null_count for shard in shards)


def _write_index(against: Sequence[TestSplit], path: Path) -> None:
    """The live rows of all test splits in one file, streamed shard by shard."""
    with (
        committing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, INDEX) as writer,
    ):
        for place_of_set, test in enumerate(against):
            split = test.data.split(test.split)
            live = 0
            for shard in range(len(split.shard_names)):
                rows = _index_rows(split, shard, place_of_set, live)
                writer.write_table(rows)
                live += len(rows)


def _index_rows(split: Split, shard: int, place_of_set: int, live: int) -> pa.Table:
    columns = ["uid", "source", "phash", "thumbnail"]
    rows = split.live_table(shard, columns)
    extra = {
        "set": pa.array(np.full(len(rows), place_of_set, np.int32)),
        "live_row": pa.array(np.arange(live, live + len(rows), dtype=np.int64)),
    }
    wide = pa.table({**{name: rows[name] for name in columns}, **extra})
    return wide.select(INDEX.names).cast(INDEX)


def _search(
    data: ShardSet, split: Split, spec: FilterSpec, *, index: Path, tools: BuildTools
) -> list[Removal]:
    """One task for each shard of the split; rows that are gone already are left alone."""
    tasks = [
        FilterTask(
            shard=data.shards_folder / name,
            index=index,
            max_hamming_bits=spec.max_hamming_bits,
            max_thumbnail_difference=spec.max_thumbnail_difference,
        )
        for name in split.shard_names
    ]
    progress = Progress(tools, "comparing with the test splits", len(tasks))
    gone = set(zip(split.removed.shard.tolist(), split.removed.row.tolist(), strict=True))
    place_of = {name: shard for shard, name in enumerate(split.shard_names)}
    tests = read_table(index)
    removals: list[Removal] = []
    for task, copies in tools.pool.map(find_copies, tasks, label="compare"):
        shard = place_of[task.shard.name]
        removals += [
            _removal(shard, copy, tests) for copy in copies if (shard, copy.row) not in gone
        ]
        progress.finished(int(split.shard_rows[shard]))
    return sorted(removals, key=lambda removal: (removal.shard, removal.row))


def _removal(shard: int, copy: Copy, tests: pa.Table) -> Removal:
    return Removal(
        reason="exact_copy" if copy.hamming_bits is None else "near_copy",
        uid=copy.uid,
        source=copy.source,
        shard=shard,
        row=copy.row,
        matched=tests["set"][copy.test].as_py(),
        matched_row=tests["live_row"][copy.test].as_py(),
        matched_uid=tests["uid"][copy.test].as_py(),
        matched_source=tests["source"][copy.test].as_py(),
        hamming_bits=copy.hamming_bits,
        thumbnail_difference=copy.thumbnail_difference,
    )


def _tombstones(
    data: ShardSet, split: Split, removals: list[Removal], *, against: Sequence[TestSplit]
) -> pa.Table:
    """The rows removed now and before, sorted by (split, uid)."""
    rows: list[dict[str, Any]] = [] if data.tombstones is None else data.tombstones.to_pylist()
    rows += [
        {
            "uid": removal.uid,
            "split": split.name,
            "shard": split.shard_names[removal.shard],
            "row": removal.row,
            "source": removal.source,
            "reason": removal.reason,
            "matched_set": against[removal.matched].name,
            "matched_uid": removal.matched_uid,
            "matched_source": removal.matched_source,
            "hamming_bits": removal.hamming_bits,
            "thumbnail_difference": removal.thumbnail_difference,
        }
        for removal in removals
    ]
    rows.sort(key=lambda row: (row["split"], row["uid"]))
    return pa.Table.from_pylist(rows, schema=TOMBSTONES)


def _carry_over(data: ShardSet, out: Path) -> dict[str, str]:
    """Link the parent's tables and shards; their digests are known, so nothing is read again."""
    known = {
        SHARD_TABLE_FILE: data.manifest.shard_table_sha256,
        REJECTIONS_FILE: data.manifest.rejections_sha256,
    }
    names, digests = data.table["name"].to_pylist(), data.table["sha256"].to_pylist()
    for name, sha256 in zip(names, digests, strict=True):
        known[f"{SHARDS_FOLDER}/{name}"] = sha256.hex()
    for path in known:
        place(data.folder / path, out / path)
    return known

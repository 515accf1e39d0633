"""The seal step: shards, tables and manifest in their final place; the manifest names all else."""

import errno
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.images.codec import codec_versions
from pipeline.data.order import ORDER_VERSION
from pipeline.data.staging import Staging, committing, write_canonical, write_table
from schemas.data import IngestSpec
from schemas.errors import DataError
from schemas.manifest import (
    MANIFEST_FILE,
    REJECTIONS_FILE,
    SHARD_TABLE_FILE,
    SHARDS_FOLDER,
    ShardSetManifest,
    SplitEntry,
)
from schemas.records import RECORD_VERSION, REJECTIONS, SHARD_TABLE
from schemas.spec import digest_of, semantic_fields

RejectionRow = tuple[str, str, str]
"""Source, reason, message."""


@dataclass(frozen=True)
class BuildResult:
    """A sealed shard set."""

    manifest: ShardSetManifest
    digest: str
    known_sha256: dict[str, str]
    """Path below the shard set's folder -> sha256 in hex, of every file in it."""


@dataclass(frozen=True)
class Pieces:
    """What the earlier steps made."""

    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    shards: list[dict[str, Any]]
    """The buckets' commits that have rows, in the order of (split, bucket)."""
    rejections: list[RejectionRow]


def seal(spec: IngestSpec, pieces: Pieces, *, staging: Staging, out: Path) -> BuildResult:
    """Put everything below `out` and write the manifest last.

    Raises:
        DataError: If a class or a split has no image.
        DiskFullError: If no space is left.
    """
    _refuse_gaps(pieces)
    known = {}
    for shard in pieces.shards:
        place(staging.shard(shard["name"]), out / SHARDS_FOLDER / shard["name"])
        known[f"{SHARDS_FOLDER}/{shard['name']}"] = Path(shard["name"]).stem
    known[SHARD_TABLE_FILE] = write_table(out / SHARD_TABLE_FILE, _shard_table(pieces.shards))
    known[REJECTIONS_FILE] = write_table(out / REJECTIONS_FILE, _rejections(pieces.rejections))
    manifest = _manifest(spec, pieces, known)
    digest = write_canonical(out / MANIFEST_FILE, manifest.dump())
    return BuildResult(manifest, digest, {**known, MANIFEST_FILE: digest})


def place(source: Path, target: Path) -> None:
    """Give a finished file a second name; a copy where the disk does not do that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT):
            raise
        with committing(target) as temporary:
            shutil.copyfile(source, temporary)


def histogram(shards: list[dict[str, Any]], split: str | None = None) -> Counter[int]:
    """Label -> rows, of one split or of all."""
    counts: Counter[int] = Counter()
    for shard in shards:
        if split is None or shard["split"] == split:
            counts.update(dict(shard["label_histogram"]))
    return counts


def _refuse_gaps(pieces: Pieces) -> None:
    counts = histogram(pieces.shards)
    empty = [name for label, name in enumerate(pieces.class_names) if not counts[label]]
    if empty:
        raise DataError(
            f"no image is left in {len(empty)} of {len(pieces.class_names)} classes: "
            f"{', '.join(empty[:10])}; add images or leave them out with select.exclude_classes"
        )
    for split in pieces.splits:
        if not any(shard["split"] == split for shard in pieces.shards):
            raise DataError(
                f"no image is left in the split {split!r}; the corpus is too small for it, or all "
                "of its files were rejected"
            )


def _shard_table(shards: list[dict[str, Any]]) -> pa.Table:
    rows = [
        {
            "name": shard["name"],
            "split": shard["split"],
            "rows": shard["rows"],
            "bytes": shard["bytes"],
            "sha256": bytes.fromhex(Path(shard["name"]).stem),
            "label_histogram": [tuple(pair) for pair in shard["label_histogram"]],
        }
        for shard in shards
    ]
    return pa.Table.from_pylist(rows, schema=SHARD_TABLE)


def _rejections(rejections: list[RejectionRow]) -> pa.Table:
    columns = [list(column) for column in zip(*sorted(rejections), strict=True)] or [[], [], []]
    return pa.Table.from_arrays(
        [pa.array(column, pa.string()) for column in columns], schema=REJECTIONS
    )


def _manifest(spec: IngestSpec, pieces: Pieces, known: dict[str, str]) -> ShardSetManifest:
    transform = {"image": digest_of(semantic_fields(spec.image)), **codec_versions()}
    return ShardSetManifest(
        record_version=RECORD_VERSION,
        order_version=ORDER_VERSION,
        transform=transform,
        class_names=pieces.class_names,
        splits={split: _split_entry(pieces.shards, split) for split in pieces.splits},
        num_shards=len(pieces.shards),
        num_rows=sum(shard["rows"] for shard in pieces.shards),
        num_bytes=sum(shard["bytes"] for shard in pieces.shards),
        shard_table_sha256=known[SHARD_TABLE_FILE],
        rejections=dict(sorted(Counter(reason for _, reason, _ in pieces.rejections).items())),
        rejections_sha256=known[REJECTIONS_FILE],
    )


def _split_entry(shards: list[dict[str, Any]], split: str) -> SplitEntry:
    rows = [shard["rows"] for shard in shards if shard["split"] == split]
    return SplitEntry(rows=sum(rows), shards=len(rows))

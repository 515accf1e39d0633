"""The seal step: shards, tables and manifest in their final place; the manifest names all else.

Shards pass one by one: what stays in memory of each is its name with its sha256.
"""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.images.codec import codec_versions
from pipeline.data.ingest.rejections import merge_rejections
from pipeline.data.order import ORDER_VERSION
from pipeline.data.staging import Staging, committing, sha256_of, write_canonical
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
from schemas.records import RECORD_VERSION, SHARD_TABLE
from schemas.spec import digest_of, semantic_fields

SHARDS_PER_BATCH = 1024
"""Of the shard table: what is in memory while it is written."""


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
    shards: Iterable[dict[str, Any]]
    """The buckets' commits that have rows, in the order of (split, bucket); read once."""
    rejections: tuple[Path, ...]
    """Tables as `pipeline.data.ingest.rejections` writes them; some are not there."""
    rejected: dict[str, int]
    """Reason -> rows in all of these tables."""
    known_classes: frozenset[str] = frozenset()
    """Those that have images in the set that this one is added to."""
    known_splits: frozenset[str] = frozenset()


def seal(spec: IngestSpec, pieces: Pieces, *, staging: Staging, out: Path) -> BuildResult:
    """Put everything below `out` and write the manifest last.

    Raises:
        DataError: If a class or a split has no image.
        DiskFullError: If no space is left.
    """
    totals = _Totals()
    known: dict[str, str] = {}
    with committing(out / SHARD_TABLE_FILE) as temporary:
        _write_shard_table(temporary, _placed(pieces.shards, totals, known, (staging, out)))
        known[SHARD_TABLE_FILE] = sha256_of(temporary)
    _refuse_gaps(pieces, totals)
    known[REJECTIONS_FILE] = merge_rejections(
        pieces.rejections, out / REJECTIONS_FILE, scratch=staging.root
    )
    manifest = _manifest(spec, pieces, totals=totals, known=known)
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


@dataclass
class _Totals:
    """What the shards come to."""

    shards: Counter[str] = field(default_factory=Counter)
    """Of each split, as the next."""
    rows: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    labels: Counter[int] = field(default_factory=Counter)

    def add(self, shard: dict[str, Any]) -> None:
        """Count one shard."""
        self.shards[shard["split"]] += 1
        self.rows[shard["split"]] += shard["rows"]
        self.bytes += shard["bytes"]
        self.labels.update(dict(shard["label_histogram"]))


def _placed(
    shards: Iterable[dict[str, Any]],
    totals: _Totals,
    known: dict[str, str],
    folders: tuple[Staging, Path],
) -> Iterator[dict[str, Any]]:
    """The shards, one by one, each counted and in its final place."""
    staging, out = folders
    for shard in shards:
        place(staging.shard(shard["name"]), out / SHARDS_FOLDER / shard["name"])
        known[f"{SHARDS_FOLDER}/{shard['name']}"] = Path(shard["name"]).stem
        totals.add(shard)
        yield shard


def _refuse_gaps(pieces: Pieces, totals: _Totals) -> None:
    named = [it for it in enumerate(pieces.class_names) if it[1] not in pieces.known_classes]
    empty = [name for label, name in named if not totals.labels[label]]
    if empty:
        raise DataError(
            f"no image is left in {len(empty)} of {len(named)} classes: "
            f"{', '.join(empty[:10])}; add images or leave them out with select.exclude_classes"
        )
    for split in sorted(set(pieces.splits) - pieces.known_splits):
        if not totals.shards[split]:
            raise DataError(
                f"no image is left in the split {split!r}; the corpus is too small for it, or all "
                "of its files were rejected"
            )


def _write_shard_table(path: Path, shards: Iterator[dict[str, Any]]) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SHARD_TABLE) as writer:
        rows = map(_table_row, shards)
        while some := list(islice(rows, SHARDS_PER_BATCH)):
            writer.write_batch(_table_batch(some))


def _table_row(shard: dict[str, Any]) -> tuple[str, str, int, int, NDArray[np.int64]]:
    """Name, split, rows, bytes and histogram [labels, 2]; a list of pairs takes ten times more."""
    histogram = np.array(shard["label_histogram"], np.int64).reshape(-1, 2)
    return shard["name"], shard["split"], shard["rows"], shard["bytes"], histogram


def _table_batch(
    rows: list[tuple[str, str, int, int, NDArray[np.int64]]],
) -> pa.RecordBatch:
    names, splits, counts, sizes, histograms = zip(*rows, strict=True)
    ends = np.cumsum([0, *map(len, histograms)], dtype=np.int32)
    pairs = np.concatenate(histograms)
    columns = [
        pa.array(names),
        pa.array(splits),
        pa.array(counts, pa.int64()),
        pa.array(sizes, pa.int64()),
        pa.array([bytes.fromhex(Path(name).stem) for name in names], pa.binary(32)),
        pa.MapArray.from_arrays(
            pa.array(ends), pa.array(pairs[:, 0], pa.int32()), pa.array(pairs[:, 1])
        ),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SHARD_TABLE)


def _manifest(
    spec: IngestSpec, pieces: Pieces, *, totals: _Totals, known: dict[str, str]
) -> ShardSetManifest:
    transform = {"image": digest_of(semantic_fields(spec.image)), **codec_versions()}
    return ShardSetManifest(
        record_version=RECORD_VERSION,
        order_version=ORDER_VERSION,
        transform=transform,
        class_names=pieces.class_names,
        splits={
            split: SplitEntry(rows=totals.rows[split], shards=totals.shards[split])
            for split in pieces.splits
        },
        num_shards=totals.shards.total(),
        num_rows=totals.rows.total(),
        num_bytes=totals.bytes,
        shard_table_sha256=known[SHARD_TABLE_FILE],
        rejections=dict(sorted(pieces.rejected.items())),
        rejections_sha256=known[REJECTIONS_FILE],
    )

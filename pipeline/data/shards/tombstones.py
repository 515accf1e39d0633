"""A shard set with fewer live rows over the same shards: the table of removed rows, the manifest.

No image is written again: the shard files get a second name (one hard link each; a copy where the
disk has no links), and the others keep their places and so their relative order in training.

Costs. One link and about 200 bytes of memory for each shard; about 200 bytes for each removed row.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.ingest.seal import place
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import sha256_of, write_canonical, write_table
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


@dataclass(frozen=True)
class DerivedSet:
    """A sealed shard set over another's shards."""

    manifest: ShardSetManifest
    digest: str
    known_sha256: dict[str, str]
    """Path below `out` -> sha256 in hex, of every file in it."""


def without_rows(
    data: ShardSet, removed: pa.Table, *, out: Path, others: Sequence[str] = ()
) -> DerivedSet:
    """Write a shard set without some rows of `data`.

    Args:
        data: The set that they stand in.
        removed: Rows that are live in `data`, each once; columns as in `TOMBSTONES`.
        out: Folder of the new set.
        others: Digests of further sets that decided on the rows: parents, too.

    Raises:
        DataError: If nothing would be left in a split.
        DiskFullError: If no space is left.
    """
    counts = Counter(dict(_counts(removed["split"])))
    splits = {}
    for name, entry in data.manifest.splits.items():
        if counts[name] and counts[name] == entry.rows:
            raise DataError(f"no image would be left in the split {name!r}")
        splits[name] = entry.revise(rows=entry.rows - counts[name])
    known = carry_over(data, out)
    tombstones = merged(data.tombstones, removed)
    write_table(out / TOMBSTONES_FILE, tombstones)
    known[TOMBSTONES_FILE] = sha256_of(out / TOMBSTONES_FILE)
    manifest = data.manifest.revise(
        parents=(data.digest, *others),
        tombstones=TombstoneEntry(sha256=known[TOMBSTONES_FILE], rows=len(tombstones)),
        splits=splits,
    )
    digest = write_canonical(out / MANIFEST_FILE, manifest.dump())
    return DerivedSet(manifest, digest, {**known, MANIFEST_FILE: digest})


def merged(before: pa.Table | None, removed: pa.Table) -> pa.Table:
    """The rows removed now and before, sorted by (split, uid)."""
    tables = [removed.select(TOMBSTONES.names).cast(TOMBSTONES)]
    if before is not None:
        tables.append(before)
    # Tables of before lack the columns that came later.
    rows = pa.concat_tables(tables, promote_options="default").cast(TOMBSTONES)
    keys = [("split", "ascending"), ("uid", "ascending")]
    return rows.take(pc.sort_indices(rows.select(["split", "uid"]), sort_keys=keys))


def carry_over(data: ShardSet, out: Path) -> dict[str, str]:
    """Link tables and shards below `out`; path -> sha256, known, so nothing is read again."""
    known = {
        SHARD_TABLE_FILE: data.manifest.shard_table_sha256,
        REJECTIONS_FILE: data.manifest.rejections_sha256,
        **shard_files(data),
    }
    for path in known:
        place(data.folder / path, out / path)
    return known


def shard_files(data: ShardSet) -> dict[str, str]:
    """Path of each shard below the set's folder -> its sha256 in hex."""
    names, digests = data.table["name"].to_pylist(), data.table["sha256"].to_pylist()
    return {
        f"{SHARDS_FOLDER}/{name}": sha256.hex() for name, sha256 in zip(names, digests, strict=True)
    }


def reasons(removed: pa.Table) -> Mapping[str, int]:
    """Reason -> number of rows."""
    return dict(sorted(_counts(removed["reason"])))


def _counts(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    return [(entry["values"], entry["counts"]) for entry in column.value_counts().to_pylist()]

"""Reads a shard set: its manifest first, shard files memory-mapped as they are asked for.

A set lies in a local folder, or behind a URI and is read through a bounded cache. Every row read
is compared with its checksum; `faults` compares whole files with their sha256.

Costs. Opening hashes the table of shards in pieces and maps it; a split holds three whole numbers
for each of its shards and two for each removed row: 250,000 shards come to less than 20 MB, and
nothing grows with the rows.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.files import is_remote, place_of
from pipeline.data.order import ORDER_VERSION, EpochOrder, Int64s, Removed
from pipeline.data.places import Held, LocalPlace, Place, RemotePlace
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.shard_files import Facts, Row, ShardFiles
from pipeline.data.shards.shard_table import (
    Names,
    ShardTable,
    SplitShards,
    count_labels,
    find_removed,
)
from pipeline.data.staging import read_table, sha256_of
from pipeline.ports import RemoteFiles
from schemas.errors import DataError, IntegrityError
from schemas.manifest import (
    MANIFEST_FILE,
    REJECTIONS_FILE,
    SHARD_TABLE_FILE,
    SHARDS_FOLDER,
    TOMBSTONES_FILE,
    ShardSetManifest,
)
from schemas.records import RECORD_VERSION
from schemas.words import nearest

__all__ = ["AnySplit", "Row", "ShardSet", "Split", "Subset", "epoch_order"]


class ShardSet:
    """A dataset; see `schemas.manifest`."""

    def __init__(self, place: Place, manifest: ShardSetManifest, digest: str) -> None:
        """Use `open`."""
        self.place = place
        self.manifest = manifest
        self.digest = digest
        """sha256 of the manifest: what the data is, removed rows included."""
        self._held: list[Held] = []

    @classmethod
    def open(
        cls,
        location: Path | str,
        *,
        files: RemoteFiles | None = None,
        cache: ShardCache | None = None,
    ) -> "ShardSet":
        """Read the manifest and check the small tables against it.

        Args:
            location: Folder of the set; as text, a URI, too.
            files: What reads URIs; needed for one.
            cache: Where files behind a URI are kept; needed for one.

        Raises:
            DataError: If there is no manifest, or it is of another version.
            IntegrityError: If it or a table is not what was written.
            UnreachableError: If the store behind a URI does not answer.
        """
        if isinstance(location, Path) or not is_remote(location):
            return cls._read(LocalPlace(Path(place_of(str(location)))))
        if files is None or cache is None:
            raise DataError(f"{location} is remote; it is read through a cache, and none was given")
        return cls._read(RemotePlace(str(location), files, cache))

    @classmethod
    def _read(cls, place: Place) -> "ShardSet":
        text = place.read(MANIFEST_FILE)
        if text is None:
            raise DataError(f"{place.location} holds no shard set: {MANIFEST_FILE} is missing")
        try:
            manifest = ShardSetManifest.model_validate_json(text)
        except ValueError as error:
            raise IntegrityError(
                f"{MANIFEST_FILE} of {place.location} is not what was written, or an older program "
                "wrote it",
                hint="vitrail run SPEC --force STAGE, with the stage that made it",
            ) from error
        if (manifest.record_version, manifest.order_version) != (RECORD_VERSION, ORDER_VERSION):
            raise DataError(
                f"{place.location} has record version {manifest.record_version} and order version "
                f"{manifest.order_version}; this program reads {RECORD_VERSION} and "
                f"{ORDER_VERSION}",
                hint="make the stage again with --force",
            )
        made = cls(place, manifest, hashlib.sha256(text).hexdigest())
        made._check_tables()
        return made

    def _check_tables(self) -> None:
        """Fetch and read the tables that every reader needs; a damaged copy is fetched once more.

        They are held as long as the set: their pages are mapped.
        """
        for name, sha256 in self._tables().items():
            held = self.place.hold(name, sha256)
            if sha256_of(held.path) != sha256 and self.place.forget(sha256):
                held = self.place.hold(name, sha256)
            found = sha256_of(held.path)
            if found != sha256:
                raise IntegrityError(
                    f"{held.path} is not what was written: its sha256 is {found[:12]}..."
                )
            self._held.append(held)

    def _tables(self) -> dict[str, str]:
        tables = {SHARD_TABLE_FILE: self.manifest.shard_table_sha256}
        if self.manifest.tombstones is not None:
            tables[TOMBSTONES_FILE] = self.manifest.tombstones.sha256
        return tables

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class of each label."""
        return self.manifest.class_names

    @property
    def order_digest(self) -> str:
        """What keys the order: the stored rows, so that removing some leaves the rest in order."""
        return self.manifest.shard_table_sha256

    @property
    def folder(self) -> Path:
        """Folder of a local set.

        Raises:
            DataError: If the set is remote.
        """
        if not isinstance(self.place, LocalPlace):
            raise DataError(f"{self.place.location} is remote; this needs a local copy of the set")
        return self.place.folder

    @property
    def shards_folder(self) -> Path:
        """Where the shard files of a local set are; raises as `folder`."""
        return self.folder / SHARDS_FOLDER

    @cached_property
    def _shards(self) -> ShardTable:
        return ShardTable(self._held[0].path)

    @property
    def table(self) -> pa.Table:
        """The table of shards, memory-mapped."""
        return self._shards.mapped

    @cached_property
    def tombstones(self) -> pa.Table | None:
        """The removed rows, memory-mapped, or None."""
        return None if self.manifest.tombstones is None else read_table(self._held[1].path)

    @cached_property
    def rejections(self) -> pa.Table:
        """The source files that are in no shard, memory-mapped; checked when first asked for."""
        held = self.place.hold(REJECTIONS_FILE, self.manifest.rejections_sha256)
        if sha256_of(held.path) != self.manifest.rejections_sha256:
            raise IntegrityError(f"{held.path} is not what was written")
        self._held.append(held)
        return read_table(held.path)

    def split(self, name: str) -> "Split":
        """The live rows of one split.

        Raises:
            DataError: If there is no such split.
        """
        if name not in self.manifest.splits:
            splits = sorted(self.manifest.splits)
            near = nearest(name, splits)
            raise DataError(
                f"there is no split {name!r}; the shard set has {', '.join(splits)}"
                + (f" (did you mean {near!r}?)" if near else "")
            )
        return Split(self, name, self._shards.split(name))

    def faults(self) -> Iterator[str]:
        """Read every byte at its origin; one sentence for each file that is not what was written.

        The manifest and the tables that opening reads were checked when the set was opened.
        """
        yield from self._faults_of(REJECTIONS_FILE, self.manifest.rejections_sha256)
        for name, sha256 in self._tables().items():
            yield from self._faults_of(name, sha256)
        for batch in self.table.select(["name", "sha256"]).to_batches():
            for name, digest in zip(batch["name"], batch["sha256"], strict=True):
                yield from self._faults_of(f"{SHARDS_FOLDER}/{name}", digest.as_py().hex())

    def verify(self) -> None:
        """Read every byte.

        Raises:
            IntegrityError: If a file is missing or its sha256 is another; names the first.
        """
        for fault in self.faults():
            raise IntegrityError(fault)

    def _faults_of(self, name: str, sha256: str) -> Iterator[str]:
        found = self.place.sha256(name)
        path = f"{self.place.location.rstrip('/')}/{name}"
        if found is None:
            yield f"{path} is missing"
        elif found != sha256:
            yield f"{path} is not what was written: its sha256 is {found[:12]}..."


class Split:
    """Rows of one split in storage order; row numbers count live rows only."""

    def __init__(self, owner: ShardSet, name: str, shards: SplitShards) -> None:
        """Use `ShardSet.split`."""
        self.name = name
        self.class_names = owner.class_names
        self.order_digest = owner.order_digest
        self.shard_rows = shards.rows
        """Rows of each shard in the file, removed ones included."""
        self.removed = find_removed(owner.tombstones, name, shards)
        """Sorted by shard and row."""
        self._shards = shards
        self._files = ShardFiles(owner.place, shards)
        self._remote = not isinstance(owner.place, LocalPlace)
        self._starts: Int64s = np.concatenate([[0], np.cumsum(self.shard_rows)])
        gone = self._starts[self.removed.shard] + self.removed.row
        self._gaps = gone - np.arange(len(gone))
        self.num_rows = int(self._starts[-1]) - len(gone)
        # The tables stay where they are as long as somebody reads through them.
        self._owner = owner

    @property
    def shard_names(self) -> Names:
        """File names of the shards."""
        return self._shards.names

    def locate(self, rows: Int64s) -> tuple[Int64s, Int64s]:
        """Shard and row in it of each live row."""
        stored = rows + np.searchsorted(self._gaps, rows, side="right")
        shard = np.searchsorted(self._starts, stored, side="right") - 1
        return shard, stored - self._starts[shard]

    def row(self, index: int) -> Row:
        """One live row.

        Raises:
            IntegrityError: If it is not what was written.
        """
        shard, row = self.locate(np.array([index]))
        return self.read(int(shard[0]), int(row[0]))

    def read(self, shard: int, row: int) -> Row:
        """The row at a place in the files, as `pipeline.data.order` gives it."""
        return self._files.read(shard, row)

    def facts(self, shard: int, row: int) -> Facts:
        """What a row is, without reading its image; unchecked."""
        return self._files.facts(shard, row)

    def find(self, uid: bytes) -> tuple[int, int] | None:
        """Shard and row of an image, removed or not; reads the uids, 16 bytes for each row."""
        for shard in range(len(self.shard_rows)):
            for row in self._files.find(shard, uid):
                return shard, row
        return None

    def refetch(self, shard: int) -> None:
        """Forget what is held of a shard, so that the next read goes to its origin again."""
        self._files.forget(shard)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Begin to fetch shards that will be read soon; does nothing for a local set."""
        if self._remote:
            self._files.prefetch(shards)

    def labels(self) -> Int64s:
        """Label of every live row; reads the label columns only.

        Raises:
            IntegrityError: If a shard's labels are not those that its histogram counts.
        """
        columns = [self._labels(shard) for shard in range(len(self.shard_rows))]
        return np.concatenate([np.empty(0, np.int64), *columns])

    def images_of_class(self) -> Int64s:
        """Stored rows of each label, removed ones included; reads the shard table only."""
        return count_labels(self._shards.mapped["label_histogram"], len(self.class_names))

    def _labels(self, shard: int) -> Int64s:
        labels = self._files.labels(shard)
        found, counts = np.unique(labels, return_counts=True)
        if dict(self._shards.mapped["label_histogram"][shard].as_py()) != dict(
            zip(found.tolist(), counts.tolist(), strict=True)
        ):
            raise IntegrityError(
                f"the labels of {self.shard_names[shard]} are not what was written"
            )
        return np.delete(labels, self._gone(shard))

    def live_table(self, shard: int, columns: list[str]) -> pa.Table:
        """Some columns of the live rows of a shard, unchecked."""
        rows = self._files.reader(shard).read_all().select(columns)
        live = np.ones(len(rows), np.bool_)
        live[self._gone(shard)] = False
        return rows if live.all() else rows.filter(pa.array(live))

    def live_rows(self, shard: int) -> Int64s:
        """Rows of a shard that were not removed."""
        return np.delete(np.arange(self.shard_rows[shard]), self._gone(shard))

    def subset(self, rows: NDArray[Any]) -> "Subset":
        """The split reduced to some live rows, given in ascending order."""
        return Subset(self, np.asarray(rows, np.int64))

    def _gone(self, shard: int) -> Int64s:
        first, last = np.searchsorted(self.removed.shard, [shard, shard + 1])
        return self.removed.row[first:last]


class Subset:
    """Some rows of a split, with the split's interface."""

    def __init__(self, parent: Split, rows: Int64s) -> None:
        """Use `Split.subset`."""
        if len(rows) and not (np.diff(rows) > 0).all():
            raise ValueError("rows of a subset are given once each, in ascending order")
        self.name = parent.name
        self.class_names = parent.class_names
        self.order_digest = parent.order_digest
        self.removed = Removed(np.empty(0, np.int64), np.empty(0, np.int64))
        self.num_rows = len(rows)
        self._parent = parent
        self._rows = rows
        self._shard, self._row = parent.locate(rows)
        self.shard_rows: Int64s = np.bincount(self._shard, minlength=len(parent.shard_rows))
        self._starts: Int64s = np.concatenate([[0], np.cumsum(self.shard_rows)])

    def locate(self, rows: Int64s) -> tuple[Int64s, Int64s]:
        """Shard and place among the shard's chosen rows, of each row of the subset."""
        return self._shard[rows], rows - self._starts[self._shard[rows]]

    def row(self, index: int) -> Row:
        """One row of the subset."""
        return self._parent.read(int(self._shard[index]), int(self._row[index]))

    def read(self, shard: int, row: int) -> Row:
        """The `row`-th chosen row of a shard."""
        return self.row(int(self._starts[shard]) + row)

    def refetch(self, shard: int) -> None:
        """As `Split.refetch`."""
        self._parent.refetch(shard)

    def prefetch(self, shards: Sequence[int]) -> None:
        """As `Split.prefetch`."""
        self._parent.prefetch(shards)

    def labels(self) -> Int64s:
        """Label of every row of the subset."""
        return self._parent.labels()[self._rows]

    def subset(self, rows: NDArray[Any]) -> "Subset":
        """A subset of the subset; `rows` count within this one, in ascending order."""
        return Subset(self._parent, self._rows[np.asarray(rows, np.int64)])


AnySplit = Split | Subset


def epoch_order(split: AnySplit, *, seed: int, epoch: int) -> EpochOrder:
    """The order in which one pass over a split reads its rows."""
    return EpochOrder(
        split.shard_rows, digest=split.order_digest, seed=seed, epoch=epoch, removed=split.removed
    )

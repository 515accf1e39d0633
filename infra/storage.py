"""`ArtifactStore` in a folder of one machine, or in one that several machines share.

    format.json                                 version of this layout
    artifacts/<kind>-<key12>/
        result.json                             the commit point: made once, names the attempt
        attempts/<ulid>/files/...               what the stage wrote
        attempts/<ulid>/{record,manifest}.json  the documents
        attempts/<ulid>/verified.json           that its bytes were read and found whole
        progress/...                            what a later attempt goes on from
        lock, holder.json                       who works on the key now
    refs/<experiment>/<stage>.json              what a stage of this name made last
    discarded/<artifact>/<ulid>.json            results taken out of sight, with the reason
    trash/<artifact>/<part>.json                what `gc` took out of sight; its bytes stay
    pins/<artifact>.json                        what `gc` keeps in any case

A commit is these changes, in this order, each at a fault point of its own (`infra.shelves`):

    1  settle files          the files of the stage are forced to the disk
                             (in a bucket then: `put` of each, under the attempt's own prefix)
    2  write manifest.json   their names, sizes and digests
    3  write record.json     what they were made of, by what, where
    4  settle attempt        the attempt's name is forced to the disk
    5  ...                   inputs that a `gc` took out of sight meanwhile are taken back
    6  prepare result.json   under a temporary name, whole and on the disk
    7  create result.json    THE COMMIT: a hard link, or a conditional put; the first one wins
    8  settle result.json    the name is forced to the disk

Whatever the moment at which power fails, `result.json` is there only when all that it names is.
Before 7 nothing has happened, after it everything has; what is left of a try that came to no end
is garbage for `infra.store_gc`. Nothing is made before the first write, so that planning works
where no workspace exists yet.
"""

import contextlib
import os
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.atomic_files import disk_errors, fsync_path
from infra.file_digests import file_fault, file_sha256, fsync_tree, list_content
from infra.first_reads import VERIFIED_FILE, input_fault
from infra.key_locks import KeyLock, reads_of_holder, seized
from infra.shelves import Before, DiskShelf
from infra.store_documents import StoreDocuments, attempt_of, now_text
from infra.time_ids import attempt_id
from pipeline.ports import Attempt
from schemas.artifacts import (
    FILES_FOLDER,
    ArtifactManifest,
    StageRecord,
    StageResult,
    artifact_name,
)
from schemas.errors import IntegrityError, SpecError
from schemas.runs import InputArtifact
from schemas.spec import canonical_json
from schemas.store import FileFault

if TYPE_CHECKING:
    from infra.object_store import ObjectStore


@dataclass
class LocalAttempt:
    """Fulfils `pipeline.ports.Attempt`."""

    path: Path
    progress: Path


def open_store(
    uri: str,
    *,
    local: Path | None = None,
    say: Callable[[str], None] | None = None,
    before: Before | None = None,
) -> "LocalStore | ObjectStore":
    """The store at a path, a `file://` URI, or `s3://BUCKET/PREFIX`.

    Args:
        uri: What a person gave, or `uri` of a store.
        local: Folder for copies of what lies in an object store, unless the URI names it.
        say: Tells who is waited for, and what is found odd.
        before: Is told each change of the store before it is made; for tests.

    Raises:
        SpecError: If the URI is of another kind.
        UnreachableError: If it does not answer, or a store of another layout lies there.
    """
    say, before = say or _say_nothing, before or _say_nothing
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return LocalStore(Path(urllib.parse.unquote(parts.path)), say=say, before=before)
    if parts.scheme == "s3":
        from infra.object_store import open_object_store

        return open_object_store(uri, local=local, say=say, before=before)
    if "://" in uri:
        raise SpecError(
            f"the store {uri!r} cannot be used: give a folder, local or shared by all nodes, as a "
            "path or file:///absolute/path, or s3://BUCKET/PREFIX"
        )
    return LocalStore(Path(uri).expanduser(), say=say, before=before)


class LocalStore(StoreDocuments):
    """Fulfils `pipeline.ports.ArtifactStore`."""

    def __init__(
        self,
        root: Path,
        *,
        say: Callable[[str], None] | None = None,
        before: Before | None = None,
    ) -> None:
        """Look at the store in `root`, which need not exist; see `open_store`."""
        self._root = root.absolute()
        self._before = before or _say_nothing
        self.uri = self._root.as_uri()
        super().__init__(DiskShelf(self._root, before=self._before), say=say or _say_nothing)

    def path(self, result: StageResult) -> Path:
        """Folder of the files of a committed attempt."""
        return self._root / attempt_of(result) / FILES_FOLDER

    def local(self, result: StageResult) -> Path:
        """The same: all of it is here."""
        return self.path(result)

    def progress(self, artifact: str) -> Path:
        """Folder that the attempts at an artifact share."""
        return self._folder(artifact) / "progress"

    def faults(
        self, result: StageResult, *, read_all: bool, seen: Callable[[int], None] | None = None
    ) -> Iterator[FileFault]:
        """Every file of an artifact that is not what was written; `seen` is told the bytes read."""
        manifest = self._manifest(result)
        if isinstance(manifest, FileFault):
            yield manifest
            return
        for file in manifest.files:
            fault = file_fault(self.path(result), file, read_all=read_all)
            if fault is not None:
                yield fault.revise(artifact=result.artifact)
            if seen is not None:
                seen(file.size_bytes)

    def check_input(self, artifact: InputArtifact) -> str | None:
        """None if an input is whole; see `infra.first_reads`.

        What a damaged one was made from is read anew before its next use: the two may share files
        by hard links.
        """
        fault = input_fault(Path(artifact.path), artifact.digest)
        if fault is not None:
            self._distrust_inputs(artifact)
        return fault

    def begin(self, kind: str, key: str) -> LocalAttempt:
        """A fresh attempt at a key: an empty folder of its own."""
        artifact = self._folder(artifact_name(kind, key))
        name = attempt_id(time.time_ns(), os.urandom(8))
        attempt = LocalAttempt(
            path=artifact / "attempts" / name / FILES_FOLDER, progress=artifact / "progress"
        )
        with disk_errors("begin an artifact", artifact):
            self._write_format()
            self._before(f"make artifacts/{artifact.name}/attempts/{name}")
            attempt.path.mkdir(parents=True)
            attempt.progress.mkdir(exist_ok=True)
        return attempt

    def hold(
        self,
        kind: str,
        key: str,
        *,
        reads: Collection[str] = (),
        stop: Callable[[], bool] | None = None,
    ) -> KeyLock:
        """Exclusive use of a key while the `with` block lasts; waits for another holder.

        Raises:
            PausedError: On entry, if `stop` says so while another holds the key.
        """
        return KeyLock(
            self._folder(artifact_name(kind, key)), say=self._say, stop=stop, reads=reads
        )

    def readers(self, artifact: str) -> tuple[str, ...] | None:
        """The artifacts that whoever works on this one reads; None if nobody does."""
        return reads_of_holder(self._folder(artifact))

    def seized(self, artifact: str) -> contextlib.AbstractContextManager[bool]:
        """An artifact for the length of a `with` block if nobody works on it."""
        return seized(self._folder(artifact))

    def commit(
        self, attempt: Attempt, record: StageRecord, *, known_sha256: dict[str, str]
    ) -> StageResult:
        """Hash, write the documents, publish; returns the winner, which may be another attempt.

        Raises:
            DiskFullError: If the disk is full; nothing is published then.
            IntegrityError: If the attempt holds a link, or the folder belongs to another key.
        """
        with disk_errors("commit an artifact", attempt.path.parent):
            return self._commit(self.settle(attempt, record, known_sha256=known_sha256), record)

    def settle(
        self, attempt: Attempt, record: StageRecord, *, known_sha256: dict[str, str]
    ) -> StageResult:
        """Force an attempt and its documents to the disk: all of a commit but its publication."""
        folder = attempt.path.parent
        name = folder.relative_to(self._root).as_posix()
        manifest = ArtifactManifest(files=list_content(attempt.path, known_sha256))
        self._before(f"settle {name}/{FILES_FOLDER}")
        fsync_tree(attempt.path)
        self._shelf.write(f"{name}/manifest.json", canonical_json(manifest.dump()) + "\n")
        self._shelf.write(f"{name}/record.json", canonical_json(record.dump()) + "\n")
        self._before(f"settle {name}")
        fsync_path(folder.parent)
        return StageResult(
            kind=record.key_record.kind,
            key=record.key,
            attempt=folder.name,
            digest=manifest.content_digest(),
            manifest_sha256=file_sha256(folder / "manifest.json"),
            metrics=record.metrics,
            seconds=record.seconds,
            committed_at=now_text(),
        )

    def _distrust_inputs(self, artifact: InputArtifact) -> None:
        result = self.named(artifact.artifact)
        if result is None:
            return
        with contextlib.suppress(IntegrityError):  # without a record nothing is known of them
            for name in self.record(result).input_artifacts.values():
                for note in (self._folder(name) / "attempts").glob(f"*/{VERIFIED_FILE}"):
                    note.unlink(missing_ok=True)

    def _folder(self, artifact: str) -> Path:
        return self._root / "artifacts" / artifact


def _say_nothing(_line: str) -> None:
    """For a caller that does not want to know."""

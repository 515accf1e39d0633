"""`ArtifactStore` in a bucket of S3: the layout of `infra.storage`, one object for each file.

Attempts are made, and artifacts read, in a folder of this machine, since stages work on files:

    LOCAL/artifacts/<artifact>/attempts/<ulid>/   an attempt under way, or a copy (`local_copies`)
    LOCAL/artifacts/<artifact>/{progress,lock}    what a later attempt goes on from; one worker here

The folder lies in the workspace. All nodes of one cluster share it, as they share any workspace;
machines and clusters that share nothing else share the bucket. A commit uploads, and publishes by a
conditional put: the first one wins, whatever the number of machines.
"""

import contextlib
import urllib.parse
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from infra.atomic_files import disk_errors
from infra.file_digests import bytes_fault, size_fault
from infra.first_reads import input_fault, note_verified
from infra.heartbeats import SharedHold, is_alive, reads_of_living
from infra.local_copies import LocalCopies
from infra.s3_shelf import S3Shelf
from infra.shelves import Before, Usage
from infra.storage import LocalAttempt, LocalStore
from infra.store_documents import StoreDocuments, attempt_of
from pipeline.ports import Attempt
from schemas.artifacts import (
    FILES_FOLDER,
    ArtifactFile,
    ArtifactManifest,
    StageRecord,
    StageResult,
    artifact_name,
)
from schemas.errors import IntegrityError, SpecError
from schemas.runs import InputArtifact
from schemas.store import FileFault

CACHE_GIB = 64
"""What copies may take, unless the URI says otherwise."""
FETCH_TRIES = 3
"""Times that a file is fetched before it counts as damaged."""
_AT_ONCE = 8
"""Files on their way at a time."""
_DOCUMENTS = ("record.json", "manifest.json")
"""In the order in which they are written: what has a manifest is whole."""


def open_object_store(
    uri: str, *, local: Path | None, say: Callable[[str], None], before: Before
) -> "ObjectStore":
    """The store at `s3://BUCKET/PREFIX[?cache_gib=N][&local=FOLDER]`; see `infra.storage`."""
    parts = urllib.parse.urlsplit(uri)
    options = dict(urllib.parse.parse_qsl(parts.query))
    folder = local or (Path(options["local"]) if "local" in options else None)
    unknown = sorted(options.keys() - {"local", "cache_gib"})
    gib = options.get("cache_gib", str(CACHE_GIB))
    if not parts.netloc or "@" in parts.netloc or unknown or not gib.isdecimal() or folder is None:
        raise SpecError(
            f"the store {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path} cannot be "
            "used: give s3://BUCKET/PREFIX, where ?cache_gib=N may say how many GiB of copies stay "
            "on this machine; credentials come from the environment"
        )
    shelf = S3Shelf(parts.netloc, parts.path.strip("/"), before=before)
    return ObjectStore(shelf, folder, cache_gib=int(gib), say=say, before=before)


class ObjectStore(StoreDocuments):
    """Fulfils `pipeline.ports.ArtifactStore`."""

    _shelf: S3Shelf

    def __init__(
        self,
        shelf: S3Shelf,
        local: Path,
        *,
        cache_gib: int,
        say: Callable[[str], None],
        before: Before,
    ) -> None:
        """Look at the store on `shelf`, with copies in the folder `local`."""
        super().__init__(shelf, say=say)
        self._here = LocalStore(local, say=say, before=before)
        self._copies = LocalCopies(local.absolute(), limit_bytes=cache_gib * 2**30)
        options = urllib.parse.urlencode({"local": local.absolute(), "cache_gib": cache_gib})
        self.uri = f"{shelf.place}?{options}"

    def path(self, result: StageResult) -> Path:
        """Folder where the files of a committed attempt are once they are here."""
        return self._here.path(result)

    def local(self, result: StageResult) -> Path:
        """The same, with all files here; they stay as long as this process lives.

        Raises:
            IntegrityError: If what lies in the store is not what was written.
            DataError: If it has no room on this machine.
        """
        fault = self._fetched(result)
        if fault is not None:
            raise IntegrityError(f"{result.artifact} is damaged: {fault}", where=fault.file)
        return self.path(result)

    def progress(self, artifact: str) -> Path:
        """Folder that the attempts at an artifact share, on this machine or its cluster."""
        return self._here.progress(artifact)

    def progress_usage(self, artifact: str) -> Usage:
        """What a later attempt would go on from; it lies on this machine."""
        return self._here.progress_usage(artifact)

    def drop_progress(self, artifact: str) -> None:
        """Delete what a later attempt would go on from; it lies on this machine."""
        self._here.drop_progress(artifact)

    def faults(
        self, result: StageResult, *, read_all: bool, seen: Callable[[int], None] | None = None
    ) -> Iterator[FileFault]:
        """Every object of an artifact that is not what was written; reads past the copies here."""
        manifest = self._manifest(result)
        if isinstance(manifest, FileFault):
            yield manifest
            return
        folder = f"{attempt_of(result)}/{FILES_FOLDER}"
        sizes = dict(self._shelf.sizes(folder))
        for file in manifest.files:
            place = f"{self._shelf.place}/{folder}/{file.path}"
            fault = size_fault(place, file, sizes.get(file.path))
            if fault is None and read_all:
                fault = bytes_fault(place, file, self._shelf.sha256(f"{folder}/{file.path}"))
            if fault is not None:
                yield fault.revise(artifact=result.artifact)
            if seen is not None:
                seen(file.size_bytes)

    def check_input(self, artifact: InputArtifact) -> str | None:
        """None if an input is here and whole; a damaged copy is fetched anew."""
        result = self.named(artifact.artifact)
        if result is None or str(self.path(result)) != artifact.path:
            return f"{artifact.artifact} is no longer what the store holds"
        for _ in range(2):
            fault = self._fetched(result) or input_fault(Path(artifact.path), artifact.digest)
            if fault is None:
                return None
            self._copies.drop(attempt_of(result))
        return str(fault)

    def begin(self, kind: str, key: str) -> LocalAttempt:
        """A fresh attempt at a key: an empty folder of its own, on this machine."""
        self._write_format()
        return self._here.begin(kind, key)

    def hold(
        self,
        kind: str,
        key: str,
        *,
        reads: Collection[str] = (),
        stop: Callable[[], bool] | None = None,
    ) -> SharedHold:
        """Exclusive use of a key while the `with` block lasts; waits for another holder.

        Raises:
            PausedError: On entry, if `stop` says so while another holds the key.
        """
        return SharedHold(
            self._here.hold(kind, key, reads=reads, stop=stop),
            self._shelf,
            artifact_name(kind, key),
            say=self._say,
            stop=stop,
            reads=reads,
        )

    def readers(self, artifact: str) -> tuple[str, ...] | None:
        """The artifacts that whoever works on this one reads; None if nobody does."""
        here = self._here.readers(artifact)
        return reads_of_living(self._shelf, artifact) if here is None else here

    @contextlib.contextmanager
    def seized(self, artifact: str) -> Iterator[bool]:
        """An artifact for the length of a `with` block if nobody works on it."""
        with self._here.seized(artifact) as mine:
            yield mine and not is_alive(self._shelf, artifact)

    def commit(
        self, attempt: Attempt, record: StageRecord, *, known_sha256: dict[str, str]
    ) -> StageResult:
        """Hash, upload, publish; returns the winner, which may be another attempt.

        Raises:
            DiskFullError: If the disk of this machine is full; nothing is published then.
            IntegrityError: If the attempt holds a link, or the folder belongs to another key.
            UnreachableError: If the bucket cannot be reached; the next attempt goes on.
        """
        folder = attempt.path.parent
        with disk_errors("commit an artifact", folder):
            result = self._here.settle(attempt, record, known_sha256=known_sha256)
        size_bytes = self._upload(folder, attempt_of(result))
        winner = self._commit(result, record)
        if winner.attempt == result.attempt:
            self._copies.adopt(attempt_of(result), size_bytes)
        return winner

    def _upload(self, folder: Path, name: str) -> int:
        """Put all files of an attempt, its documents last; returns its bytes."""
        files = [path for path in sorted((folder / FILES_FOLDER).rglob("*")) if path.is_file()]

        def put(path: Path) -> int:
            self._shelf.upload(path, f"{name}/{path.relative_to(folder).as_posix()}")
            return path.stat().st_size

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            size_bytes = sum(threads.map(put, files))
        return size_bytes + sum(put(folder / document) for document in _DOCUMENTS)

    def _fetched(self, result: StageResult) -> FileFault | None:
        """Have an artifact here; what is wrong with it in the store, if it cannot be had."""
        manifest = self._manifest(result)
        if isinstance(manifest, FileFault):
            return manifest
        name = attempt_of(result)
        sizes = dict(self._shelf.sizes(name))
        damaged: list[FileFault] = []
        try:
            self._copies.pin(
                name,
                sum(sizes.values()),
                lambda folder: self._fetch(name, sizes, manifest, folder),
            )
        except _DamagedError as error:
            damaged.append(error.fault.revise(artifact=result.artifact))
        return damaged[0] if damaged else None

    def _fetch(
        self, name: str, sizes: dict[str, int], manifest: ArtifactManifest, folder: Path
    ) -> None:
        content = {f"{FILES_FOLDER}/{file.path}": file for file in manifest.files}
        names = sorted({*content, *(path for path in sizes if _is_of_attempt(path))})

        def get(path: str) -> None:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fetch_file(f"{name}/{path}", target, content.get(path))

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for _ in threads.map(get, names):
                pass
        note_verified(folder / FILES_FOLDER, manifest)

    def _fetch_file(self, name: str, target: Path, file: ArtifactFile | None) -> None:
        """Fetch a file, and compare it while it comes; logs and states are not compared."""
        for turn in range(1, FETCH_TRIES + 1):
            target.unlink(missing_ok=True)
            fault = self._try_file(name, target, file)
            if fault is None:
                return
            if turn == FETCH_TRIES:
                raise _DamagedError(fault)

    def _try_file(self, name: str, target: Path, file: ArtifactFile | None) -> FileFault | None:
        place = f"{self._shelf.place}/{name}"
        try:
            found = self._shelf.download(name, target)
        except FileNotFoundError:
            return None if file is None else size_fault(place, file, None)
        return None if file is None else bytes_fault(place, file, found)


class _DamagedError(Exception):
    def __init__(self, fault: FileFault) -> None:
        super().__init__(str(fault))
        self.fault = fault


def _is_of_attempt(path: str) -> bool:
    return path.startswith(f"{FILES_FOLDER}/") or path in _DOCUMENTS

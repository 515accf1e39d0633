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

Nothing is made before the first write, so that planning works where no workspace exists yet.
"""

import contextlib
import errno
import json
import os
import shutil
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from infra.atomic_files import disk_errors, fsync_path, write_atomic, write_beside
from infra.file_digests import file_fault, file_sha256, fsync_tree, list_content
from infra.first_reads import VERIFIED_FILE, input_fault
from infra.key_locks import KeyLock
from infra.time_ids import attempt_id
from pipeline.ports import Attempt
from schemas.artifacts import (
    FILES_FOLDER,
    ArtifactManifest,
    StageRecord,
    StageResult,
    artifact_name,
)
from schemas.errors import IntegrityError, SpecError, UnreachableError
from schemas.runs import InputArtifact
from schemas.spec import canonical_json, digest_of

FORMAT = "vitrail-store/1"
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass
class LocalAttempt:
    """Fulfils `pipeline.ports.Attempt`."""

    path: Path
    progress: Path


def open_store(uri: str, *, say: Callable[[str], None] | None = None) -> "LocalStore":
    """The store at a path or a `file://` URI.

    Raises:
        SpecError: If the URI is of another kind.
        UnreachableError: If a store of another layout lies there.
    """
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return LocalStore(Path(urllib.parse.unquote(parts.path)), say=say)
    if "://" in uri:
        raise SpecError(
            f"the store {uri!r} cannot be used: only folders are supported, local or shared by "
            "all nodes; give a path or a file:///absolute/path URI"
        )
    return LocalStore(Path(uri).expanduser(), say=say)


class LocalStore:
    """Fulfils `pipeline.ports.ArtifactStore`."""

    def __init__(self, root: Path, *, say: Callable[[str], None] | None = None) -> None:
        """Look at the store in `root`, which need not exist; `say` tells who is waited for."""
        self._root = root.absolute()
        self._say = say or _say_nothing
        self.uri = self._root.as_uri()
        self._check_format()

    def lookup(self, kind: str, key: str) -> StageResult | None:
        """The committed result of a key, or None.

        Raises:
            IntegrityError: If another key with the same first 12 digits holds the folder.
        """
        result = self._read_result(self._folder(kind, key) / "result.json")
        if result is None:
            return None
        if (result.kind, result.key) != (kind, key):
            raise IntegrityError(
                f"{result.artifact} holds the key {result.key}, not {key}: both begin alike",
                where=str(self._folder(kind, key)),
                hint="use another workspace for one of the two experiments",
            )
        return result

    def named(self, artifact: str) -> StageResult | None:
        """The committed result of an artifact by its name, `<kind>-<key12>`, or None."""
        return self._read_result(self._root / "artifacts" / artifact / "result.json")

    def path(self, result: StageResult) -> Path:
        """Folder of the files of a committed attempt."""
        return self._attempt_folder(result) / FILES_FOLDER

    def record(self, result: StageResult) -> StageRecord:
        """The record beside a committed result.

        Raises:
            IntegrityError: If it is missing or unreadable.
        """
        return _read_record(self._attempt_folder(result) / "record.json", result.artifact)

    def present(self, result: StageResult) -> str | None:
        """None if every file is there, size and mtime equal; else a sentence on the first fault."""
        return self._first_fault(result, read_all=False)

    def verify(self, result: StageResult) -> str | None:
        """As `present`, but reads every byte; the mtime does not matter then."""
        return self._first_fault(result, read_all=True)

    def check_input(self, artifact: InputArtifact) -> str | None:
        """None if an input is whole; see `infra.first_reads`.

        What a damaged one was made from is read anew before its next use: the two may share files
        by hard links.
        """
        fault = input_fault(Path(artifact.path), artifact.digest)
        if fault is not None:
            self._distrust_inputs(artifact)
        return fault

    def discard(self, result: StageResult, reason: str) -> None:
        """Take a result out of sight; a result that another attempt has replaced is left alone.

        Its progress goes with it, so that the next attempt begins from its inputs.
        """
        final = self._folder(result.kind, result.key) / "result.json"
        current = self._read_result(final)
        if current is None or current.attempt != result.attempt:
            return
        aside = self._root / "discarded" / result.artifact / f"{result.attempt}.json"
        note = {"reason": reason, "at": _now(), "result": result.dump()}
        with disk_errors("discard an artifact", aside):
            write_atomic(aside, canonical_json(note) + "\n")
            # First: nobody begins at the key while its result stands.
            shutil.rmtree(final.parent / "progress", ignore_errors=True)
            final.unlink(missing_ok=True)
            fsync_path(final.parent)

    def begin(self, kind: str, key: str) -> LocalAttempt:
        """A fresh attempt at a key: an empty folder of its own."""
        artifact = self._folder(kind, key)
        name = attempt_id(time.time_ns(), os.urandom(8))
        attempt = LocalAttempt(
            path=artifact / "attempts" / name / FILES_FOLDER, progress=artifact / "progress"
        )
        with disk_errors("begin an artifact", artifact):
            self._write_format()
            attempt.path.mkdir(parents=True)
            attempt.progress.mkdir(exist_ok=True)
        return attempt

    def hold(self, kind: str, key: str, *, stop: Callable[[], bool] | None = None) -> KeyLock:
        """Exclusive use of a key while the `with` block lasts; waits for another holder.

        Raises:
            PausedError: On entry, if `stop` says so while another holds the key.
        """
        return KeyLock(self._folder(kind, key), say=self._say, stop=stop)

    def commit(
        self, attempt: Attempt, record: StageRecord, *, known_sha256: dict[str, str]
    ) -> StageResult:
        """Hash, write the documents, publish; returns the winner, which may be another attempt.

        The order matters: whatever the moment at which the power fails, `result.json` is there
        only when all that it names is on the disk.

        Raises:
            DiskFullError: If the disk is full; nothing is published then.
            IntegrityError: If the attempt holds a link, or the folder belongs to another key.
        """
        folder = attempt.path.parent
        with disk_errors("commit an artifact", folder):
            manifest = ArtifactManifest(files=list_content(attempt.path, known_sha256))
            fsync_tree(attempt.path)
            manifest_text = canonical_json(manifest.dump()) + "\n"
            write_atomic(folder / "manifest.json", manifest_text)
            write_atomic(folder / "record.json", canonical_json(record.dump()) + "\n")
            fsync_path(folder.parent)
            result = StageResult(
                kind=record.key_record.kind,
                key=record.key,
                attempt=folder.name,
                digest=manifest.content_digest(),
                manifest_sha256=file_sha256(folder / "manifest.json"),
                metrics=record.metrics,
                seconds=record.seconds,
                committed_at=_now(),
            )
            return self._publish(result)

    def get_ref(self, experiment: str, stage: str) -> StageResult | None:
        """What the stage of this name made or reused last."""
        return self._read_result(self._ref_path(experiment, stage))

    def set_ref(self, experiment: str, stage: str, result: StageResult) -> None:
        """Remember what the stage of this name made or reused."""
        path = self._ref_path(experiment, stage)
        with disk_errors("remember an artifact", path):
            write_atomic(path, canonical_json(result.dump()) + "\n")

    def _publish(self, result: StageResult) -> StageResult:
        """Make `result.json` unless it stands; the loop ends since each turn finds or makes one."""
        final = self._folder(result.kind, result.key) / "result.json"
        while True:
            winner = self.lookup(result.kind, result.key)
            if winner is not None:
                return winner
            _create_once(final, canonical_json(result.dump()) + "\n")
            fsync_path(final.parent)

    def _first_fault(self, result: StageResult, *, read_all: bool) -> str | None:
        manifest_path = self._attempt_folder(result) / "manifest.json"
        try:
            if file_sha256(manifest_path) != result.manifest_sha256:
                return f"{manifest_path} is not the manifest that was committed"
            manifest = ArtifactManifest.model_validate_json(manifest_path.read_bytes())
        except FileNotFoundError:
            return f"{manifest_path} is missing"
        folder = self.path(result)
        faults = (file_fault(folder, file, read_all=read_all) for file in manifest.files)
        return next((fault for fault in faults if fault), None)

    def _distrust_inputs(self, artifact: InputArtifact) -> None:
        record_path = Path(artifact.path).parent / "record.json"
        with contextlib.suppress(IntegrityError):  # without a record nothing is known of them
            for name in _read_record(record_path, artifact.artifact).input_artifacts.values():
                attempts = self._root / "artifacts" / name / "attempts"
                for note in attempts.glob(f"*/{VERIFIED_FILE}"):
                    note.unlink(missing_ok=True)

    def _read_result(self, path: Path) -> StageResult | None:
        """A result file; one that cannot be parsed is moved aside, so that it hinders nobody."""
        try:
            with disk_errors("read the store", path):
                return StageResult.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            self._move_aside(path)
            return None

    def _move_aside(self, path: Path) -> None:
        aside = path.with_name(f"{path.name}.torn-{attempt_id(time.time_ns(), os.urandom(8))}")
        # Another process may have done it in the meantime.
        with (
            contextlib.suppress(FileNotFoundError),
            disk_errors("move a damaged result aside", path),
        ):
            path.rename(aside)
            self._say(f"{path} was damaged and counts as absent; it is kept as {aside.name}")

    def _check_format(self) -> None:
        path = self._root / "format.json"
        with disk_errors("open the store", self._root):
            if not path.exists():
                return
            found = path.read_text(encoding="utf-8")
        if FORMAT not in found:
            raise UnreachableError(
                f"the store {self._root} has another layout than {FORMAT}: {found.strip()[:80]}",
                hint="use the version of Vitrail that made it, or another --workspace",
            )

    def _write_format(self) -> None:
        path = self._root / "format.json"
        if not path.exists():
            write_atomic(path, json.dumps({"format": FORMAT}) + "\n")

    def _folder(self, kind: str, key: str) -> Path:
        return self._root / "artifacts" / artifact_name(kind, key)

    def _attempt_folder(self, result: StageResult) -> Path:
        return self._folder(result.kind, result.key) / "attempts" / result.attempt

    def _ref_path(self, experiment: str, stage: str) -> Path:
        # The name of a variant holds values, and so any character, and any number of them.
        name = urllib.parse.quote(stage, safe="[]=, ")
        if len(name) > 200:
            name = f"{name[:180]}-{digest_of(stage)[:16]}"
        return self._root / "refs" / experiment / f"{name}.json"


def _read_record(path: Path, artifact: str) -> StageRecord:
    try:
        return StageRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise IntegrityError(
            f"the record of {artifact} is missing or unreadable", where=str(path)
        ) from error


def _create_once(final: Path, text: str) -> None:
    """Create a file with its whole content, or leave the one that is there."""
    temporary = write_beside(final, text)
    try:
        os.link(temporary, final)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _create_exclusively(final, text)
    finally:
        temporary.unlink(missing_ok=True)


def _create_exclusively(final: Path, text: str) -> None:
    """The same without hard links; a crash may leave a torn file, which readers move aside."""
    try:
        descriptor = os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _say_nothing(_line: str) -> None:
    """For a caller that does not want to know."""

"""The documents of a store, on whatever shelf they lie; the layout is that of `infra.storage`."""

import hashlib
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from infra.shelves import Shelf, Usage
from schemas.artifacts import ArtifactManifest, StageRecord, StageResult, artifact_name
from schemas.errors import IntegrityError, UnreachableError, UsageError
from schemas.spec import canonical_json, digest_of
from schemas.store import FileFault, Part, PinDocument, TrashNote

FORMAT = "vitrail-store/1"


class StoreDocuments(ABC):
    """What stores of all kinds do alike: results, records, references, discards, pins, trash."""

    def __init__(self, shelf: Shelf, *, say: Callable[[str], None]) -> None:
        """Look at a store, which need not exist; `say` tells what is found odd.

        Raises:
            UnreachableError: If a store of another layout lies there.
        """
        self._shelf = shelf
        self._say = say
        self._check_format()

    def lookup(self, kind: str, key: str) -> StageResult | None:
        """The committed result of a key, or None; one in the trash is taken back.

        Raises:
            IntegrityError: If another key with the same first 12 digits holds the folder.
        """
        name = artifact_name(kind, key)
        result = self.named(name) or self.take_back(name)
        return None if result is None else self._of_key(result, kind, key)

    def present(self, result: StageResult) -> str | None:
        """None if every file is there, of the right size; else a sentence on the first fault."""
        fault = next(self.faults(result, read_all=False), None)
        return None if fault is None else str(fault)

    def verify(self, result: StageResult) -> str | None:
        """As `present`, but reads every byte."""
        fault = next(self.faults(result, read_all=True), None)
        return None if fault is None else str(fault)

    @abstractmethod
    def path(self, result: StageResult) -> Path:
        """Folder of the files of a committed attempt, once they are on this machine."""

    @abstractmethod
    def local(self, result: StageResult) -> Path:
        """The same, with its files on this machine for as long as this process lives."""

    @abstractmethod
    def readers(self, artifact: str) -> tuple[str, ...] | None:
        """The artifacts that whoever works on this one reads; None if nobody does."""

    @abstractmethod
    def seized(self, artifact: str) -> AbstractContextManager[bool]:
        """An artifact for the length of a `with` block if nobody works on it; yields whether."""

    def usage(self, name: str) -> Usage:
        """What lies below a name of the layout."""
        return self._shelf.usage(name)

    def remains(self, artifact: str) -> Iterator[str]:
        """Files beside `result.json` that a killed process left."""
        for name in self._shelf.children(f"artifacts/{artifact}"):
            if name.endswith(".tmp") or ".torn-" in name:
                yield name

    def is_discarded(self, artifact: str, attempt: str) -> bool:
        """Whether a result was taken out of sight since it was damaged, or by force."""
        return self._shelf.read(f"discarded/{artifact}/{attempt}.json") is not None

    def is_of_use(self, artifact: str) -> bool:
        """Whether anything is left of an artifact but the folder that names it."""
        left = any(self.attempts(artifact)) or any(self.trash(artifact))
        return (
            left or self.named(artifact) is not None or self.progress_usage(artifact).size_bytes > 0
        )

    def forget(self, artifact: str) -> None:
        """Delete the folder that names an artifact of which nothing is left."""
        self._shelf.delete_tree(f"artifacts/{artifact}")
        self._shelf.delete_tree(f"trash/{artifact}")

    def delete_remains(self, artifact: str, name: str) -> None:
        """Delete a file that `remains` named."""
        self._shelf.delete(f"artifacts/{artifact}/{name}")

    @abstractmethod
    def faults(
        self, result: StageResult, *, read_all: bool, seen: Callable[[int], None] | None = None
    ) -> Iterator[FileFault]:
        """Every file of an artifact that is not what was written.

        Args:
            result: What was committed.
            read_all: Whether all bytes are read, or sizes (and what is cheap beside) compared.
            seen: Is told, file after file, how many bytes it has.
        """

    def named(self, artifact: str) -> StageResult | None:
        """The committed result of an artifact by its name; None for what is no such name."""
        if "/" in artifact or artifact in {"", ".", ".."}:
            return None
        return self._read_result(_result_of(artifact))

    def artifacts(self) -> Iterator[str]:
        """Names of all artifacts, those that are not committed among them; in order."""
        yield from self._shelf.children("artifacts")

    def attempts(self, artifact: str) -> Iterator[str]:
        """Names of the attempts at an artifact, oldest first."""
        yield from self._shelf.children(f"artifacts/{artifact}/attempts")

    def record(self, result: StageResult) -> StageRecord:
        """The record beside a committed result.

        Raises:
            IntegrityError: If it is missing or unreadable.
        """
        name = f"{attempt_of(result)}/record.json"
        try:
            return StageRecord.model_validate_json(self._shelf.read(name) or b"")
        except ValidationError as error:
            raise IntegrityError(
                f"the record of {result.artifact} is missing or unreadable",
                where=f"{self._shelf.place}/{name}",
            ) from error

    def discard(self, result: StageResult, reason: str) -> None:
        """Take a result out of sight; a result that another attempt has replaced is left alone.

        Its progress goes with it, so that the next attempt begins from its inputs.
        """
        name = result.artifact
        current = self.named(name)
        if current is None or current.attempt != result.attempt:
            return
        note = {"reason": reason, "at": now_text(), "result": result.dump()}
        self._shelf.write(f"discarded/{name}/{result.attempt}.json", canonical_json(note) + "\n")
        self._shelf.delete(f"trash/{name}/{result.attempt}.json")
        # First: nobody begins at the key while its result stands.
        self.drop_progress(name)
        self._shelf.delete(_result_of(name))

    def get_ref(self, experiment: str, stage: str) -> StageResult | None:
        """What the stage of this name made or reused last."""
        return self._read_result(_ref_name(experiment, stage))

    def set_ref(self, experiment: str, stage: str, result: StageResult) -> None:
        """Remember what the stage of this name made or reused."""
        self._shelf.write(_ref_name(experiment, stage), canonical_json(result.dump()) + "\n")

    def references(self) -> Iterator[StageResult]:
        """What all stages of all experiments made or reused last."""
        for experiment in self._shelf.children("refs"):
            for name in self._shelf.children(f"refs/{experiment}"):
                found = self._read_result(f"refs/{experiment}/{name}")
                if found is not None:
                    yield found

    def pin(self, artifact: str) -> PinDocument:
        """Keep an artifact, and what it was made from, whatever refers to it.

        Raises:
            UsageError: If there is no such artifact.
        """
        if self.named(artifact) is None and self.take_back(artifact) is None:
            raise UsageError(f"there is no artifact {artifact!r} in {self._shelf.place}")
        pin = PinDocument(artifact=artifact, done="pinned", at=now_text())
        self._shelf.write(f"pins/{artifact}.json", canonical_json(pin.dump()) + "\n")
        return pin

    def unpin(self, artifact: str) -> PinDocument:
        """Forget a pin.

        Raises:
            UsageError: If the artifact is not pinned; the pins are named.
        """
        pinned = list(self.pins())
        if artifact not in pinned:
            named = ", ".join(pinned) or "nothing"
            raise UsageError(f"{artifact!r} is not pinned; pinned is {named}")
        self._shelf.delete(f"pins/{artifact}.json")
        return PinDocument(artifact=artifact, done="unpinned", at=now_text())

    def pins(self) -> Iterator[str]:
        """Names of the pinned artifacts."""
        for name in self._shelf.children("pins"):
            yield name.removesuffix(".json")

    def trash(self, artifact: str) -> dict[str, TrashNote]:
        """What of an artifact lies in the trash: name of the part -> its note."""
        found: dict[str, TrashNote] = {}
        for name in self._shelf.children(f"trash/{artifact}"):
            text = self._shelf.read(f"trash/{artifact}/{name}")
            if name.endswith(".json") and text is not None:
                found[name.removesuffix(".json")] = TrashNote.model_validate_json(text)
        return found

    def put_in_trash(
        self, artifact: str, part: Part, name: str, *, reason: str, result: StageResult | None
    ) -> None:
        """Take a part out of sight; its bytes stay where they are. Atomic: the note comes first."""
        note = TrashNote(part=part, reason=reason, at=now_text(), result=result)
        self._shelf.write(f"trash/{artifact}/{name}.json", canonical_json(note.dump()) + "\n")
        if result is not None:
            self._shelf.delete(_result_of(artifact))

    def take_back(self, artifact: str) -> StageResult | None:
        """The newest result of an artifact that lies whole in the trash, in its place again."""
        notes = self.trash(artifact)
        for name in sorted(notes, reverse=True):
            result = notes[name].result
            if result is None or self._shelf.read(f"{attempt_of(result)}/manifest.json") is None:
                continue
            standing = self._publish(result)
            self._shelf.delete(f"trash/{artifact}/{name}.json")
            self._say(f"{artifact} was in the trash and is taken back")
            return standing
        return None

    def delete_attempt(self, artifact: str, attempt: str) -> None:
        """Delete an attempt for good, unless it is what is committed.

        The manifest goes first, so that none that is torn counts as whole; the bytes go last, so
        that what a killed process leaves is an attempt like any other.
        """
        current = self.named(artifact)
        if current is None or current.attempt != attempt:
            folder = f"artifacts/{artifact}/attempts/{attempt}"
            self._shelf.delete(f"{folder}/manifest.json")
            self._shelf.delete(f"trash/{artifact}/{attempt}.json")
            self._shelf.delete(f"discarded/{artifact}/{attempt}.json")
            self._shelf.delete_tree(folder)

    def _commit(self, result: StageResult, record: StageRecord) -> StageResult:
        """Publish a result whose files are durable; returns the winner.

        Inputs that were put into the trash while it was made are needed again from now on.
        """
        for name in sorted(set(record.input_artifacts.values())):
            if self.named(name) is None:
                self.take_back(name)
        return self._of_key(self._publish(result), result.kind, result.key)

    def _publish(self, result: StageResult) -> StageResult:
        """Make `result.json` unless it stands; the loop ends since each turn finds or makes one."""
        name, text = _result_of(result.artifact), canonical_json(result.dump()) + "\n"
        while True:
            winner = self._read_result(name)
            if winner is not None:
                return winner
            self._shelf.create(name, text)

    def _of_key(self, result: StageResult, kind: str, key: str) -> StageResult:
        if (result.kind, result.key) != (kind, key):
            raise IntegrityError(
                f"{result.artifact} holds the key {result.key}, not {key}: both begin alike",
                where=f"{self._shelf.place}/artifacts/{result.artifact}",
                hint="use another workspace for one of the two experiments",
            )
        return result

    def progress_usage(self, artifact: str) -> Usage:
        """What a later attempt would go on from."""
        return self._shelf.usage(f"artifacts/{artifact}/progress")

    def drop_progress(self, artifact: str) -> None:
        """Delete what a later attempt would go on from."""
        self._shelf.delete_tree(f"artifacts/{artifact}/progress")

    def _manifest(self, result: StageResult) -> ArtifactManifest | FileFault:
        """The manifest that was committed, or what is wrong with it."""
        name = f"{attempt_of(result)}/manifest.json"
        text = self._shelf.read(name)
        if text is not None and _sha256(text) == result.manifest_sha256:
            return ArtifactManifest.model_validate_json(text)
        return FileFault(
            artifact=result.artifact,
            file=f"{self._shelf.place}/{name}",
            expected="the manifest that was committed",
            found="nothing" if text is None else "another one",
        )

    def _read_result(self, name: str) -> StageResult | None:
        """A result file; one that cannot be parsed is moved aside, so that it hinders nobody."""
        text = self._shelf.read(name)
        if text is None:
            return None
        try:
            return StageResult.model_validate_json(text)
        except ValidationError:
            self._move_aside(name, text)
            return None

    def _move_aside(self, name: str, text: bytes) -> None:
        aside = f"{name}.torn-{_sha256(text)[:12]}"
        self._shelf.create(aside, text.decode("utf-8", "replace"))
        if self._shelf.read(name) == text:  # another process may have done it in the meantime
            self._shelf.delete(name)
            self._say(
                f"{self._shelf.place}/{name} was damaged and counts as absent; it is kept as "
                f"{aside.rpartition('/')[2]}"
            )

    def _check_format(self) -> None:
        found = self._shelf.read("format.json")
        if found is not None and FORMAT.encode() not in found:
            text = found.decode("utf-8", "replace").strip()
            raise UnreachableError(
                f"the store {self._shelf.place} has another layout than {FORMAT}: {text[:80]}",
                hint="use the version of Vitrail that made it, or another --workspace",
            )

    def _write_format(self) -> None:
        if self._shelf.read("format.json") is None:
            self._shelf.create("format.json", canonical_json({"format": FORMAT}) + "\n")


def attempt_of(result: StageResult) -> str:
    """Where a committed attempt lies on its shelf."""
    return f"artifacts/{result.artifact}/attempts/{result.attempt}"


def now_text() -> str:
    """The time in UTC, as documents hold it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _result_of(artifact: str) -> str:
    return f"artifacts/{artifact}/result.json"


def _ref_name(experiment: str, stage: str) -> str:
    # The name of a variant holds values, and so any character, and any number of them.
    name = urllib.parse.quote(stage, safe="[]=, ")
    if len(name) > 200:
        name = f"{name[:180]}-{digest_of(stage)[:16]}"
    return f"refs/{experiment}/{name}.json"


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()

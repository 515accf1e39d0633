"""Before an artifact is read for the first time its bytes are compared with its manifest.

Costs one reading of its bytes, once for each store: success is noted beside the artifact, and the
note holds as long as every file keeps its size, mtime and inode.
"""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from infra.atomic_files import write_atomic
from infra.file_digests import file_fault
from schemas.artifacts import ArtifactFile, ArtifactManifest
from schemas.spec import canonical_json

VERIFIED_FILE = "verified.json"

Stamps = dict[str, list[int]]
"""Path -> size in bytes, mtime in ns, inode."""


def input_fault(folder: Path, digest: str) -> str | None:
    """What is wrong with a committed artifact, as a sentence, or None.

    Args:
        folder: Of the files of a committed attempt.
        digest: Content digest that they must have.
    """
    try:
        manifest = ArtifactManifest.model_validate_json(
            (folder.parent / "manifest.json").read_bytes()
        )
    except (FileNotFoundError, ValidationError):
        return f"the manifest of {folder} is missing or unreadable"
    if manifest.content_digest() != digest:
        return f"the manifest of {folder} is not the one that was committed"
    note = folder.parent / VERIFIED_FILE
    # Taken before the reading: what changes meanwhile makes the note worthless.
    stamps = _stamps(folder, manifest.files)
    if stamps is not None and stamps == _noted(note):
        return None
    faults = (file_fault(folder, file, read_all=True) for file in manifest.files)
    fault = next((fault for fault in faults if fault), None)
    if fault is not None:
        return str(fault)
    # A full or read-only disk costs another reading, no more.
    with contextlib.suppress(OSError):
        write_atomic(note, canonical_json(stamps) + "\n")
    return None


def note_verified(folder: Path, manifest: ArtifactManifest) -> None:
    """Remember of files that were compared while they were written that they are whole."""
    stamps = _stamps(folder, manifest.files)
    if stamps is not None:
        write_atomic(folder.parent / VERIFIED_FILE, canonical_json(stamps) + "\n")


def _stamps(folder: Path, files: Iterable[ArtifactFile]) -> Stamps | None:
    found: Stamps = {}
    for file in files:
        try:
            status = (folder / file.path).stat()
        except FileNotFoundError:
            return None
        found[file.path] = [status.st_size, status.st_mtime_ns, status.st_ino]
    return found


def _noted(note: Path) -> object:
    try:
        return json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None

"""The files of an artifact: listed, hashed, compared with their manifest."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from infra.atomic_files import fsync_path
from schemas.artifacts import LOGS_FOLDER, STATE_FOLDER, ArtifactFile
from schemas.errors import IntegrityError
from schemas.store import FileFault


def file_sha256(path: Path) -> str:
    """sha256 of the bytes of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_content(folder: Path, known_sha256: Mapping[str, str]) -> tuple[ArtifactFile, ...]:
    """The content files of an attempt, sorted by path; those in `known_sha256` are not read.

    Raises:
        IntegrityError: If there is anything but plain files, or a known file is missing.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in _plain_files(folder)}
    content = {name: paths[name] for name in sorted(paths) if not _is_kept_aside(name)}
    missing = sorted(set(known_sha256) - set(content))
    if missing:
        raise IntegrityError(
            f"the stage names a digest for {missing[0]}, which is not among its files",
            where=str(folder),
        )
    return tuple(_entry(name, path, known_sha256.get(name)) for name, path in content.items())


def fsync_tree(folder: Path) -> None:
    """Force all files and folders below `folder`, and itself, to the disk."""
    for here, _, names in os.walk(folder, topdown=False):
        for name in names:
            fsync_path(Path(here, name))
        fsync_path(Path(here))
    fsync_path(folder.parent)


def file_fault(folder: Path, file: ArtifactFile, *, read_all: bool) -> FileFault | None:
    """What is wrong with a file of a manifest, or None.

    By default a file of the right size and mtime is not read; one that was touched, by a copy of
    the workspace say, is well if its bytes are. With `read_all` every file is read.
    """
    path = folder / file.path
    try:
        found = path.stat()
        if found.st_size != file.size_bytes:
            return size_fault(str(path), file, found.st_size)
        if not read_all and found.st_mtime_ns == file.mtime_ns:
            return None
        return bytes_fault(str(path), file, file_sha256(path))
    except FileNotFoundError:
        return size_fault(str(path), file, None)


def size_fault(place: str, file: ArtifactFile, found: int | None) -> FileFault | None:
    """A file of `found` bytes (None: there is none) against its manifest."""
    if found == file.size_bytes:
        return None
    told = "nothing" if found is None else f"{found} bytes"
    return FileFault(artifact="", file=place, expected=f"{file.size_bytes} bytes", found=told)


def bytes_fault(place: str, file: ArtifactFile, found: str) -> FileFault | None:
    """A file of the sha256 `found` against its manifest."""
    if found == file.sha256:
        return None
    expected = f"sha256 {file.sha256}"
    return FileFault(artifact="", file=place, expected=expected, found=f"sha256 {found}")


def _plain_files(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    odd = next((path for path in found if path.is_symlink() or not path.is_file()), None)
    if odd is not None:
        raise IntegrityError(
            f"{odd} is not a plain file; an artifact holds plain files only, since what a link "
            "points to may change"
        )
    return found


def _is_kept_aside(name: str) -> bool:
    return name.startswith((f"{LOGS_FOLDER}/", f"{STATE_FOLDER}/"))


def _entry(name: str, path: Path, known: str | None) -> ArtifactFile:
    digest = known or file_sha256(path)
    found = path.stat()
    return ArtifactFile(
        path=name, size_bytes=found.st_size, sha256=digest, mtime_ns=found.st_mtime_ns
    )

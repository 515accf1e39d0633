"""Walks raw corpora: which files there are, of which split and class; nothing is opened.

A walk holds one folder's listing at a time (a tar: one header), so its memory does not grow with
the corpus. Names whose first character is a dot are ignored, with everything below them.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import DataError
from schemas.sources import ImageFolderSource, SourceSpec, TarSource

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
DEFAULT_SPLIT = "train"

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """One file of a corpus."""

    split: str
    class_name: str
    """First folder below the split's root; empty for a file in the root itself."""
    path: str
    """Relative to the corpus, with forward slashes; undecodable bytes are surrogates."""
    offset: int
    """Where its bytes begin inside a tar; 0 in a folder."""
    size: int
    mtime_ns: int
    problem: str | None
    """Why it cannot be an image, or None."""


def walk(source: ImageFolderSource | TarSource) -> Iterator[Found]:
    """Every file of the corpus, in an order that only its names (a tar: its bytes) decide.

    Raises:
        DataError: If the corpus cannot be listed, or an image lies outside all class folders.
    """
    finds = _walk_tar(source) if isinstance(source, TarSource) else _walk_folders(source)
    for found in finds:
        if found.problem is None and not found.class_name:
            raise DataError(
                f"{printable(found.path)} of {source.uri} is not in a class folder; images are "
                "expected as CLASS/image (or SPLIT_FOLDER/CLASS/image with source.splits)"
            )
        yield found


def split_roots(source: ImageFolderSource | TarSource) -> dict[str, Parts]:
    """Split name -> its folder inside the corpus, as path parts."""
    if not source.splits:
        return {DEFAULT_SPLIT: ()}
    return {name: path_parts(folder) for name, folder in source.splits.items()}


def class_folders(source: SourceSpec) -> set[str]:
    """Names of the class folders on a disk, empty ones included; a tar's are met in its walk."""
    if not isinstance(source, ImageFolderSource):
        return set()
    return {
        printable(entry.name)
        for root in split_roots(source).values()
        for entry in Path(source.uri, *root).iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    }


def path_parts(path: str) -> Parts:
    """The folders and the name of a path; `.` and repeated slashes vanish."""
    return tuple(part for part in path.split("/") if part not in ("", "."))


def printable(path: str) -> str:
    """The path as text that every reader of UTF-8 accepts."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _walk_folders(source: ImageFolderSource) -> Iterator[Found]:
    roots = split_roots(source)
    for split in sorted(roots):
        root = roots[split]
        for parts, entry in _entries(Path(source.uri, *root), ()):
            yield _found_on_disk(split, root, parts, entry)


def _entries(
    folder: Path, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[Parts, "os.DirEntry[str]"]]:
    """Files below `folder`, by name; `above` are the folders on the way down, against loops."""
    try:
        status = folder.stat()
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise DataError(f"{folder} is a link to a folder above it; remove the link")
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            for parts, deeper in _entries(folder / entry.name, (*above, here)):
                yield (entry.name, *parts), deeper
        else:
            yield (entry.name,), entry


def _found_on_disk(split: str, root: Parts, parts: Parts, entry: "os.DirEntry[str]") -> Found:
    is_file = entry.is_file()
    status = entry.stat(follow_symlinks=is_file)
    return Found(
        split=split,
        class_name=printable(parts[0]) if len(parts) > 1 else "",
        path="/".join((*root, *parts)),
        offset=0,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        problem=_problem(entry.name) if is_file else "neither a file nor a link to one",
    )


def _walk_tar(source: TarSource) -> Iterator[Found]:
    roots = split_roots(source)
    try:
        with tarfile.open(source.uri, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else memory grows with the tar
                yield from _found_in_tar(roots, info)
    except tarfile.TarError as error:
        raise DataError(
            f"{source.uri} cannot be read as an uncompressed tar: {error}",
            hint="if it is compressed, decompress it first; it does not have to be unpacked",
        ) from error


def _found_in_tar(roots: dict[str, Parts], info: tarfile.TarInfo) -> Iterator[Found]:
    """The member, if it is in a split, no folder and not hidden."""
    parts = path_parts(info.name)
    place = _place(roots, parts)
    if info.isdir() or place is None:
        return
    split, inside = place
    if not inside or any(part.startswith(".") and part != ".." for part in inside):
        return
    yield Found(
        split=split,
        class_name=printable(inside[0]) if len(inside) > 1 else "",
        path=info.name,
        offset=info.offset_data,
        size=info.size,
        mtime_ns=0,
        problem=_tar_problem(info, parts),
    )


def _place(roots: dict[str, Parts], parts: Parts) -> tuple[str, Parts] | None:
    for split, root in roots.items():
        if parts[: len(root)] == root:
            return split, parts[len(root) :]
    return None


def _tar_problem(info: tarfile.TarInfo, parts: Parts) -> str | None:
    if info.issym() or info.islnk():
        return f"a link to {printable(info.linkname)}; links in a tar are not followed"
    if not info.isreg() or info.issparse():
        return "not a plain file"
    if info.name.startswith("/") or ".." in parts:
        return "its path leads outside the tar"
    return _problem(parts[-1])


def _problem(name: str) -> str | None:
    suffix = Path(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    return f"suffix {suffix!r} is none of {' '.join(sorted(IMAGE_SUFFIXES))}"

"""What planning asks of a raw corpus: is it there, which one is it, how large is it.

Lists and never reads images. Light to import: no numpy, no pyarrow, no codec, no scikit-learn.
"""

import hashlib
import importlib.metadata
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.tree import IMAGE_SUFFIXES, split_roots, walk
from pipeline.data.units import RawImage, Unit, list_units, read_unit
from schemas.errors import DataError, SpecError
from schemas.sources import ImageFolderSource, SklearnSource, SourceSpec, TarSource

__all__ = [
    "RawImage",
    "Unit",
    "check",
    "fingerprint",
    "list_units",
    "read_unit",
    "source_bytes",
    "split_names",
]

_DIGIT_BYTES = 256
"""More than any of the 8 x 8 px digits takes as PNG."""
_DIGITS = 1797


def split_names(source: SourceSpec) -> tuple[str, ...]:
    """The splits that the source itself has, sorted."""
    if isinstance(source, SklearnSource):
        return ("train",)
    return tuple(sorted(split_roots(source)))


def fingerprint(source: SourceSpec) -> str:
    """sha256, in hex, of what tells one state of the corpus from another without reading it.

    A folder: relative path, size and modification time of every file that is not hidden. A tar:
    its size and modification time. scikit-learn: the set's name and the installed version.

    Raises:
        DataError: If the corpus is not there.
    """
    digest = hashlib.sha256()
    for line in _identity(source):
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def source_bytes(source: SourceSpec) -> int:
    """An upper bound of the bytes of all images, from sizes alone."""
    if isinstance(source, SklearnSource):
        return _DIGITS * _DIGIT_BYTES
    if isinstance(source, TarSource):
        return _tar_status(source)[0]
    _check_folder(source)
    return sum(found.size for found in walk(source) if found.problem is None)


def check(source: SourceSpec) -> None:
    """Refuse a source that cannot be built from, as far as a first look shows.

    Raises:
        SpecError: If one split's folder lies inside another's.
        DataError: If the folder or tar is missing, empty, unreadable, or lacks a split's folder.
    """
    if isinstance(source, SklearnSource):
        return
    _check_splits(source)
    if isinstance(source, TarSource):
        _check_tar(source)
    else:
        _check_folder(source)


def _identity(source: SourceSpec) -> Iterator[str]:
    if isinstance(source, SklearnSource):
        yield f"sklearn {source.name} {importlib.metadata.version('scikit-learn')}"
    elif isinstance(source, TarSource):
        size, mtime_ns = _tar_status(source)
        yield f"tar {size} {mtime_ns}"
    else:
        _check_folder(source)
        yield "image_folder"
        for found in walk(source):
            yield f"{found.path}\0{found.size}\0{found.mtime_ns}"


def _check_splits(source: ImageFolderSource | TarSource) -> None:
    roots = split_roots(source)
    for outer, root in roots.items():
        for inner, other in roots.items():
            if outer != inner and other[: len(root)] == root:
                raise SpecError(
                    f"source.splits: the folder of {inner!r} lies in that of {outer!r}; "
                    "give each split a folder of its own"
                )
        if ".." in root:
            raise SpecError(f"source.splits: the folder of {outer!r} leads outside the corpus")


def _check_folder(source: ImageFolderSource) -> None:
    _need_folder(Path(source.uri), "source.uri")
    for split, root in split_roots(source).items():
        folder = Path(source.uri, *root)
        _need_folder(folder, f"source.splits.{split}" if source.splits else "source.uri")
        names = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        if not names:
            raise DataError(f"{folder} is empty; it must hold a folder of images for each class")
        loose = sorted(entry.name for entry in names if _is_image(entry))
        if loose:
            raise DataError(
                f"{folder} holds images itself, {loose[0]} among them; put them into one folder "
                "for each class"
            )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _need_folder(folder: Path, field: str) -> None:
    if folder.is_dir():
        return
    what = "is not a folder" if folder.exists() else "does not exist"
    beside = (
        sorted(entry.name for entry in folder.parent.glob("*/")) if folder.parent.is_dir() else []
    )
    listing = f"; folders beside it: {', '.join(beside[:10])}" if beside else ""
    hint = "for a tar give source.type: tar" if folder.suffix == ".tar" else None
    raise DataError(f"{folder} {what}{listing}", where=field, hint=hint)


def _tar_status(source: TarSource) -> tuple[int, int]:
    path = Path(source.uri)
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}; give the path of a tar file", where="source.uri")
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _check_tar(source: TarSource) -> None:
    _tar_status(source)
    try:
        with tarfile.open(source.uri, "r:") as tar:
            if tar.next() is None:
                raise DataError(f"{source.uri} is an empty tar", where="source.uri")
    except tarfile.TarError as error:
        raise DataError(
            f"{source.uri} cannot be read as an uncompressed tar: {error}",
            where="source.uri",
            hint="if it is compressed, decompress it first; it does not have to be unpacked",
        ) from error

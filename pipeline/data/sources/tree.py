"""Class trees, in a folder or in a tar: what a path says of split and class; nothing is opened.

Names whose first character is a dot are ignored, with everything below them.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

from pipeline.data.files import printable
from pipeline.data.units import DEFAULT_SPLIT, Member, Refused
from schemas.errors import DataError, SpecError
from schemas.sources import ImageFolderSource, TarSource

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

Parts = tuple[str, ...]


def split_roots(source: ImageFolderSource | TarSource) -> dict[str, Parts]:
    """Split name -> its folder inside the corpus, as path parts."""
    if not source.splits:
        return {DEFAULT_SPLIT: ()}
    return {name: path_parts(source.splits[name]) for name in sorted(source.splits)}


def check_splits(roots: dict[str, Parts]) -> None:
    """Refuse folders that overlap or lead out.

    Raises:
        SpecError: If they do.
    """
    for outer, root in roots.items():
        for inner, other in roots.items():
            if outer != inner and other[: len(root)] == root:
                raise SpecError(
                    f"source.splits: the folder of {inner!r} lies in that of {outer!r}; "
                    "give each split a folder of its own"
                )
        if ".." in root:
            raise SpecError(f"source.splits: the folder of {outer!r} leads outside the corpus")


def place_in(roots: dict[str, Parts], parts: Parts) -> tuple[str, Parts] | None:
    """The split of a path and its parts below that split's folder."""
    for split, root in roots.items():
        if parts[: len(root)] == root:
            return split, parts[len(root) :]
    return None


def class_of(inside: Parts) -> str:
    """First folder below the split's root; empty for a file in the root itself."""
    return printable(inside[0]) if len(inside) > 1 else ""


def in_class(found: Iterator[Member | Refused], uri: str) -> Iterator[Member | Refused]:
    """The same, once each image is known to have a class.

    Raises:
        DataError: If an image lies outside all class folders.
    """
    for one in found:
        if isinstance(one, Member) and not one.class_name:
            raise DataError(
                f"{printable(one.path)} of {uri} is not in a class folder; images are "
                "expected as CLASS/image (or SPLIT_FOLDER/CLASS/image with source.splits)"
            )
        yield one


def path_parts(path: str) -> Parts:
    """The folders and the name of a path; `.` and repeated slashes vanish."""
    return tuple(part for part in path.split("/") if part not in ("", "."))


def is_hidden(parts: Parts) -> bool:
    """Whether a part of the path begins with a dot."""
    return any(part.startswith(".") and part != ".." for part in parts)


def suffix_problem(name: str) -> str | None:
    """Why a file of this name cannot be an image, or None."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    return f"suffix {suffix!r} is none of {' '.join(sorted(IMAGE_SUFFIXES))}"

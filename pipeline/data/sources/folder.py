"""A tree of class folders, on a disk or in a store.

On a disk, tasks list some class folders each; a store gives its pages one after the other, so one
task lists each split. A walk holds one folder's or one page's listing, never the corpus.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.data.files import entries, files_of, is_remote, join, place_of, printable
from pipeline.data.sources.tree import (
    IMAGE_SUFFIXES,
    check_splits,
    class_of,
    in_class,
    is_hidden,
    path_parts,
    split_roots,
    suffix_problem,
)
from pipeline.data.units import Member, Part, RawImage, Refused, Unit, cut, refuse_change
from pipeline.ports import RemoteFiles
from schemas.errors import DataError
from schemas.sources import ImageFolderSource

_READS_AT_ONCE = 8
PARTS_PER_SPLIT = 16
"""So many tasks may list a split side by side; each ends with one unit that is not full."""


@dataclass(frozen=True)
class Found:
    """One file of a tree."""

    path: str
    """Relative to where the walk began, with forward slashes."""
    size: int
    version: str
    problem: str | None
    """Why it cannot be an image, or None."""


class FolderCorpus:
    """Fulfils `Corpus` for `image_folder` without a label file."""

    def __init__(self, source: ImageFolderSource, remote: RemoteFiles | None) -> None:
        """Look at nothing yet."""
        self._source = source
        self._place = place_of(source.uri)
        self._files = files_of(source.uri, remote)
        self._roots = split_roots(source)

    def identity(self) -> Iterator[str]:
        """Path, size and version of every file."""
        self._check_there()
        yield "image_folder"
        for root in self._roots.values():
            for found in walk(self._files, join(self._place, "/".join(root))):
                yield f"{'/'.join((*root, found.path))}\0{found.size}\0{found.version}"

    def num_bytes(self) -> int:
        """Bytes of all files with an image's suffix."""
        self._check_there()
        places = [join(self._place, "/".join(root)) for root in self._roots.values()]
        finds = (found for place in places for found in walk(self._files, place))
        return sum(found.size for found in finds if found.problem is None)

    def declared_splits(self) -> tuple[str, ...]:
        """Those of the spec, or one."""
        return tuple(self._roots)

    def check(self) -> None:
        """Refuse overlapping splits; on a disk also what is missing, empty or without classes."""
        check_splits(self._roots)
        self._check_there()

    def declared_classes(self) -> set[str]:
        """Class folders on a disk, empty ones included; a store has no empty folders."""
        if is_remote(self._place):
            return set()
        tops = [entry for root in self._roots.values() for entry in self._top(root)]
        return {printable(entry.name) for entry in tops if entry.is_dir()}

    def parts(self) -> Iterator[Part]:
        """Some class folders each."""
        for split, root in self._roots.items():
            if is_remote(self._place):
                yield Part(split)
                continue
            names = [entry.name for entry in self._top(root)]
            step = -(-len(names) // PARTS_PER_SPLIT) or 1
            for start in range(0, len(names), step):
                yield Part(split, detail=tuple(names[start : start + step]))

    def units(self, part: Part) -> Iterator[Unit]:
        """Slices of the part's files."""
        yield from cut(in_class(self._finds(part), self._source.uri), part)

    def read(self, unit: Unit) -> Iterator[RawImage]:
        """File by file."""
        yield from read_files(self._files, self._place, unit)

    def _top(self, root: tuple[str, ...]) -> list["os.DirEntry[str]"]:
        with os.scandir(Path(self._place, *root)) as scan:
            found = [entry for entry in scan if not entry.name.startswith(".")]
        return sorted(found, key=lambda entry: entry.name)

    def _finds(self, part: Part) -> Iterator[Member | Refused]:
        root = self._roots[part.split]
        only = frozenset(part.detail) or None
        for found in walk(self._files, join(self._place, "/".join(root)), only=only):
            inside = path_parts(found.path)
            path = "/".join((*root, *inside))
            if found.problem is None:
                yield Member(part.split, class_of(inside), path, 0, found.size)
            else:
                yield Refused(class_of(inside), path, found.problem)

    def _check_there(self) -> None:
        if is_remote(self._place):
            return  # a walk says it
        need_folder(self._place, "source.uri")
        for split, root in self._roots.items():
            folder = Path(self._place, *root)
            need_folder(str(folder), f"source.splits.{split}" if root else "source.uri")
            tops = self._top(root)
            if not tops:
                raise DataError(
                    f"{folder} is empty; it must hold a folder of images for each class"
                )
            loose = [entry.name for entry in tops if _is_image(entry)]
            if loose:
                raise DataError(
                    f"{folder} holds images itself, {loose[0]} among them; put them into one "
                    "folder for each class, or name their classes in a table: source.labels"
                )


def walk(files: RemoteFiles, place: str, *, only: frozenset[str] | None = None) -> Iterator[Found]:
    """Every file below a place that is not hidden, in an order that only names decide.

    Args:
        files: Who reads the place.
        place: Folder.
        only: Names right below it that are wanted; None: all.
    """
    if is_remote(place):
        for status in files.walk(place):
            if not is_hidden(path_parts(status.path)):
                problem = suffix_problem(status.path)
                yield Found(status.path, status.size, status.version, problem)
        return
    for path, entry in entries(Path(place), only=only):
        is_file = entry.is_file()
        facts = entry.stat(follow_symlinks=is_file)
        problem = suffix_problem(entry.name) if is_file else "neither a file nor a link to one"
        yield Found(path, facts.st_size, str(facts.st_mtime_ns), problem)


def read_files(files: RemoteFiles, place: str, unit: Unit) -> Iterator[RawImage]:
    """The members of a unit, each a file of its own; a store is asked for several at once."""
    places = [join(place, member.path) for member in unit.members]
    with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
        # A store's answers wait here: no more than a unit, which is bounded.
        contents = threads.map(files.read, places) if is_remote(place) else map(files.read, places)
        for member, data in zip(unit.members, contents, strict=True):
            shown = printable(member.path)
            refuse_change(f"{shown} of {place}", listed=str(member.size), found=str(len(data)))
            yield RawImage(shown, member.split, member.class_name, data)


def need_folder(place: str, field: str) -> None:
    """Refuse what is no folder on this disk, naming what lies beside it.

    Raises:
        DataError: If it is none.
    """
    folder = Path(place)
    if folder.is_dir():
        return
    what = "is not a folder" if folder.exists() else "does not exist"
    beside = (
        sorted(entry.name for entry in folder.parent.glob("*/")) if folder.parent.is_dir() else []
    )
    listing = f"; folders beside it: {', '.join(beside[:10])}" if beside else ""
    raise DataError(f"{folder} {what}{listing}", where=field, hint=_type_of(place))


def _type_of(place: str) -> str | None:
    types = {".tar": "tar", ".parquet": "parquet"}
    suffix = PurePosixPath(place).suffix.lower()
    return f"for a {suffix[1:]} give source.type: {types[suffix]}" if suffix in types else None


def _is_image(entry: "os.DirEntry[str]") -> bool:
    return PurePosixPath(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file()

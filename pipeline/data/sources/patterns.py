"""Files by path, folder or pattern, on a disk or in a store."""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.files import is_remote, join, place_of, printable
from pipeline.data.sources.tree import is_hidden, path_parts
from pipeline.data.units import DEFAULT_SPLIT
from pipeline.ports import FileStatus, RemoteFiles
from schemas.errors import DataError, SpecError
from schemas.sources import Patterns

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILD = re.compile(r"[*?]")
_ASKED_SINGLY = 16
"""So many plain names are asked for one by one; for more, their folder is listed."""
_TOO_MANY = 10_000_000


class FileSet:
    """The files of each split, sorted by path; one listing serves all questions.

    Memory: a status for each file; these are containers of many images, not images.
    """

    def __init__(self, uri: str, splits: dict[str, Patterns], *, suffix: str) -> None:
        """Hardly look; `suffix` is that of the files wanted in a folder, as `.tar`."""
        self._suffix = suffix
        self._found: tuple[tuple[str, FileStatus], ...] | None = None
        if splits:
            self.place = place_of(uri)
            self._patterns = {split: _several(splits[split]) for split in sorted(splits)}
        else:
            self.place, pattern = _whole(place_of(uri), suffix)
            self._patterns = {DEFAULT_SPLIT: (pattern,)}

    @property
    def splits(self) -> tuple[str, ...]:
        """Their names, sorted."""
        return tuple(self._patterns)

    def find(self, files: RemoteFiles) -> Iterator[tuple[str, FileStatus]]:
        """Split and file, relative to `place`, in the order of (split, path); looks once.

        Raises:
            DataError: If a pattern finds nothing, or a file that is named is not there.
            SpecError: If one file falls into two splits.
        """
        if self._found is None:
            self._found = tuple(self._look(files))
        yield from self._found

    def _look(self, files: RemoteFiles) -> Iterator[tuple[str, FileStatus]]:
        seen: dict[str, str] = {}
        for split, patterns in self._patterns.items():
            found = {s.path: s for pattern in patterns for s in self._matches(pattern, files)}
            for path in sorted(found):
                if path in seen:
                    raise SpecError(
                        f"{printable(path)} is in two splits, {seen[path]!r} and {split!r}",
                        where=f"source.splits.{split}",
                    )
                seen[path] = split
                yield split, found[path]

    def _matches(self, pattern: str, files: RemoteFiles) -> list[FileStatus]:
        names = list(itertools.islice(expand_braces(pattern), _TOO_MANY))
        if len(names) <= _ASKED_SINGLY and not any(map(_WILD.search, names)):
            return [one for name in names for one in self._file_or_folder(name, files)]
        fixed = [_fixed_part(name)[0] if _WILD.search(name) else _parent(name) for name in names]
        folder = _common_folder(fixed)
        listed = {status.path: status for status in _below(join(self.place, folder), folder, files)}
        wanted = _wanted(names, listed)
        if not wanted:
            raise DataError(f"{pattern!r} matches no file below {self.place}")
        return [listed[path] for path in wanted]

    def _file_or_folder(self, name: str, files: RemoteFiles) -> list[FileStatus]:
        place = join(self.place, name)
        status = files.status(place)
        if status is not None:
            return [FileStatus(name, status.size, status.version)]
        found = [
            status
            for status in _below(place, name, files)
            if status.path.lower().endswith(self._suffix)
        ]
        if not found:
            raise DataError(f"{place} holds no {self._suffix} file")
        return found


def expand_braces(pattern: str) -> Iterator[str]:
    """`a{00..02}{x,y}` gives a00x, a00y, a01x, ...; what has no braces is itself."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    for choice in _choices(braces[1]):
        yield from expand_braces(head + choice + tail)


def _choices(inside: str) -> Iterator[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        yield from inside.split(",")
        return
    first, last = numbers[1], numbers[2]
    for number in range(int(first), int(last) + 1):
        yield f"{number:0{len(first)}d}"


def _whole(place: str, suffix: str) -> tuple[str, str]:
    """Folder and pattern of a place: all of a folder, or what a pattern or a file's path names."""
    named = place.lower().endswith(suffix) or re.search(r"[*?{]", place)
    if named or (not is_remote(place) and Path(place).is_file()):
        folder, pattern = _fixed_part(place)
        return folder or ".", pattern
    return place, f"**/*{suffix}"


def _several(patterns: Patterns) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else patterns


def _fixed_part(pattern: str) -> tuple[str, str]:
    """The folder before the first part with a wildcard or brace, and the rest; else parent, name.

    A name alone has the folder "".
    """
    special = re.search(r"[*?{]", pattern)
    cut = pattern.rfind("/", 0, special.start() if special else len(pattern))
    return (pattern[:cut] or "/" if cut >= 0 else ""), pattern[cut + 1 :]


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _common_folder(folders: Sequence[str]) -> str:
    common = path_parts(folders[0])
    for folder in set(folders):
        parts = path_parts(folder)
        shared = [a == b for a, b in zip(common, parts, strict=False)]
        common = common[: shared.index(False) if False in shared else len(shared)]
    return "/".join(common)


def _below(place: str, folder: str, files: RemoteFiles) -> Iterator[FileStatus]:
    prefix = f"{folder}/" if folder else ""
    for status in files.walk(place):
        if not is_hidden(path_parts(status.path)):
            yield FileStatus(prefix + status.path, status.size, status.version)


def _wanted(names: list[str], listed: dict[str, FileStatus]) -> list[str]:
    """Paths that one of the names matches.

    Raises:
        DataError: If a name without wildcards is not there.
    """
    plain = [name.removeprefix("./") for name in names if not _WILD.search(name)]
    missing = [name for name in plain if name not in listed]
    if missing:
        raise DataError(f"{len(missing)} of the files named do not exist, {missing[0]} among them")
    globs = [re.compile(_regex(name)) for name in names if _WILD.search(name)]
    matched = [path for path in listed if any(glob.fullmatch(path) for glob in globs)]
    return plain + matched


def _regex(glob: str) -> str:
    """`*` and `?` stay inside one part of a path; `**` spans any number of parts."""
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        pieces.get(piece) or re.escape(piece)
        for piece in re.split(r"(\*\*/|\*\*|\*|\?)", glob.removeprefix("./"))
    )

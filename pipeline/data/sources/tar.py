"""A class tree inside one uncompressed tar; read as a stream and never unpacked.

A walk holds one header. A tar in a store is read through twice: once for its headers, once for its
images; what lies between two small headers is fetched in blocks.
"""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from pipeline.data.files import files_of, join, place_of, printable, stamp_of
from pipeline.data.sources.tree import (
    Parts,
    check_splits,
    class_of,
    in_class,
    is_hidden,
    path_parts,
    place_in,
    split_roots,
    suffix_problem,
)
from pipeline.data.units import Member, Part, RawImage, Refused, Unit, cut, refuse_change
from pipeline.ports import FileStatus, RemoteFiles
from schemas.errors import DataError
from schemas.sources import TarSource

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class TarCorpus:
    """Fulfils `Corpus` for `tar`."""

    def __init__(self, source: TarSource, remote: RemoteFiles | None) -> None:
        """Look at nothing yet."""
        self._source = source
        self._place = place_of(source.uri)
        self._files = files_of(source.uri, remote)
        self._roots = split_roots(source)

    def identity(self) -> Iterator[str]:
        """Size and version of the tar."""
        status = self._status()
        yield f"tar {status.size} {status.version}"

    def num_bytes(self) -> int:
        """Size of the tar."""
        return self._status().size

    def declared_splits(self) -> tuple[str, ...]:
        """Those of the spec, or one."""
        return tuple(self._roots)

    def check(self) -> None:
        """Read the first header."""
        check_splits(self._roots)
        self._status()
        if next(members(self._files, self._place), None) is None:
            raise DataError(f"{self._source.uri} is an empty tar", where="source.uri")

    def declared_classes(self) -> set[str]:
        """None: they are met in the walk."""
        return set()

    def parts(self) -> Iterator[Part]:
        """The tar."""
        yield Part(stamp=stamp_of(self._status()))

    def units(self, part: Part) -> Iterator[Unit]:
        """Slices of the members."""
        yield from cut(in_class(self._finds(), self._source.uri), part)

    def read(self, unit: Unit) -> Iterator[RawImage]:
        """Member by member, in the tar's order."""
        yield from read_members(self._files, self._place, unit)

    def _status(self) -> FileStatus:
        return need_file(self._files, self._place, "a tar file")

    def _finds(self) -> Iterator[Member | Refused]:
        for info, _ in members(self._files, self._place):
            parts = path_parts(info.name)
            found = place_in(self._roots, parts)
            if info.isdir() or found is None or not found[1] or is_hidden(found[1]):
                continue
            split, inside = found
            problem = member_problem(info, parts) or suffix_problem(parts[-1])
            if problem is None:
                yield Member(split, class_of(inside), info.name, info.offset_data, info.size)
            else:
                yield Refused(class_of(inside), info.name, problem)


def members(files: RemoteFiles, place: str) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Header after header of a tar; the tar may be asked for a member's bytes.

    Raises:
        DataError: If it is no plain tar.
    """
    with (
        files.open(place) as stream,
        _sentences(place, stream),
        tarfile.open(fileobj=stream, mode="r:") as tar,
    ):
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else memory grows with the tar
            yield info, tar


def member_problem(info: tarfile.TarInfo, parts: Parts) -> str | None:
    """Why a member is not a file to be read, or None."""
    if info.issym() or info.islnk():
        return f"a link to {printable(info.linkname)}; links in a tar are not followed"
    if not info.isreg() or info.issparse():
        return "not a plain file"
    if info.name.startswith("/") or ".." in parts:
        return "its path leads outside the tar"
    return None


def read_members(files: RemoteFiles, place: str, unit: Unit) -> Iterator[RawImage]:
    """The members of a unit out of the tar at `unit.path` below `place`, in the tar's order."""
    tar_place = join(place, unit.path)
    refuse_change(
        tar_place, listed=unit.stamp, found=stamp_of(need_file(files, tar_place, "a tar"))
    )
    with files.open(tar_place) as stream:
        for member in unit.members:
            stream.seek(member.offset)
            data = stream.read(member.size)
            shown = printable(member.path)
            refuse_change(f"{shown} of {place}", listed=str(member.size), found=str(len(data)))
            yield RawImage(shown, member.split, member.class_name, data)


def need_file(files: RemoteFiles, place: str, what: str) -> FileStatus:
    """The file at a place.

    Raises:
        DataError: If there is none.
    """
    status = files.status(place)
    if status is None:
        raise DataError(f"{place} does not exist or is no file; give the path of {what}")
    return status


@contextmanager
def _sentences(place: str, stream: BinaryIO) -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as error:
        stream.seek(0)
        start = stream.read(8)
        packed = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
        what = f"it is compressed with {packed}" if packed else str(error)
        raise DataError(
            f"{place} cannot be read as an uncompressed tar: {what}",
            where="source.uri",
            hint="if it is compressed, decompress it first; it does not have to be unpacked",
        ) from error

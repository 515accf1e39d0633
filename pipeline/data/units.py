"""Units of work: a slice of a corpus that one task reads; what a unit holds is decided by listing.

A unit has at most 512 files and, single larger files apart, 64 MiB, so a task's memory is bounded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.tree import DEFAULT_SPLIT, Found, printable, walk
from schemas.errors import DataError
from schemas.sources import SklearnSource, SourceSpec

FILES_PER_UNIT = 512
BYTES_PER_UNIT = 64 * 2**20


@dataclass(frozen=True)
class Member:
    """One image of a unit, and where to read it."""

    split: str
    class_name: str
    path: str
    offset: int
    size: int


@dataclass(frozen=True)
class Refused:
    """A file that listing alone shows to be no image."""

    class_name: str
    path: str
    problem: str


@dataclass(frozen=True)
class Unit:
    """A slice of a corpus; small, picklable and JSON-able."""

    type: str
    uri: str
    members: tuple[Member, ...]
    refused: tuple[Refused, ...] = ()

    def dump(self) -> dict[str, Any]:
        """Plain data, ready for JSON: the inverse of `load`."""
        return {
            "type": self.type,
            "uri": self.uri,
            "members": [[m.split, m.class_name, m.path, m.offset, m.size] for m in self.members],
            "refused": [[r.class_name, r.path, r.problem] for r in self.refused],
        }

    @classmethod
    def load(cls, data: dict[str, Any]) -> "Unit":
        """Read what `dump` made."""
        return cls(
            type=data["type"],
            uri=data["uri"],
            members=tuple(Member(*fields) for fields in data["members"]),
            refused=tuple(Refused(*fields) for fields in data["refused"]),
        )


@dataclass(frozen=True)
class RawImage:
    """The bytes of one file as they stand in the corpus."""

    source: str
    """Path inside the corpus, printable."""
    split: str
    class_name: str
    data: bytes


def list_units(source: SourceSpec) -> Iterator[Unit]:
    """Cut the corpus into units; the same corpus gives the same units.

    Raises:
        DataError: If the corpus cannot be listed, or an image lies outside all class folders.
    """
    if isinstance(source, SklearnSource):
        yield from _list_digits(source)
        return
    members: list[Member] = []
    refused: list[Refused] = []
    num_bytes = 0
    for found in walk(source):
        if found.problem is None:
            members.append(_member(found))
            num_bytes += found.size
        else:
            refused.append(Refused(found.class_name, found.path, found.problem))
        if len(members) + len(refused) >= FILES_PER_UNIT or num_bytes >= BYTES_PER_UNIT:
            yield Unit(source.type, source.uri, tuple(members), tuple(refused))
            members, refused, num_bytes = [], [], 0
    if members or refused:
        yield Unit(source.type, source.uri, tuple(members), tuple(refused))


def read_unit(unit: Unit) -> Iterator[RawImage]:
    """The bytes of every member, one at a time.

    Raises:
        DataError: If a file cannot be read or is no longer what was listed.
    """
    if unit.type == "sklearn":
        yield from _read_digits(unit)
    elif unit.type == "tar":
        yield from _read_tar(unit)
    else:
        for member in unit.members:
            yield _raw(member, _read_file(Path(unit.uri, member.path)), unit.uri)


def _member(found: Found) -> Member:
    return Member(found.split, found.class_name, found.path, found.offset, found.size)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(str(path))} cannot be read: {error.strerror}") from error


def _read_tar(unit: Unit) -> Iterator[RawImage]:
    try:
        with Path(unit.uri).open("rb") as tar:
            for member in unit.members:
                tar.seek(member.offset)
                yield _raw(member, tar.read(member.size), unit.uri)
    except OSError as error:
        raise DataError(f"{unit.uri} cannot be read: {error.strerror}") from error


def _raw(member: Member, data: bytes, uri: str) -> RawImage:
    if len(data) != member.size:
        raise DataError(
            f"{printable(member.path)} of {uri} had {member.size} bytes when it was listed and has "
            f"{len(data)} now; let the corpus rest and run again"
        )
    return RawImage(printable(member.path), member.split, member.class_name, data)


def _list_digits(source: SklearnSource) -> Iterator[Unit]:
    from sklearn.datasets import load_digits

    labels = load_digits().target
    for start in range(0, len(labels), FILES_PER_UNIT):
        members = tuple(
            Member(DEFAULT_SPLIT, str(labels[index]), f"{source.name}/{index:04d}", index, 0)
            for index in range(start, min(start + FILES_PER_UNIT, len(labels)))
        )
        yield Unit(source.type, source.name, members)


def _read_digits(unit: Unit) -> Iterator[RawImage]:
    import numpy as np
    from sklearn.datasets import load_digits

    from pipeline.data.images.codec import encode_png

    images = load_digits().images
    for member in unit.members:
        # The scans count to 16; 255 / 16 keeps their order and uses the whole range of a byte.
        grey = np.rint(images[member.offset] * (255 / 16)).astype(np.uint8)
        yield RawImage(member.path, member.split, member.class_name, encode_png(grey))

"""Units of work: a slice of a corpus that one task reads; what a unit holds is decided by listing.

A unit has at most 512 files and, single larger files apart, 64 MiB, so a task's memory is bounded.
"""

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field
from typing import Any

from schemas.errors import DataError

FILES_PER_UNIT = 512
_FILES_OF_FIRST_UNITS = 64
_UNITS_BEFORE = 16
"""A larger unit than the first ones holds no more than this part of the files before it."""
BYTES_PER_UNIT = 64 * 2**20
DEFAULT_SPLIT = "train"


@dataclass(frozen=True)
class Member:
    """One image of a unit, and where to read it."""

    split: str
    class_name: str
    path: str
    """Its name in the corpus."""
    offset: int
    """Where its bytes begin inside a tar, or its number in a file of many images; else 0."""
    size: int
    """Bytes; in a file of many images about so many, or 0."""


@dataclass(frozen=True)
class Refused:
    """A file that listing alone shows to be no image of a class."""

    class_name: str
    """Empty where none is known."""
    path: str
    problem: str
    reason: str = "not_image"
    """One of `schemas.manifest.REJECTION_REASONS`."""


@dataclass(frozen=True)
class Unit:
    """A slice of a corpus; small, picklable and JSON-able."""

    members: tuple[Member, ...]
    refused: tuple[Refused, ...] = ()
    path: str = ""
    """The one file that holds all members, below the source's place; empty: each is a file."""
    stamp: str = ""
    """Size and version of that file when it was listed."""
    detail: dict[str, Any] = field(default_factory=dict)
    """What else the source's reader has to know, as JSON."""

    def dump(self) -> dict[str, Any]:
        """Plain data, ready for JSON: the inverse of `load`."""
        return {
            "members": [list(astuple(member)) for member in self.members],
            "refused": [list(astuple(file)) for file in self.refused],
            "path": self.path,
            "stamp": self.stamp,
            "detail": self.detail,
        }

    @classmethod
    def load(cls, data: dict[str, Any]) -> "Unit":
        """Read what `dump` made."""
        return cls(
            members=tuple(Member(*fields) for fields in data["members"]),
            refused=tuple(Refused(*fields) for fields in data["refused"]),
            path=data["path"],
            stamp=data["stamp"],
            detail=data["detail"],
        )


@dataclass(frozen=True)
class Part:
    """A piece of a corpus that one task lists: a tar, some class folders, a range of rows."""

    split: str = DEFAULT_SPLIT
    path: str = ""
    """The file that it is, or lies in, below the source's place; empty where there is none."""
    stamp: str = ""
    """Size and version of that file."""
    detail: tuple[Any, ...] = ()
    """What else its lister has to know."""


@dataclass(frozen=True)
class RawImage:
    """The bytes of one file as they stand in the corpus."""

    source: str
    """Path inside the corpus, printable."""
    split: str
    class_name: str
    data: bytes
    uid: bytes | None = None
    """Where the corpus carries it from the file that the image came from; else from `data`."""


def cut(found: Iterable[Member | Refused], part: Part, **detail: Any) -> Iterator[Unit]:
    """Units of bounded size, in the order of what was found; the same finds give the same units.

    Args:
        found: What listing met.
        part: Where; its path and stamp go into the units.
        detail: See `Unit.detail`.
    """
    members: list[Member] = []
    refused: list[Refused] = []
    num_bytes = before = 0
    for one in found:
        if isinstance(one, Member):
            members.append(one)
            num_bytes += one.size
        else:
            refused.append(one)
        files = len(members) + len(refused)
        if files >= _limit(before) or num_bytes >= BYTES_PER_UNIT:
            yield Unit(tuple(members), tuple(refused), part.path, part.stamp, detail)
            members, refused, num_bytes = [], [], 0
            before += files
    if members or refused:
        yield Unit(tuple(members), tuple(refused), part.path, part.stamp, detail)


def _limit(before: int) -> int:
    """Files of the next unit: the last task of a small corpus must not be what all wait for."""
    return min(FILES_PER_UNIT, max(_FILES_OF_FIRST_UNITS, before // _UNITS_BEFORE))


def refuse_change(place: str, *, listed: str, found: str) -> None:
    """Stop where a file is not what was listed.

    Raises:
        DataError: If the two differ.
    """
    if listed != found:
        raise DataError(
            f"{place} had {_bytes(listed)} when it was listed and has {_bytes(found)} now, or was "
            "written anew; let the corpus rest and run again"
        )


def _bytes(stamp: str) -> str:
    return f"{stamp.partition(':')[0]} bytes"

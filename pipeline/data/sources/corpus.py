"""What every family of sources offers: to planning, to the list step, and to a map task."""

from collections.abc import Iterator
from typing import Protocol

from pipeline.data.units import Part, RawImage, Unit


class Corpus(Protocol):
    """A raw corpus. The first three are for planning: they list and import nothing heavy.

    All raise `DataError` where the corpus is not there or cannot be used, and `UnreachableError`
    where a store does not answer.
    """

    def identity(self) -> Iterator[str]:
        """Lines that differ wherever the corpus does: names, sizes, versions; not its place."""
        ...

    def num_bytes(self) -> int:
        """An upper bound of the bytes of all images, from sizes alone; 0 where nobody can know."""
        ...

    def declared_splits(self) -> tuple[str, ...] | None:
        """The splits that must not be empty, sorted; None: those that listing finds."""
        ...

    def check(self) -> None:
        """Refuse what cannot be built from, as far as a first look shows; may read a header."""
        ...

    def declared_classes(self) -> set[str]:
        """Classes that are named somewhere, even if no image is met; may read a header."""
        ...

    def parts(self) -> Iterator[Part]:
        """Pieces to be listed side by side, always in the same order."""
        ...

    def units(self, part: Part) -> Iterator[Unit]:
        """Cut one part; the same part gives the same units."""
        ...

    def read(self, unit: Unit) -> Iterator[RawImage]:
        """The bytes of every member of the unit, one at a time.

        Raises:
            DataError: If a file is no longer what was listed.
        """
        ...

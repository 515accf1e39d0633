"""Image sets that scikit-learn carries in its wheel."""

import importlib.metadata
from collections.abc import Iterator

from pipeline.data.units import DEFAULT_SPLIT, Member, Part, RawImage, Unit, cut
from pipeline.ports import RemoteFiles
from schemas.sources import SklearnSource

_DIGIT_BYTES = 256
"""More than any of the 8 x 8 px digits takes as PNG."""
_DIGITS = 1797


class SklearnCorpus:
    """Fulfils `Corpus` for `sklearn`."""

    def __init__(self, source: SklearnSource, remote: RemoteFiles | None) -> None:  # noqa: ARG002  # all families are made alike
        """Look at nothing yet."""
        self._source = source

    def identity(self) -> Iterator[str]:
        """The set's name and the installed version."""
        yield f"sklearn {self._source.name} {importlib.metadata.version('scikit-learn')}"

    def num_bytes(self) -> int:
        """An upper bound."""
        return _DIGITS * _DIGIT_BYTES

    def declared_splits(self) -> tuple[str, ...]:
        """One."""
        return (DEFAULT_SPLIT,)

    def check(self) -> None:
        """Nothing can be wrong with it."""

    def declared_classes(self) -> set[str]:
        """All ten are met."""
        return set()

    def parts(self) -> Iterator[Part]:
        """One."""
        yield Part()

    def units(self, part: Part) -> Iterator[Unit]:
        """Slices of the scans."""
        from sklearn.datasets import load_digits

        labels = load_digits().target.tolist()
        name = self._source.name
        finds = (
            Member(part.split, str(label), f"{name}/{index:04d}", index, 0)
            for index, label in enumerate(labels)
        )
        yield from cut(finds, part)

    def read(self, unit: Unit) -> Iterator[RawImage]:
        """The scans as grey PNG."""
        import numpy as np
        from sklearn.datasets import load_digits

        from pipeline.data.images.codec import encode_png

        images = load_digits().images
        for member in unit.members:
            # The scans count to 16; 255 / 16 keeps their order and uses the whole range of a byte.
            grey = np.rint(images[member.offset] * (255 / 16)).astype(np.uint8)
            yield RawImage(member.path, member.split, member.class_name, encode_png(grey))

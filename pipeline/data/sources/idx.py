"""IDX files, plain or `.gz`: MNIST and its family.

A task holds one slice; of a packed file it unpacks, and forgets, all that stands before it.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from pipeline.data.files import files_of, join, place_of, stamp_of
from pipeline.data.sources.arrays import as_png, cut_array
from pipeline.data.sources.tar import need_file
from pipeline.data.units import Part, RawImage, Unit, refuse_change
from pipeline.ports import FileStatus, RemoteFiles
from schemas.errors import DataError
from schemas.sources import IdxSource

_UINT8 = 8
"""The type byte of the magic number; the next byte counts the dimensions."""
_PACKED_RATIO = 8
"""How much smaller a packed file of scans may be: what a bound of the bytes has to assume."""


class IdxCorpus:
    """Fulfils `Corpus` for `idx`."""

    def __init__(self, source: IdxSource, remote: RemoteFiles | None) -> None:
        """Look at nothing yet."""
        self._splits = {split: source.splits[split] for split in sorted(source.splits)}
        self._place = place_of(source.uri)
        self._files = files_of(source.uri, remote)

    def identity(self) -> Iterator[str]:
        """Name, size and version of the files."""
        yield "idx"
        for split, pair in self._splits.items():
            for name in (pair.images, pair.labels):
                status = self._status(name)
                yield f"{split}\0{status.path}\0{status.size}\0{status.version}"

    def num_bytes(self) -> int:
        """Size of the image files; for packed ones a bound that scans keep."""
        found = [self._status(pair.images) for pair in self._splits.values()]
        return sum(s.size * (_PACKED_RATIO if s.path.endswith(".gz") else 1) for s in found)

    def declared_splits(self) -> tuple[str, ...]:
        """Those of the spec."""
        return tuple(self._splits)

    def check(self) -> None:
        """Compare the headers of images and labels."""
        for pair in self._splits.values():
            images, labels = self._shape(pair.images), self._shape(pair.labels)
            colours = images[3:] in ((), (3,))
            if len(images) not in (3, 4) or not colours or len(labels) != 1:
                raise DataError(
                    f"{pair.images} has the shape {images} and {pair.labels} {labels}; images are "
                    "(number, height, width) or (number, height, width, 3), labels (number)"
                )
            if images[0] != labels[0]:
                raise DataError(
                    f"{pair.images} holds {images[0]} images and {pair.labels} {labels[0]} labels; "
                    "are they of one split?"
                )

    def declared_classes(self) -> set[str]:
        """None: they are met among the labels."""
        return set()

    def parts(self) -> Iterator[Part]:
        """The files of images."""
        for split, pair in self._splits.items():
            status = self._status(pair.images)
            yield Part(split, status.path, stamp_of(status))

    def units(self, part: Part) -> Iterator[Unit]:
        """Slices of the images."""
        labels = self._splits[part.split].labels
        with self._open(self._status(labels).path) as stream:
            (count,) = _read_shape(stream, labels)
            names = [str(label) for label in _exactly(stream, count, labels)]
        yield from cut_array(names, part, image_bytes=math.prod(self._shape(part.path)[1:]))

    def read(self, unit: Unit) -> Iterator[RawImage]:
        """The scans as PNG."""
        import numpy as np

        refuse_change(unit.path, listed=unit.stamp, found=stamp_of(self._status(unit.path)))
        with self._open(unit.path) as stream:
            shape = _read_shape(stream, unit.path)[1:]
            size, first = math.prod(shape), stream.tell()
            for member in unit.members:
                stream.seek(first + member.offset * size)
                data = _exactly(stream, size, unit.path)
                yield from as_png([member], [np.frombuffer(data, np.uint8).reshape(shape)])

    def _status(self, name: str) -> FileStatus:
        """The file, or its packed form, by its path."""
        for path in (name, f"{name}.gz"):
            status = self._files.status(join(self._place, path))
            if status is not None:
                return FileStatus(path, status.size, status.version)
        return need_file(self._files, join(self._place, name), "an IDX file, or its .gz")

    def _shape(self, name: str) -> tuple[int, ...]:
        with self._open(self._status(name).path) as stream:
            return _read_shape(stream, name)

    @contextmanager
    def _open(self, path: str) -> Iterator[BinaryIO]:
        with self._files.open(join(self._place, path)) as packed:
            if not path.endswith(".gz"):
                yield packed
                return
            try:
                with gzip.open(packed) as stream:
                    yield cast(BinaryIO, stream)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DataError(f"{path} cannot be unpacked: {error}") from error


def _read_shape(stream: BinaryIO, name: str) -> tuple[int, ...]:
    magic = _exactly(stream, 4, name)
    if magic[:2] != b"\0\0" or magic[2] != _UINT8 or magic[3] not in (1, 3, 4):
        raise DataError(f"{name} is no IDX file of bytes: it begins with {magic.hex(' ')}")
    sizes = _exactly(stream, 4 * magic[3], name)
    return tuple(int.from_bytes(sizes[at : at + 4], "big") for at in range(0, len(sizes), 4))


def _exactly(stream: BinaryIO, count: int, name: str) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise DataError(f"{name} ends too early; fetch it again")
    return data

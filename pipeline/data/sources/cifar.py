"""CIFAR-10 and CIFAR-100, binary version: records of one or two label bytes and 3 x 32 x 32 pixels.

The python version is a pickle, which may run any code when it is read: it is not.
"""

from collections.abc import Iterator

from pipeline.data.files import files_of, join, place_of, stamp_of
from pipeline.data.sources.arrays import as_png, cut_array
from pipeline.data.sources.tar import need_file
from pipeline.data.units import Part, RawImage, Unit, refuse_change
from pipeline.ports import FileStatus, RemoteFiles
from schemas.errors import DataError
from schemas.sources import CifarSource

_SIDE_PX = 32
_IMAGE_BYTES = 3 * _SIDE_PX * _SIDE_PX
_FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar10": {
        "test": ("test_batch.bin",),
        "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    },
    "cifar100": {"test": ("test.bin",), "train": ("train.bin",)},
}
_NAMES = {
    ("cifar10", "fine"): "batches.meta.txt",
    ("cifar100", "fine"): "fine_label_names.txt",
    ("cifar100", "coarse"): "coarse_label_names.txt",
}
_PICKLES = ("data_batch_1", "train", "batches.meta", "meta")


class CifarCorpus:
    """Fulfils `Corpus` for `cifar`."""

    def __init__(self, source: CifarSource, remote: RemoteFiles | None) -> None:
        """Look at nothing yet."""
        self._place = place_of(source.uri)
        self._files = files_of(source.uri, remote)
        self._splits = _FILES[source.name]
        self._names = _NAMES[source.name, source.labels]
        label_bytes = 1 if source.name == "cifar10" else 2
        self._label_at = 0 if source.labels == "coarse" else label_bytes - 1
        self._record_bytes = label_bytes + _IMAGE_BYTES

    def identity(self) -> Iterator[str]:
        """Name, size and version of the files."""
        yield "cifar"
        for _, status in self._batches():
            yield f"{status.path}\0{status.size}\0{status.version}"
        status = self._status(self._names)
        yield f"{status.path}\0{status.size}\0{status.version}"

    def num_bytes(self) -> int:
        """Size of the files; noise may take a little more as PNG."""
        return sum(status.size * 5 // 4 for _, status in self._batches())

    def declared_splits(self) -> tuple[str, ...]:
        """Test and train."""
        return tuple(self._splits)

    def check(self) -> None:
        """Sizes are whole numbers of records."""
        for _, status in self._batches():
            if status.size == 0 or status.size % self._record_bytes:
                raise DataError(
                    f"{status.path} has {status.size} bytes, which is no whole number of records "
                    f"of {self._record_bytes}; fetch it again, and see that source.name is right"
                )

    def declared_classes(self) -> set[str]:
        """Those of the file of names."""
        return set(self._class_names())

    def parts(self) -> Iterator[Part]:
        """The batches."""
        for split, status in self._batches():
            yield Part(split, status.path, stamp_of(status))

    def units(self, part: Part) -> Iterator[Unit]:
        """Slices of a batch."""
        names = self._class_names()
        data = self._files.read(join(self._place, part.path))
        labels = data[self._label_at :: self._record_bytes]
        if max(labels, default=0) >= len(names):
            raise DataError(
                f"{part.path} has the label {max(labels)}, but {self._names} names {len(names)} "
                "classes; see that source.name is right"
            )
        yield from cut_array([names[n] for n in labels], part, image_bytes=self._record_bytes)

    def read(self, unit: Unit) -> Iterator[RawImage]:
        """The pictures as PNG."""
        import numpy as np

        refuse_change(unit.path, listed=unit.stamp, found=stamp_of(self._status(unit.path)))
        with self._files.open(join(self._place, unit.path)) as stream:
            for member in unit.members:
                stream.seek((member.offset + 1) * self._record_bytes - _IMAGE_BYTES)
                planes = np.frombuffer(stream.read(_IMAGE_BYTES), np.uint8)
                pixels = planes.reshape(3, _SIDE_PX, _SIDE_PX).transpose(1, 2, 0)
                yield from as_png([member], [np.ascontiguousarray(pixels)])

    def _batches(self) -> Iterator[tuple[str, FileStatus]]:
        for split, names in self._splits.items():
            for name in names:
                yield split, self._status(name)

    def _class_names(self) -> list[str]:
        text = self._files.read(join(self._place, self._names)).decode()
        return [line.strip() for line in text.splitlines() if line.strip()]

    def _status(self, name: str) -> FileStatus:
        place = join(self._place, name)
        if self._files.status(place) is None and any(
            self._files.status(join(self._place, pickle)) for pickle in _PICKLES
        ):
            raise DataError(
                f"{self._place} holds the python version of CIFAR, a pickle, which may run any "
                "code when it is read; Vitrail does not read it",
                where="source.uri",
                hint="give the folder of the binary version (cifar-10-binary.tar.gz, "
                "cifar-100-binary.tar.gz)",
            )
        return need_file(self._files, place, "a folder of CIFAR's binary version")

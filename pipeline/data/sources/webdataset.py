"""WebDataset: tar shards of samples, read as streams and never unpacked.

Each shard is listed by a task of its own: headers, and the small members that hold the classes. In
a store that reads a shard through once more than its images would need; in return the classes are
known, and can be chosen from, before any image is prepared.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.data.files import files_of, join, printable, stamp_of
from pipeline.data.sources.labels import MISSING_LABEL, class_name_of
from pipeline.data.sources.patterns import FileSet
from pipeline.data.sources.tar import member_problem, members, read_members
from pipeline.data.sources.tree import IMAGE_SUFFIXES, is_hidden, path_parts
from pipeline.data.units import Member, Part, RawImage, Refused, Unit, cut
from pipeline.ports import RemoteFiles
from schemas.errors import DataError, SpecError
from schemas.sources import WebDatasetSource

_LABEL_BYTES = 2**20
"""A member with more bytes holds no class."""
_EXTENSIONS = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)


class WebDatasetCorpus:
    """Fulfils `Corpus` for `webdataset`."""

    def __init__(self, source: WebDatasetSource, remote: RemoteFiles | None) -> None:
        """Hardly look."""
        self._source = source
        self._files = files_of(source.uri, remote)
        self._shards = FileSet(source.uri, source.splits, suffix=".tar")
        self._label_extension = _extension(source.label)
        self._image_extension = _extension(source.image) if source.image else None

    def identity(self) -> Iterator[str]:
        """Path, size and version of every shard."""
        yield "webdataset"
        for split, status in self._shards.find(self._files):
            yield f"{split}\0{status.path}\0{status.size}\0{status.version}"

    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(status.size for _, status in self._shards.find(self._files))

    def declared_splits(self) -> tuple[str, ...]:
        """Those of the spec, or one."""
        return self._shards.splits

    def check(self) -> None:
        """Read the first header."""
        for _, status in self._shards.find(self._files):
            next(members(self._files, join(self._shards.place, status.path)), None)
            return

    def declared_classes(self) -> set[str]:
        """None: they are met in the samples."""
        return set()

    def parts(self) -> Iterator[Part]:
        """The shards."""
        for split, status in self._shards.find(self._files):
            yield Part(split, status.path, stamp_of(status))

    def units(self, part: Part) -> Iterator[Unit]:
        """Slices of the shard's samples."""
        yield from cut(self._finds(part), part)

    def read(self, unit: Unit) -> Iterator[RawImage]:
        """Image by image, in the shard's order."""
        yield from read_members(self._files, self._shards.place, unit)

    def _finds(self, part: Part) -> Iterator[Member | Refused]:
        for sample in self._samples(part):
            name = f"{part.path}/{sample.key}"
            if not sample.images:
                what = ", ".join(sorted(sample.others)) or "nothing"
                yield Refused(sample.label or "", name, f"the sample has no image; it has {what}")
                continue
            info = self._image(sample, name)
            path = f"{part.path}/{info.name}"
            problem = member_problem(info, path_parts(info.name))
            if problem is not None:
                yield Refused(sample.label or "", path, problem)
            elif sample.label is None:
                what = ", ".join(sorted(sample.others)) or "nothing else"
                problem = f"the sample has no class in .{self._label_extension}; it has {what}"
                yield Refused("", path, problem, MISSING_LABEL)
            else:
                yield Member(part.split, sample.label, path, info.offset_data, info.size)

    def _samples(self, part: Part) -> "Iterator[_Sample]":
        sample = _Sample("")
        for info, tar in members(self._files, join(self._shards.place, part.path)):
            if info.isdir() or is_hidden(path_parts(info.name)):
                continue
            key, extension = _key_and_extension(info.name)
            if key != sample.key:
                if sample.key:
                    yield sample
                sample = _Sample(key)
            self._add(sample, extension, info, tar, part)
        if sample.key:
            yield sample

    def _add(
        self,
        sample: "_Sample",
        extension: str,
        info: tarfile.TarInfo,
        tar: tarfile.TarFile,
        part: Part,
    ) -> None:
        wanted = self._image_extension
        if extension == wanted or (wanted is None and extension in _EXTENSIONS):
            sample.images[extension] = info
            return
        sample.others.add(extension)
        if extension == self._label_extension:
            where = f"{printable(info.name)} of {part.path}"
            sample.label = class_name_of(self._label(tar, info, where), where)

    def _label(self, tar: tarfile.TarFile, info: tarfile.TarInfo, where: str) -> Any:
        stream = tar.extractfile(info) if info.isreg() and info.size <= _LABEL_BYTES else None
        if stream is None:
            return None
        data = stream.read()
        if self._label_extension != "json":
            return data
        try:
            content = json.loads(data)
        except ValueError as error:
            raise DataError(f"{where} is no JSON: {error}") from error
        return content.get(self._source.label_field) if isinstance(content, dict) else None

    def _image(self, sample: "_Sample", name: str) -> tarfile.TarInfo:
        if len(sample.images) > 1:
            raise SpecError(
                f"the sample {printable(name)} has several images: "
                f"{', '.join(sorted(sample.images))}; say which one is meant",
                where="source.image",
            )
        (info,) = sample.images.values()
        return info


@dataclass
class _Sample:
    """Members that follow each other and share a name up to the first dot."""

    key: str
    images: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    label: str | None = None


def _extension(given: str) -> str:
    """As in a spec, with or without a dot in front."""
    return given.lower().removeprefix(".")


def _key_and_extension(name: str) -> tuple[str, str]:
    """`a/b.left.JPG` is `a/b` and `left.jpg`."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()

"""Data sets of Hugging Face `datasets`; only this module and its export twin import the library.

A data set from the hub, or from a folder that is not of `save_to_disk`, is prepared by the library
in its own cache, once on every node. Nothing is decoded by it.
"""

import importlib.util
import re
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pipeline.data.files import LocalFiles, place_of
from pipeline.data.sources.labels import MISSING_LABEL, need_column
from pipeline.data.sources.parquet import (
    check_image_type,
    check_label_type,
    image_of,
    named_label,
)
from pipeline.data.units import Member, Part, RawImage, Refused, Unit, cut
from pipeline.ports import RemoteFiles
from schemas.errors import DataError, SpecError, UnreachableError
from schemas.sources import HfSource

_ROWS_PER_PART = 65_536
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SAVED = ("dataset_dict.json", "state.json")
"""Files by which a folder of `save_to_disk` is known: of several splits, of one."""


class HfCorpus:
    """Fulfils `Corpus` for `hf`."""

    def __init__(self, source: HfSource, remote: RemoteFiles | None) -> None:  # noqa: ARG002  # the library has readers of its own
        """Look at nothing yet."""
        self._source = source
        self._folder = Path(place_of(source.uri))

    def identity(self) -> Iterator[str]:
        """The revision on the hub; path, size and time of every file of a folder."""
        if not self._is_local():
            yield f"hf {self._source.revision}"
            return
        yield "hf"
        for status in LocalFiles().walk(str(self._folder)):
            yield f"{status.path}\0{status.size}\0{status.version}"

    def num_bytes(self) -> int:
        """Size of a folder; 0 for the hub, which is not asked."""
        if not self._is_local():
            return 0
        return sum(status.size for status in LocalFiles().walk(str(self._folder)))

    def declared_splits(self) -> tuple[str, ...] | None:
        """Those of the spec; None: all that the data set has."""
        return tuple(sorted(self._source.splits)) or None

    def check(self) -> None:
        """Load it, and look for splits and columns."""
        self._is_local()
        if importlib.util.find_spec("datasets") is None:
            raise DataError(
                "a source of type hf needs the library `datasets`, which is not installed",
                where="source.type",
                hint="pip install 'vitrail[hf]'",
            )
        for data in self._splits().values():
            for field in ("image_column", "label_column"):
                name = getattr(self._source, field)
                columns = data.column_names
                need_column(name, columns=columns, place=self._source.uri, where=f"source.{field}")
            schema = data.features.arrow_schema
            image, label = self._source.image_column, self._source.label_column
            check_image_type(schema.field(image).type, f"{image} of {self._source.uri}")
            check_label_type(schema.field(label).type, f"{label} of {self._source.uri}")

    def declared_classes(self) -> set[str]:
        """Names of the label column, where it has them."""
        return {name for data in self._splits().values() for name in self._names(data) or ()}

    def parts(self) -> Iterator[Part]:
        """Ranges of rows."""
        for split, data in self._splits().items():
            for first in range(0, len(data), _ROWS_PER_PART):
                yield Part(split, detail=(first, min(first + _ROWS_PER_PART, len(data))))

    def units(self, part: Part) -> Iterator[Unit]:
        """Slices of the rows."""
        yield from cut(self._finds(part), part)

    def read(self, unit: Unit) -> Iterator[RawImage]:
        """Row by row."""
        column = self._source.image_column
        images = {
            split: _not_decoded(data.select_columns([column]), column)
            for split, data in self._splits().items()
        }
        for member in unit.members:
            yield self._raw(images[member.split][member.offset][column], member)

    def _raw(self, value: Any, member: Member) -> RawImage:
        """The row's image, called by its path, but not by where the data set happens to lie."""
        path = value.get("path") if isinstance(value, dict) else None
        if path and Path(path).is_absolute():
            inside = Path(path).is_relative_to(self._folder.absolute())
            name = Path(path).relative_to(self._folder.absolute()) if inside else Path(path).name
            content = value["bytes"]
            if content is None:
                content = LocalFiles().read(path)
            value = {"bytes": content, "path": str(name)}
        return image_of(value, member)

    def _finds(self, part: Part) -> Iterator[Member | Refused]:
        first, last = part.detail
        data, column = self._splits()[part.split], self._source.label_column
        names = self._names(data)
        labels = data.select_columns([column])
        for row in range(first, last, 4_096):
            stop = min(row + 4_096, last)
            for number, value in enumerate(labels[row:stop][column], row):
                path = f"{part.split}/{number:08d}"
                label = named_label(value, names, f"{column} of {path}")
                if label is None:
                    yield Refused("", path, f"{column} is empty", MISSING_LABEL)
                else:
                    yield Member(part.split, label, path, number, 0)

    def _names(self, data: Any) -> list[str] | None:
        return getattr(data.features[self._source.label_column], "names", None)

    def _splits(self) -> dict[str, Any]:
        """Our name of each split -> its rows, sorted by name.

        Raises:
            SpecError: If the spec names a split that the data set does not have.
        """
        source = self._source
        loaded = self._loaded
        splits = source.splits or {str(name): str(name) for name in loaded}
        for ours, theirs in splits.items():
            if theirs not in loaded:
                raise SpecError(
                    f"{source.uri} has no split {theirs!r}; it has {', '.join(map(str, loaded))}",
                    where=f"source.splits.{ours}",
                )
        return {name: loaded[splits[name]] for name in sorted(splits)}

    @cached_property
    def _loaded(self) -> dict[str, Any]:
        """The data set's own splits, by its own names."""
        source = self._source
        if self._is_local():
            return _load(str(self._folder), source.name, None)
        return _load_from_hub(source.uri, source.name, source.revision)

    def _is_local(self) -> bool:
        """Whether it is a folder here.

        Raises:
            DataError: If it is none, and cannot be of the hub either.
            SpecError: If it is of the hub and no revision is given.
        """
        if self._folder.is_dir():
            return True
        if not _HUB_ID.fullmatch(self._source.uri):
            raise DataError(
                f"{self._source.uri} is no folder here, and no OWNER/NAME of the hub",
                where="source.uri",
            )
        if self._source.revision is None:
            raise SpecError(
                f"{self._source.uri} is no folder here; a data set of the hub needs a revision, "
                "since what its branches name changes",
                where="source.revision",
                hint="give the commit's 40 hex digits, as the hub's page `Files and versions` "
                "shows it",
            )
        return False


@lru_cache(maxsize=2)
def _load_from_hub(place: str, name: str | None, revision: str | None) -> dict[str, Any]:
    """As `_load`; kept, since a revision never changes and the hub is asked each time."""
    return _load(place, name, revision)


def _load(place: str, name: str | None, revision: str | None) -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    try:
        if any((Path(place) / saved).is_file() for saved in _SAVED):
            loaded = datasets.load_from_disk(place)
        else:
            loaded = datasets.load_dataset(place, name, revision=revision)
    except Exception as error:
        kind = UnreachableError if revision and isinstance(error, OSError) else DataError
        raise kind(f"{place} cannot be loaded by `datasets`: {error}") from error
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}


def _not_decoded(data: Any, column: str) -> Any:
    """Rows whose images are bytes and path; a column of plain bytes is so already."""
    import datasets

    if isinstance(data.features[column], datasets.Image):
        return data.cast_column(column, datasets.Image(decode=False))
    return data

"""A folder of images whose classes stand in a table.

The table decides: what it names is the corpus, and files that it does not name are not part of it.
It is read once, in a stream; tasks look for the files of some thousand rows each, so neither the
table nor the listing of the folder is ever held.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from pipeline.data.files import files_of, is_remote, join, place_of, printable
from pipeline.data.sources.folder import need_folder, read_files, walk
from pipeline.data.sources.label_files import LabelRow, label_rows
from pipeline.data.sources.labels import MISSING_LABEL
from pipeline.data.sources.tar import need_file
from pipeline.data.sources.tree import path_parts
from pipeline.data.units import DEFAULT_SPLIT, Member, Part, RawImage, Refused, Unit, cut
from pipeline.ports import RemoteFiles
from schemas.errors import DataError
from schemas.sources import ImageFolderSource, LabelFileSpec

_ROWS_PER_PART = 4_096
_QUESTIONS_AT_ONCE = 16
"""Files that one task asks a store for at the same time."""
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]+")


class LabelledCorpus:
    """Fulfils `Corpus` for `image_folder` with `labels`."""

    def __init__(
        self, source: ImageFolderSource, labels: LabelFileSpec, remote: RemoteFiles | None
    ) -> None:
        """Look at nothing yet."""
        self._labels = labels
        self._place = place_of(source.uri)
        self._remote = remote
        self._files = files_of(source.uri, remote)
        self._table = join(self._place, labels.file)

    def identity(self) -> Iterator[str]:
        """Size and version of the table; path, size and version of every file in the folder."""
        self._check_there()
        table = need_file(files_of(self._table, self._remote), self._table, "a label file")
        yield f"image_folder with labels {table.size} {table.version}"
        for found in walk(self._files, self._place):
            yield f"{found.path}\0{found.size}\0{found.version}"

    def num_bytes(self) -> int:
        """Bytes of all files in the folder with an image's suffix."""
        self._check_there()
        finds = walk(self._files, self._place)
        return sum(found.size for found in finds if found.problem is None)

    def declared_splits(self) -> tuple[str, ...] | None:
        """One, where no column names them."""
        return None if self._labels.split_column else (DEFAULT_SPLIT,)

    def check(self) -> None:
        """Read the table's first row."""
        self._check_there()
        if next(self._rows(), None) is None:
            raise DataError(f"{self._table} names no image", where="source.labels.file")

    def declared_classes(self) -> set[str]:
        """None: they are met in the table."""
        return set()

    def parts(self) -> Iterator[Part]:
        """Some thousand rows each."""
        rows = self._rows()
        while some := tuple(islice(rows, _ROWS_PER_PART)):
            yield Part(detail=some)

    def units(self, part: Part) -> Iterator[Unit]:
        """Slices of the part's rows."""
        with ThreadPoolExecutor(_QUESTIONS_AT_ONCE if is_remote(self._place) else 1) as threads:
            yield from cut(threads.map(self._find, part.detail), part)

    def read(self, unit: Unit) -> Iterator[RawImage]:
        """File by file."""
        yield from read_files(self._files, self._place, unit)

    def _rows(self) -> Iterator[LabelRow]:
        return label_rows(self._labels, self._place, self._remote)

    def _find(self, row: LabelRow) -> Member | Refused:
        image, name = row.image.removeprefix(f"{self._place}/"), row.label or ""
        path = "/".join(path_parts(image))
        if image.startswith("/") or "://" in image or ".." in path_parts(image):
            return Refused(name, image, f"its path leads outside {self._place}", "missing_file")
        if row.label is None:
            problem = f"{self._labels.label_column} is empty in {printable(self._labels.file)}"
            return Refused("", path, problem, MISSING_LABEL)
        split = row.split or DEFAULT_SPLIT
        if not _SPLIT_NAME.fullmatch(split):
            raise DataError(
                f"{self._labels.split_column} of {path} is {split!r}; a split's name has letters, "
                "digits, - and _ alone",
                where="source.labels.split_column",
            )
        status = self._files.status(join(self._place, path))
        if status is None:
            problem = f"{printable(self._labels.file)} names it, and there is no such file"
            return Refused(name, path, problem, "missing_file")
        return Member(split, row.label, path, 0, status.size)

    def _check_there(self) -> None:
        if not is_remote(self._place):
            need_folder(self._place, "source.uri")
        if not is_remote(self._table) and not Path(self._table).is_file():
            raise DataError(
                f"{self._table} does not exist or is no file; give the path of the label file, "
                "relative to source.uri or absolute",
                where="source.labels.file",
            )

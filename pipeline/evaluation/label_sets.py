"""An outside file of right classes becomes a table by uid, for the images of one split.

The file and its names are held in memory, and 20 bytes for each image of the split.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.shards.shard_set import Split
from pipeline.data.staging import committing, read_table
from pipeline.evaluation.passes import uids_of
from schemas.errors import DataError
from schemas.evaluation import LabelSetFacts
from schemas.records import LABEL_SETS
from schemas.words import nearest

_SHOWN_NAMES = 20
_REAL_NAME = "ILSVRC2012_val_{:08d}"
_FACTS = b"vitrail"

Sets = dict[str, list[int]]


def parse_label_sets(text: bytes, class_names: Sequence[str]) -> Sets:
    """Image name -> numbers of the classes that are right, each once, ascending.

    Raises:
        DataError: If the file has another form, or a class that there is not.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise DataError(f"the file of label_sets is no JSON: {error}") from error
    if isinstance(document, list):
        document = {_REAL_NAME.format(number): it for number, it in enumerate(document, start=1)}
    if not isinstance(document, dict):
        raise DataError(
            "the file of label_sets must be an object, image -> classes, or ReaL's list"
        )
    numbers = {name: index for index, name in enumerate(class_names)}
    return {image: _numbers(image, it, numbers) for image, it in document.items()}


def write_label_sets(path: Path, split: Split, sets: Mapping[str, list[int]]) -> LabelSetFacts:
    """Write `schemas.records.LABEL_SETS` for the images that the file names.

    An image is named by its path in the corpus, by its file name, or by that without suffix; the
    first of these that the file has counts.

    Raises:
        DataError: If one name means several images.
    """
    found: dict[str, bytes] = {}
    for uid, source in _sources(split):
        name = _name_in(sets, source)
        if name is None:
            continue
        if name in found:
            raise DataError(
                f"label_sets names {name}, and several images of split {split.name!r} are called "
                "so; name them by their paths in the corpus"
            )
        found[name] = uid
    unknown = sorted(sets.keys() - found.keys())
    facts = LabelSetFacts(unknown_count=len(unknown), unknown_names=tuple(unknown[:_SHOWN_NAMES]))
    rows = sorted((uid, sets[name]) for name, uid in found.items())
    schema = LABEL_SETS.with_metadata({_FACTS: json.dumps(facts.dump())})
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], []]
    with (
        committing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        writer.write_table(pa.table(columns, schema=schema))
    return facts


class LabelSets:
    """The table that `write_label_sets` wrote, memory-mapped; its uids are held."""

    def __init__(self, path: Path) -> None:
        """Open it."""
        table = read_table(path)
        self.facts = LabelSetFacts.model_validate_json(table.schema.metadata[_FACTS])
        self._labels = table["labels"].combine_chunks()
        self._uids = uids_of(table)

    def of(self, uids: Sequence[bytes]) -> pa.Array:
        """The sets of some images; null for an image that the file does not name."""
        wanted = np.array(uids, "S16")
        places = np.searchsorted(self._uids, wanted)
        inside = np.minimum(places, max(0, len(self._uids) - 1))
        known = self._uids[inside] == wanted if len(self._uids) else np.zeros(len(wanted), bool)
        return self._labels.take(pa.array(inside, mask=~known))


def _sources(split: Split) -> Iterator[tuple[bytes, str]]:
    for shard in range(len(split.shard_rows)):
        for batch in split.live_table(shard, ["uid", "source"]).to_batches():
            yield from zip(batch["uid"].to_pylist(), batch["source"].to_pylist(), strict=True)


def _name_in(sets: Mapping[str, Any], source: str) -> str | None:
    path = PurePosixPath(source)
    return next((name for name in (source, path.name, path.stem) if name in sets), None)


def _numbers(image: str, classes: Any, numbers: Mapping[str, int]) -> list[int]:
    if not isinstance(classes, list):
        raise DataError(f"label_sets gives {classes!r} for {image}; it must be a list of classes")
    return sorted({_number(image, it, numbers) for it in classes})


def _number(image: str, given: Any, numbers: Mapping[str, int]) -> int:
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(numbers):
        return given
    if isinstance(given, str) and given in numbers:
        return numbers[given]
    near = nearest(given, list(numbers)) if isinstance(given, str) else None
    meant = f"did you mean {near!r}?" if near else f"they are names, or 0 to {len(numbers) - 1}"
    raise DataError(
        f"label_sets gives {given!r} for {image}, which is no class of the data; {meant}"
    )

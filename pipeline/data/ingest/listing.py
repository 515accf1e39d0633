"""The list step: tasks cut the parts of a corpus into units; what they found is kept on disk.

Units are numbered by part and place in it, whatever the order in which tasks end. A step that was
cut short goes on with the parts whose file is known to be the same, such as tars. The driver holds
a few numbers for each part, and the class names; a task holds one unit and what its source needs.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.sources import Corpus, corpus_of
from pipeline.data.sources.tree import path_parts
from pipeline.data.staging import SECONDS_BETWEEN_LINES, BuildTools, Staging, write_json
from pipeline.data.units import Part, Unit
from pipeline.ports import RemoteFiles
from schemas.errors import DataError, PausedError
from schemas.sources import ImageFolderSource, SourceSpec, TarSource


@dataclass
class Listing:
    """What the list step found; the units themselves are on disk."""

    units: int = 0
    classes: set[str] = field(default_factory=set)
    images: Counter[str] = field(default_factory=Counter)
    """Split -> files that may be images."""
    nested: bool = True
    """No image lies directly in its class folder."""

    def add(self, unit: Unit) -> None:
        """Count one unit."""
        self.units += 1
        self.images.update(member.split for member in unit.members)
        self.classes.update(member.class_name for member in unit.members)
        self.classes.update(file.class_name for file in unit.refused if file.class_name)
        self.nested &= all(len(path_parts(member.path)) > 2 for member in unit.members)

    def merge(self, other: "Listing") -> None:
        """Count what another task found."""
        self.units += other.units
        self.images.update(other.images)
        self.classes |= other.classes
        self.nested &= other.nested

    def dump(self) -> dict[str, Any]:
        """Plain data, ready for JSON: the inverse of `load`."""
        classes = sorted(self.classes)
        return {
            "units": self.units,
            "classes": classes,
            "images": self.images,
            "nested": self.nested,
        }

    @classmethod
    def load(cls, data: dict[str, Any]) -> "Listing":
        """Read what `dump` made."""
        images = Counter(data["images"])
        return cls(data["units"], set(data["classes"]), images, nested=data["nested"])


@dataclass(frozen=True)
class ListTask:
    """Names one part of a corpus and where its units go."""

    progress: Path
    source: SourceSpec
    files: RemoteFiles | None
    number: int
    part: Part


def list_corpus(source: SourceSpec, staging: Staging, tools: BuildTools) -> Listing:
    """Write the units of a corpus to disk.

    Raises:
        DataError: If the corpus cannot be listed, or holds no image for a split.
        PausedError: If a stop was requested.
    """
    corpus = corpus_of(source, tools.files)
    listing = Listing(classes=corpus.declared_classes())
    counts: dict[int, int] = {}
    tasks = _tasks(source, corpus, tools)
    spoke = time.monotonic()
    for task, found in tools.pool.map(list_part, tasks, label="list"):
        counts[task.number] = found.units
        listing.merge(found)
        if time.monotonic() - spoke >= SECONDS_BETWEEN_LINES:
            spoke = time.monotonic()
            tools.say(f"listing the corpus: {listing.images.total():,} files so far")
            if tools.stop.requested():
                raise PausedError("stopped on request while listing the corpus")
    _number_units(staging, counts)
    _check_listing(source, corpus, listing)
    return listing


def list_part(task: ListTask) -> Listing:
    """Write the units of one part; returns what they hold."""
    staging = Staging(task.progress)
    done = _listed_before(staging, task)
    if done is not None:
        return done
    found = Listing()
    for unit in corpus_of(task.source, task.files).units(task.part):
        write_json(_draft(staging, task.number, found.units), unit.dump())
        found.add(unit)
    write_json(_commit(staging, task.number), {"part": astuple(task.part), **found.dump()})
    return found


def save_listing(staging: Staging, listing: Listing) -> None:
    """Commit the list step."""
    write_json(staging.listed, listing.dump())


def load_listing(staging: Staging) -> Listing | None:
    """What an earlier attempt found, if it came to the end of the list step."""
    if not staging.listed.is_file():
        return None
    return Listing.load(json.loads(staging.listed.read_bytes()))


def _tasks(source: SourceSpec, corpus: Corpus, tools: BuildTools) -> Iterator[ListTask]:
    for number, part in enumerate(corpus.parts()):
        yield ListTask(tools.progress, source, tools.files, number, part)


def _listed_before(staging: Staging, task: ListTask) -> Listing | None:
    """What an earlier attempt found in the part, if its file was the same then."""
    commit = _commit(staging, task.number)
    if not task.part.stamp or not commit.is_file():
        return None
    data = json.loads(commit.read_bytes())
    if data["part"] != json.loads(json.dumps(astuple(task.part))):
        return None
    drafts = (_draft(staging, task.number, unit) for unit in range(data["units"]))
    return Listing.load(data) if all(draft.is_file() for draft in drafts) else None


def _commit(staging: Staging, part: int) -> Path:
    """Says that all units of a part are there."""
    return staging.listing(0).with_name(f"part-{part}.json")


def _draft(staging: Staging, part: int, unit: int) -> Path:
    """Where a unit waits for its number."""
    return staging.listing(0).with_name(f"part-{part}-{unit}.json")


def _number_units(staging: Staging, counts: dict[int, int]) -> None:
    number = 0
    for part in sorted(counts):
        for unit in range(counts[part]):
            _draft(staging, part, unit).rename(staging.listing(number))
            number += 1


def _check_listing(source: SourceSpec, corpus: Corpus, listing: Listing) -> None:
    uri = getattr(source, "uri", "the source")
    if not listing.images:
        raise DataError(f"{uri} holds no image; images are expected as CLASS/image")
    _refuse_wrapper(source, listing)
    for split in corpus.declared_splits() or ():
        if not listing.images[split]:
            place = getattr(source, "splits", {}).get(split)
            raise DataError(
                f"{uri} holds no image for the split {split!r}: nothing lies below {place!r}",
                where=f"source.splits.{split}",
            )


def _refuse_wrapper(source: SourceSpec, listing: Listing) -> None:
    """One folder around the class folders would be the only class."""
    if not isinstance(source, ImageFolderSource | TarSource) or getattr(source, "labels", None):
        return
    if source.splits or len(listing.classes) != 1 or not listing.nested:
        return
    (wrapper,) = listing.classes
    raise DataError(
        f"{source.uri} has one folder on top, {wrapper}, with nothing but folders in it: it seems "
        "to wrap the class folders, and would be the only class",
        where="source.splits",
        hint=f"source.splits: {{train: {wrapper}}}, which goes together with split, too",
    )

"""Lists and reads whole sources in this process."""

from itertools import chain

from pipeline.data.sources import corpus_of
from pipeline.data.units import RawImage, Unit
from pipeline.ports import RemoteFiles
from schemas.sources import SourceSpec


def all_units(source: SourceSpec, files: RemoteFiles | None = None) -> list[Unit]:
    """The units of every part, in order, each as it comes back from JSON."""
    corpus = corpus_of(source, files)
    corpus.check()
    return [Unit.load(unit.dump()) for part in corpus.parts() for unit in corpus.units(part)]


def one_unit(source: SourceSpec, files: RemoteFiles | None = None) -> Unit:
    """All that the source holds, as if it were one unit."""
    units = all_units(source, files)
    return Unit(
        members=tuple(chain.from_iterable(unit.members for unit in units)),
        refused=tuple(chain.from_iterable(unit.refused for unit in units)),
        path=units[0].path,
        stamp=units[0].stamp,
        detail=units[0].detail,
    )


def read_all(source: SourceSpec, files: RemoteFiles | None = None) -> list[RawImage]:
    """Every image, in the order of the units."""
    corpus = corpus_of(source, files)
    return [raw for unit in all_units(source, files) for raw in corpus.read(unit)]


def names_of(source: SourceSpec, files: RemoteFiles | None = None) -> list[tuple[str, str, str]]:
    """Split, class and source name of every image."""
    return [(raw.split, raw.class_name, raw.source) for raw in read_all(source, files)]

"""What lies outside of a pipeline and goes into it: raw corpora and files of weights."""

import hashlib
from pathlib import Path

from pipeline.data import sources
from pipeline.data.files import files_of, place_of
from pipeline.ports import RemoteFiles
from schemas.errors import DataError
from schemas.evaluation import LabelSetsSource
from schemas.interchange import WeightsSource
from schemas.sources import SourceSpec

AnySource = SourceSpec | WeightsSource | LabelSetsSource

_WEIGHTS = (".safetensors", ".bin", ".npz", ".pth", ".pt")
_BESIDE = ("config.json", "preprocessor_config.json", "model.safetensors.index.json")


def fingerprint(source: AnySource, remote: RemoteFiles | None = None) -> str:
    """sha256 of what tells one state of a source from another without reading it.

    Of weights: name, size and modification time of every file of tensors, and of the documents that
    say what they are. A file of label sets is small, so it is read: its own sha256.

    Raises:
        DataError: If there is nothing.
    """
    if isinstance(source, LabelSetsSource):
        return hashlib.sha256(read_source(source.uri, remote)).hexdigest()
    if not isinstance(source, WeightsSource):
        return sources.fingerprint(source, remote)
    digest = hashlib.sha256()
    for path in weight_files(source):
        about = path.stat()
        digest.update(f"{path.name}\t{about.st_size}\t{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_source(uri: str, remote: RemoteFiles | None) -> bytes:
    """A small file behind a path or a URI.

    Raises:
        DataError: If there is none.
        UnreachableError: If the store does not answer.
    """
    place = place_of(uri)
    return files_of(place, remote).read(place)


def source_bytes(source: SourceSpec | WeightsSource, remote: RemoteFiles | None = None) -> int:
    """An upper bound of its bytes, from sizes alone; 0 where nobody can know."""
    if not isinstance(source, WeightsSource):
        return sources.source_bytes(source, remote)
    return sum(path.stat().st_size for path in weight_files(source))


def weight_files(source: WeightsSource) -> list[Path]:
    """The files that an import may read, by name.

    Raises:
        DataError: If there are no weights.
    """
    place = Path(source.uri)
    folder = place if place.is_dir() else place.parent
    beside = [folder / name for name in _BESIDE if (folder / name).is_file()]
    if place.is_dir():
        weights = [path for path in place.iterdir() if path.suffix in _WEIGHTS]
    else:
        weights = [place] if place.is_file() else []
    if not weights:
        raise DataError(f"there are no weights in {place}; name a file, or a folder with one")
    return sorted([*weights, *beside])

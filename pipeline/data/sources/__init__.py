"""Raw corpora of every kind, behind one protocol: `pipeline.data.sources.corpus.Corpus`.

Light to import: no numpy, no pyarrow, no codec, no `datasets`, no scikit-learn; each family imports
what it needs when a build reads from it.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.data.sources.cifar import CifarCorpus
from pipeline.data.sources.corpus import Corpus
from pipeline.data.sources.folder import FolderCorpus
from pipeline.data.sources.hf import HfCorpus
from pipeline.data.sources.idx import IdxCorpus
from pipeline.data.sources.labelled import LabelledCorpus
from pipeline.data.sources.parquet import ParquetCorpus
from pipeline.data.sources.shard_set import ShardSetCorpus
from pipeline.data.sources.sklearn_sets import SklearnCorpus
from pipeline.data.sources.tar import TarCorpus
from pipeline.data.sources.webdataset import WebDatasetCorpus
from pipeline.ports import RemoteFiles
from schemas.sources import ImageFolderSource, SourceSpec

__all__ = ["Corpus", "corpus_of", "fingerprint", "source_bytes"]


def _folder(source: ImageFolderSource, remote: RemoteFiles | None) -> Corpus:
    if source.labels is not None:
        return LabelledCorpus(source, source.labels, remote)
    return FolderCorpus(source, remote)


_FAMILIES: Mapping[str, Callable[[Any, RemoteFiles | None], Corpus]] = {
    "image_folder": _folder,
    "tar": TarCorpus,
    "webdataset": WebDatasetCorpus,
    "parquet": ParquetCorpus,
    "hf": HfCorpus,
    "arrow": ShardSetCorpus,
    "idx": IdxCorpus,
    "cifar": CifarCorpus,
    "sklearn": SklearnCorpus,
}
"""Type of a source -> what reads it."""


def corpus_of(source: SourceSpec, remote: RemoteFiles | None = None) -> Corpus:
    """The corpus behind a spec.

    Args:
        source: What the user gave.
        remote: Reads URIs; None: only files of this machine can be read.

    Raises:
        DataError: If the source is a URI and `remote` is None.
    """
    return _FAMILIES[source.type](source, remote)


def fingerprint(source: SourceSpec, remote: RemoteFiles | None = None) -> str:
    """sha256, in hex, of what tells one state of the corpus from another without reading it.

    On a disk: relative path, size and modification time of every file that counts. In a store: key,
    size and ETag. On the hub: the revision. The place itself is not part of it.

    Raises:
        DataError: If the corpus is not there.
        UnreachableError: If its store does not answer.
    """
    digest = hashlib.sha256()
    for line in corpus_of(source, remote).identity():
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def source_bytes(source: SourceSpec, remote: RemoteFiles | None = None) -> int:
    """An upper bound of the bytes of all images, from sizes alone; 0 where nobody can know."""
    return corpus_of(source, remote).num_bytes()

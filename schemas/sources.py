"""Where raw images come from.

A `uri` is a path that every worker can read, or a URI such as `s3://bucket/folder`. It is not in
the key: the fingerprint of what lies there is. Credentials come from the environment, never from a
spec.
"""

import urllib.parse
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from schemas.spec import Execution, Semantic, Spec


def _without_secrets(uri: str) -> str:
    parts = urllib.parse.urlsplit(uri) if "://" in uri else None
    if parts is not None and ("@" in parts.netloc or "=" in parts.query):
        raise ValueError(
            "a uri must not hold credentials: specs are stored and shown; put them into the "
            "environment, as the store's own library reads them (AWS_ACCESS_KEY_ID, ...)"
        )
    return uri


Uri = Annotated[str, Field(min_length=1), AfterValidator(_without_secrets)]
Patterns = str | tuple[str, ...]
"""Files: a path, a folder, `*` `?` `**` wildcards, `{000..127}` `{a,b}` braces, or several."""


class LabelFileSpec(Spec):
    """A table that names images and their classes: CSV of any delimiter, Parquet or JSON lines."""

    file: Execution[Uri]
    """Relative to the source's `uri`, absolute, or a URI. Not keyed: its size and time are."""
    image_column: Semantic[str]
    """Paths relative to the source's `uri`."""
    label_column: Semantic[str]
    """One class for each image, a text or a whole number."""
    split_column: Semantic[str | None] = None
    """Name of the image's split. None: all are `train`."""
    image_suffix: Semantic[str] = ""
    """Appended to what stands in `image_column`, for tables of names without `.jpg`."""


class ImageFolderSource(Spec):
    """A tree of class folders, `CLASS/**/image`; with `splits`, `SPLIT_FOLDER/CLASS/**/image`."""

    type: Semantic[Literal["image_folder"]] = "image_folder"
    uri: Execution[Uri]
    """Folder."""
    splits: Semantic[dict[str, str]] = {}
    """Split name -> folder inside `uri`. Empty: the whole tree is one corpus."""
    labels: Semantic[LabelFileSpec | None] = None
    """The table alone says which images there are, and their classes; folders mean nothing then."""

    @model_validator(mode="after")
    def _one_says_the_split(self) -> "ImageFolderSource":
        if self.labels is not None and self.splits:
            raise ValueError("splits are folders; beside labels give labels.split_column instead")
        return self


class TarSource(Spec):
    """The same tree inside one uncompressed tar file, read as a stream and never unpacked."""

    type: Semantic[Literal["tar"]] = "tar"
    uri: Execution[Uri]
    """Tar file, on a disk that every worker can read or behind a URI."""
    splits: Semantic[dict[str, str]] = {}
    """Split name -> folder inside the tar. Empty: the whole tree is one corpus."""


class WebDatasetSource(Spec):
    """Tar shards of samples: files that follow each other and share a name up to the first dot."""

    type: Semantic[Literal["webdataset"]] = "webdataset"
    uri: Execution[Uri]
    """Shards (a file, folder, or pattern); with `splits`, the folder that these are relative to."""
    splits: Semantic[dict[str, Patterns]] = {}
    """Split name -> its shards inside `uri`. Empty: all are `train`."""
    image: Semantic[str | None] = None
    """Extension of the image, as `jpg` or `left.png`. None: the only one that is an image's."""
    label: Semantic[str] = "cls"
    """Extension of the member that holds the class as text, or of a `.json` one."""
    label_field: Semantic[str] = "label"
    """Field of the class where `label` is `json`."""


class ParquetSource(Spec):
    """Parquet files with a column of images, `binary` or `struct<bytes, path>`."""

    type: Semantic[Literal["parquet"]] = "parquet"
    uri: Execution[Uri]
    """Files (a file, folder, or pattern); with `splits`, the folder that these are relative to."""
    splits: Semantic[dict[str, Patterns]] = {}
    """Split name -> its files inside `uri`. Empty: all are `train`."""
    image_column: Semantic[str] = "image"
    label_column: Semantic[str] = "label"
    """Texts or whole numbers; numbers get their names where the file has Hugging Face's note."""


class HfSource(Spec):
    """A data set of Hugging Face `datasets`: from the hub, a local folder, or `save_to_disk`."""

    type: Semantic[Literal["hf"]] = "hf"
    uri: Execution[str] = Field(min_length=1)
    """`OWNER/NAME` on the hub, or an existing local folder."""
    revision: Semantic[str | None] = Field(default=None, pattern="^[0-9a-f]{40}$")
    """Commit on the hub, 40 hex digits (a branch would move); None for a local folder."""
    name: Semantic[str | None] = None
    """Configuration, where the data set has several."""
    splits: Semantic[dict[str, str]] = {}
    """Split name -> the data set's own name for it. Empty: all of its splits, as they are named."""
    image_column: Semantic[str] = "image"
    label_column: Semantic[str] = "label"


class ArrowSource(Spec):
    """Another shard set of ours: its live rows, with their classes, splits and uids."""

    type: Semantic[Literal["arrow"]] = "arrow"
    uri: Execution[Uri]
    """Folder that holds `manifest.json`."""


class IdxFiles(Spec):
    """The two files of one split; each may also lie there as `.gz`."""

    images: Semantic[str]
    labels: Semantic[str]


class IdxSource(Spec):
    """IDX files, as of MNIST and its family."""

    type: Semantic[Literal["idx"]] = "idx"
    uri: Execution[Uri]
    """Folder."""
    splits: Semantic[dict[str, IdxFiles]] = Field(
        default={
            "train": IdxFiles(images="train-images-idx3-ubyte", labels="train-labels-idx1-ubyte"),
            "test": IdxFiles(images="t10k-images-idx3-ubyte", labels="t10k-labels-idx1-ubyte"),
        },
        min_length=1,
    )
    """Split name -> its files inside `uri`."""


class CifarSource(Spec):
    """CIFAR-10 or CIFAR-100, binary version; the python version is a pickle and never read."""

    type: Semantic[Literal["cifar"]] = "cifar"
    uri: Execution[Uri]
    """Folder with `data_batch_1.bin` or `train.bin`."""
    name: Semantic[Literal["cifar10", "cifar100"]]
    labels: Semantic[Literal["fine", "coarse"]] = "fine"
    """`coarse`: the 20 superclasses of CIFAR-100."""

    @model_validator(mode="after")
    def _only_one_has_superclasses(self) -> "CifarSource":
        if self.labels == "coarse" and self.name == "cifar10":
            raise ValueError("cifar10 has no coarse labels; give labels: fine, or name: cifar100")
        return self


class SklearnSource(Spec):
    """An image set that scikit-learn carries in its wheel."""

    type: Semantic[Literal["sklearn"]] = "sklearn"
    name: Semantic[Literal["digits"]] = "digits"
    """`digits`: 1,797 scans of handwritten digits, 8 x 8 px, ten classes."""


SourceSpec = Annotated[
    ImageFolderSource
    | TarSource
    | WebDatasetSource
    | ParquetSource
    | HfSource
    | ArrowSource
    | IdxSource
    | CifarSource
    | SklearnSource,
    Field(discriminator="type"),
]

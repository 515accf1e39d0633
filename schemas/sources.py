"""Where raw images come from."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.spec import Execution, Semantic, Spec


class ImageFolderSource(Spec):
    """A tree of class folders, `CLASS/**/image`; with `splits`, `SPLIT_FOLDER/CLASS/**/image`."""

    type: Semantic[Literal["image_folder"]] = "image_folder"
    uri: Execution[str]
    """Folder on a disk that every worker can read. Not keyed: the listing's fingerprint is."""
    splits: Semantic[dict[str, str]] = {}
    """Split name -> folder inside `uri`. Empty: the whole tree is one corpus."""


class TarSource(Spec):
    """The same tree inside one uncompressed tar file, read as a stream and never unpacked."""

    type: Semantic[Literal["tar"]] = "tar"
    uri: Execution[str]
    """Tar file on a disk that every worker can read."""
    splits: Semantic[dict[str, str]] = {}
    """Split name -> folder inside the tar. Empty: the whole tree is one corpus."""


class SklearnSource(Spec):
    """An image set that scikit-learn carries in its wheel."""

    type: Semantic[Literal["sklearn"]] = "sklearn"
    name: Semantic[Literal["digits"]] = "digits"
    """`digits`: 1,797 scans of handwritten digits, 8 x 8 px, ten classes."""


SourceSpec = Annotated[ImageFolderSource | TarSource | SklearnSource, Field(discriminator="type")]

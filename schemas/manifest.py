"""The manifest of a shard set: the only way in, and the dataset's identity."""

from typing import Literal

from pydantic import Field

from schemas.spec import Semantic, Spec

DATASET_FOLDER = "dataset"
"""Folder of the shard set inside the artifact of an `ingest` or `filter` stage."""
MANIFEST_FILE = "manifest.json"
SHARD_TABLE_FILE = "shards.arrow"
REJECTIONS_FILE = "rejections.arrow"
TOMBSTONES_FILE = "tombstones.arrow"
SHARDS_FOLDER = "shards"

REJECTION_REASONS = (
    "zero_byte",
    "not_image",
    "truncated",
    "too_many_pixels",
    "too_small",
    "decode_error",
    "duplicate",
    "label_conflict",
)
"""`duplicate`: bytes, label and split of a kept image; `label_conflict`: its bytes, other label."""


class SplitEntry(Spec):
    """How much of the shard set is in one split, tombstoned rows not counted."""

    rows: Semantic[int] = Field(ge=0)
    shards: Semantic[int] = Field(ge=0)


class TombstoneEntry(Spec):
    """The table of removed rows."""

    sha256: Semantic[str]
    rows: Semantic[int] = Field(ge=0)


class ShardSetManifest(Spec):
    """`manifest.json`, canonical; its sha256 is the digest of the dataset."""

    schema_version: Semantic[Literal[1]] = 1
    record_version: Semantic[int]
    order_version: Semantic[int]
    """Version of the pure order; a loader refuses a set of another version."""
    transform: Semantic[dict[str, str]]
    """What made the bytes: the image spec's digest, and the codec's name and version."""
    class_names: Semantic[tuple[str, ...]]
    splits: Semantic[dict[str, SplitEntry]]
    num_shards: Semantic[int] = Field(ge=0)
    num_rows: Semantic[int] = Field(ge=0)
    """Rows in the shards, tombstoned ones included."""
    num_bytes: Semantic[int] = Field(ge=0)
    """Bytes of the shard files."""
    shard_table_sha256: Semantic[str]
    rejections: Semantic[dict[str, int]]
    """Reason -> count."""
    rejections_sha256: Semantic[str]
    parents: Semantic[tuple[str, ...]] = ()
    """Digests of the shard sets that this one was derived from."""
    tombstones: Semantic[TombstoneEntry | None] = None

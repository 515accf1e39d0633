"""The manifest of a shard set: the only way in, and the dataset's identity."""

import json
from typing import Any, Literal

from pydantic import Field

from schemas.spec import Semantic, Spec, digest_of

DATASET_FOLDER = "dataset"
"""Folder of the shard set inside the artifact of a stage that makes one."""
MANIFEST_FILE = "manifest.json"
SHARD_TABLE_FILE = "shards.arrow"
REJECTIONS_FILE = "rejections.arrow"
TOMBSTONES_FILE = "tombstones.arrow"
_SELF = "content_digest"
"""Key of the digest of all other keys in `manifest.json`."""
SHARDS_FOLDER = "shards"

REJECTION_REASONS = (
    "zero_byte",
    "not_image",
    "truncated",
    "too_many_pixels",
    "too_small",
    "decode_error",
    "decode_timeout",
    "decoder_crash",
    "missing_file",
    "missing_label",
    "duplicate",
    "label_conflict",
)
"""`missing_file`: a table names it and it is not there; `missing_label`: it is there, and its class
is not; `duplicate`: bytes, label and split of a kept image; `label_conflict`: its bytes, other
label."""

REMOVAL_REASONS = (
    "exact_copy",
    "near_copy",
    "too_small",
    "too_long",
    "too_dark",
    "too_bright",
    "near_duplicate",
    "taken_out",
    "alike_copy",
    "alike_duplicate",
)
"""Copies are of test images; a duplicate repeats an image of its own split, which stays. Near ones
look the same, pixel by pixel; alike ones have features that say the same."""


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

    def dump(self) -> dict[str, Any]:
        """As any spec's, and a digest of it all: a set must be able to tell its own damage."""
        content = super().dump()
        return {**content, _SELF: digest_of(content)}

    @classmethod
    def model_validate_json(
        cls, json_data: str | bytes | bytearray, **options: Any
    ) -> "ShardSetManifest":
        """Read what `dump` gave; raises ValueError if it is not what was written."""
        content = json.loads(json_data)
        if not isinstance(content, dict) or content.pop(_SELF, None) != digest_of(content):
            raise ValueError(f"the manifest is not what its own {_SELF} says")
        return super().model_validate_json(json.dumps(content), **options)

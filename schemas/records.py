"""Arrow schemas: an image as a row, and the small tables that stand beside the shards.

Plain types only: a reader never has to unpickle anything to understand a file.
"""

import pyarrow as pa

RECORD_VERSION = 2
ROWS_PER_BATCH = 256
THUMBNAIL_PX = 32
"""Side of the grey thumbnail that confirms a near copy; also the smallest side that is searched."""

RECORD = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),  # first 16 bytes of sha256 of the source
        pa.field(
            "image",
            pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]),
            nullable=False,
        ),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("width_px", pa.int32(), nullable=False),
        pa.field("height_px", pa.int32(), nullable=False),
        pa.field("orig_width_px", pa.int32(), nullable=False),
        pa.field("orig_height_px", pa.int32(), nullable=False),
        pa.field("encoding", pa.string(), nullable=False),
        pa.field("crc32c", pa.uint32(), nullable=False),  # of image.bytes
        # of image.bytes and all that readers deliver with it: pipeline/data/shards/shard_files.py
        pa.field("row_crc32c", pa.uint32(), nullable=False),
        pa.field("phash", pa.uint64()),  # null where near-duplicate search is off
        pa.field("phash_mirror", pa.uint64()),
        pa.field("thumbnail", pa.binary(THUMBNAIL_PX * THUMBNAIL_PX)),
        pa.field("source", pa.string(), nullable=False),
    ]
)
"""One image. `image` is the struct that Hugging Face `datasets` shows as a picture."""

SHARD_TABLE = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # file name: `<sha256>.arrow`
        pa.field("split", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("label_histogram", pa.map_(pa.int32(), pa.int64()), nullable=False),
    ]
)
"""Shards in the order of (split, bucket); memory-mapped by readers."""

REJECTIONS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)
"""Files that are not in the shards, and why; sorted by source."""

TOMBSTONES = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # file name of the shard it stands in
        pa.field("row", pa.int64(), nullable=False),  # its place in that shard
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # of `schemas.manifest.REMOVAL_REASONS`
        pa.field("note", pa.string()),  # what a person said of it
        pa.field("matched_set", pa.string()),  # STAGE@SPLIT of the image that it repeats
        pa.field("matched_uid", pa.binary(16)),
        pa.field("matched_source", pa.string()),
        pa.field("hamming_bits", pa.int32()),
        pa.field("thumbnail_difference", pa.float32()),
        pa.field("cosine", pa.float32()),  # of the features of both images
    ]
)
"""Rows of a shard set that readers leave out; sorted by (split, uid), one row for each uid."""

PREDICTIONS = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("predicted", pa.int32(), nullable=False),
        pa.field("logits", pa.list_(pa.float32()), nullable=False),
        # All classes that are right, where an outside file says; null where it says nothing.
        pa.field("labels", pa.list_(pa.int32())),
    ]
)
"""One row for each image of the split, in storage order; with the metadata `vitrail`, a
`schemas.evaluation.PredictionFacts` as JSON."""

LABEL_SETS = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
    ]
)
"""Classes that are right for each image that an outside file names, sorted by uid."""


def features_field(width: int) -> pa.Field:
    """The feature of an image: in a table of features it follows `uid` and `label`."""
    return pa.field("features", pa.list_(pa.float32(), width), nullable=False)

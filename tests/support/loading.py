"""Places of samples, and what a loader gave, in forms that tests compare."""

from collections.abc import Sequence

import numpy as np

from pipeline.data.feed.course import Places
from pipeline.data.feed.loader import Batch
from pipeline.data.shards.shard_set import ShardSet


def places(epoch: int, positions: Sequence[int], *, source: int = 0) -> Places:
    """Samples of one epoch of one set."""
    position = np.array(positions, np.int64)
    return Places(np.full_like(position, source), np.full_like(position, epoch), position)


def samples(batch: Batch) -> list[bytes]:
    """The bytes of every sample: pixels, label, uid."""
    return [
        batch.pixels_BHWC[i].tobytes() + batch.label_B[i].tobytes() + batch.uid_B[i].tobytes()
        for i in range(len(batch))
    ]


def damage(data: ShardSet, rows: list[int]) -> list[bytes]:
    """Flip a byte of some rows of the split `train`; returns their uids."""
    split = data.split("train")
    gone = [split.row(row) for row in rows]
    for path in {data.shards_folder / name for name in split.shard_names}:
        content = bytearray(path.read_bytes())
        for row in gone:
            place = content.find(row.image)
            if place >= 0:
                content[place + 100] ^= 1
        path.write_bytes(content)
    return [row.uid for row in gone]

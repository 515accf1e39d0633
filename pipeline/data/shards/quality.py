"""What a corpus looks like: sizes, aspect, brightness, bytes, classes, rejected files.

One task for each shard, each of which gives histograms with fixed edges; the driver adds them up.
Brightness comes from the thumbnails that stand in the rows; where there are none, a few images of
each shard are decoded (rows are stored in random order, so any are a fair sample).

Costs. A task reads the small columns and thumbnails of one shard, about 1.1 kB for each image; the
driver holds one set of histograms for each split, and reads the rejections one batch at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from pipeline.data.images.decode import decode
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BuildTools, Progress
from schemas.quality import Histogram, QualityReport, RejectedFiles, SplitQuality
from schemas.records import THUMBNAIL_PX

EXAMPLES = 5
"""Files that are named for each reason of rejection."""
_DECODED = 64
"""Images of a shard that are decoded at most where thumbnails are missing."""
_EDGES: dict[str, NDArray[np.float64]] = {
    "source_side_px": 2 ** np.arange(0, 16.25, 0.25),
    "aspect_ratio": np.arange(-3, 3.125, 0.125),
    "brightness": np.arange(0, 264.0, 8),
    "stored_bytes": 2 ** np.arange(4, 28.25, 0.25),
}

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class QualityTask:
    """Names one shard file."""

    shard: Path
    split: str
    num_classes: int


@dataclass
class Tally:
    """Counts of some images; those of several add up."""

    images_of_class: Counts
    histograms: dict[str, Counts] = field(
        default_factory=lambda: {
            name: np.zeros(len(edges) - 1, np.int64) for name, edges in _EDGES.items()
        }
    )
    brightness_unknown: int = 0

    def add(self, other: "Tally") -> None:
        """Take in what another has counted."""
        self.images_of_class += other.images_of_class
        self.brightness_unknown += other.brightness_unknown
        for name, counts in other.histograms.items():
            self.histograms[name] += counts

    def count(self, name: str, values: ArrayLike) -> None:
        """Put values into a histogram; what lies beyond its edges goes into the outer bins."""
        edges = _EDGES[name]
        last = len(edges) - 2
        bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, last)
        self.histograms[name] += np.bincount(bins, minlength=last + 1)


def measure(data: ShardSet, tools: BuildTools) -> QualityReport:
    """Count every stored row of a local shard set, removed ones included.

    Raises:
        PausedError: If a stop was requested; the next call begins again.
    """
    tallies = {
        split: Tally(np.zeros(len(data.class_names), np.int64)) for split in data.manifest.splits
    }
    progress = Progress(tools, "measuring", data.manifest.num_shards)
    for task, tally in tools.pool.map(measure_shard, _tasks(data), label="measure"):
        tallies[task.split].add(tally)
        progress.finished(int(tally.images_of_class.sum()))
    return QualityReport(
        digest=data.digest,
        class_names=data.class_names,
        splits=tuple(_as_spec(split, tallies[split]) for split in sorted(tallies)),
        rejected=rejected_files(data.rejections),
    )


def measure_shard(task: QualityTask) -> Tally:
    """The tally of one shard, read batch by batch."""
    tally = Tally(np.zeros(task.num_classes, np.int64))
    decoded = 0
    with pa.memory_map(str(task.shard)) as source:
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            decoded += _count_batch(reader.get_batch(index), tally, _DECODED - decoded)
    return tally


def rejected_files(rejections: pa.Table) -> tuple[RejectedFiles, ...]:
    """How many files each reason kept out, and the first of them."""
    found: dict[str, tuple[int, list[str]]] = {}
    for batch in rejections.to_batches():
        for reason in batch["reason"].unique().to_pylist():
            files, examples = found.get(reason, (0, []))
            mine = batch.filter(pc.equal(batch["reason"], reason))
            shown = mine.slice(0, EXAMPLES - len(examples)).to_pylist()
            examples += [f"{row['source']}: {row['message']}" for row in shown]
            found[reason] = files + len(mine), examples
    rows = [
        RejectedFiles(reason=reason, files=files, examples=tuple(examples))
        for reason, (files, examples) in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.files, row.reason)))


def _tasks(data: ShardSet) -> Iterator[QualityTask]:
    for batch in data.table.select(["name", "split"]).to_batches():
        for name, split in zip(batch["name"], batch["split"], strict=True):
            shard = data.shards_folder / name.as_py()
            yield QualityTask(shard, split.as_py(), len(data.class_names))


def _count_batch(batch: pa.RecordBatch, tally: Tally, decodable: int) -> int:
    """Count the rows of a batch; returns how many images were decoded for it."""
    width, height = (
        batch[name].to_numpy().astype(np.float64) for name in ("orig_width_px", "orig_height_px")
    )
    tally.images_of_class += np.bincount(
        batch["label"].to_numpy(), minlength=len(tally.images_of_class)
    )
    tally.count("source_side_px", np.maximum(width, height))
    tally.count("aspect_ratio", np.log2(width / height))
    images = batch["image"].field("bytes")
    tally.count("stored_bytes", pc.binary_length(images).to_numpy())
    tally.count("brightness", _brightness(batch["thumbnail"]))
    bare = np.flatnonzero(batch["thumbnail"].is_null().to_numpy(zero_copy_only=False))
    chosen = bare[: max(0, decodable)]
    means = [float(decode(images[int(row)].as_py()).mean()) for row in chosen]
    tally.count("brightness", means)
    tally.brightness_unknown += len(bare) - len(chosen)
    return len(chosen)


def _brightness(thumbnails: pa.Array) -> NDArray[np.float64]:
    """Mean grey level of each thumbnail that is there."""
    there = thumbnails.drop_null()
    size = THUMBNAIL_PX * THUMBNAIL_PX
    pixels = np.frombuffer(there.buffers()[1] or b"", np.uint8)
    first = there.offset * size
    pixels = pixels[first : first + len(there) * size]
    means: NDArray[np.float64] = pixels.reshape(-1, size).mean(axis=1)
    return means


def _as_spec(split: str, tally: Tally) -> SplitQuality:
    histograms = {
        name: Histogram(edges=tuple(_EDGES[name].tolist()), counts=tuple(counts.tolist()))
        for name, counts in tally.histograms.items()
    }
    return SplitQuality(
        split=split,
        images=int(tally.images_of_class.sum()),
        brightness_unknown=tally.brightness_unknown,
        images_of_class=tuple(tally.images_of_class.tolist()),
        **histograms,
    )

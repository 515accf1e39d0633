from pathlib import Path

import numpy as np
import pytest

from infra.serial_pool import NeverStop, SerialPool
from pipeline.data.shards.quality import EXAMPLES, Tally, measure
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.staging import BuildTools
from schemas.quality import Histogram, QualityReport
from tests.support.corpora import encode
from tests.support.datasets import build, ingest_spec
from tests.support.pools import ChaosPool

SIZES = ((40, 80), (80, 40), (60, 60))


def corpus(folder: Path) -> Path:
    """Grey images whose level, size and class are known, and some files that are refused."""
    for level in range(24):
        height, width = SIZES[level % 3]
        name = "dark" if level < 8 else "bright"
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = np.full((height, width, 3), 10 * level + 4, np.uint8)
        (folder / name / f"{level:02d}.png").write_bytes(encode(pixels, "PNG"))
    for number in range(EXAMPLES + 2):
        (folder / "dark" / f"empty {number}.png").touch()
    (folder / "dark" / "page.jpg").write_bytes(b"<html></html>")
    (folder / "bright" / "again.png").write_bytes((folder / "bright" / "20.png").read_bytes())
    return folder


def measured(where: Path, *, hashes: bool = True, chaos: bool = False) -> QualityReport:
    spec = ingest_spec(
        corpus(where / "raw"),
        image={"encoding": "png", "max_side_px": 80},
        near_duplicates=hashes,
        max_rejected_ratio=0.5,
        shard_bytes=800,
        split={"test_ratio": 0.3},
    )
    build(spec, where)
    data = ShardSet.open(where / "out")
    assert data.manifest.num_shards > 2
    pool = ChaosPool(workers=2, seed=1) if chaos else SerialPool()
    return measure(data, BuildTools(pool, where, NeverStop(), lambda _: None))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> QualityReport:
    return measured(tmp_path_factory.mktemp("quality"))


def totals(report: QualityReport, name: str) -> dict[float, int]:
    """Lower edge -> count over all splits, of the bins that have any."""
    histograms: list[Histogram] = [getattr(split, name) for split in report.splits]
    counts = np.sum([it.counts for it in histograms], axis=0)
    return {histograms[0].edges[place]: int(counts[place]) for place in np.flatnonzero(counts)}


def test_every_image_is_counted_once_in_each_histogram(report: QualityReport) -> None:
    assert [split.split for split in report.splits] == ["test", "train"]
    assert sum(split.images for split in report.splits) == 24
    for name in ("source_side_px", "aspect_ratio", "brightness", "stored_bytes"):
        assert sum(totals(report, name).values()) == 24
    counts = np.sum([split.images_of_class for split in report.splits], axis=0)
    assert dict(zip(report.class_names, counts.tolist(), strict=True)) == {"bright": 16, "dark": 8}


def test_sizes_aspect_and_brightness_are_those_of_the_images(report: QualityReport) -> None:
    assert totals(report, "aspect_ratio") == {-1.0: 8, 0.0: 8, 1.0: 8}
    assert sum(totals(report, "source_side_px").values()) == 24
    assert totals(report, "source_side_px")[2**5.75] == 8, "60 px"
    expected: dict[float, int] = {}
    for level in range(24):
        edge = float((10 * level + 4) // 8 * 8)
        expected[edge] = expected.get(edge, 0) + 1
    assert totals(report, "brightness") == expected
    assert sum(split.brightness_unknown for split in report.splits) == 0


def test_without_thumbnails_some_images_are_decoded(report: QualityReport, tmp_path: Path) -> None:
    bare = measured(tmp_path, hashes=False)
    assert totals(bare, "brightness") == totals(report, "brightness")


def test_rejected_files_are_counted_by_reason_with_examples(report: QualityReport) -> None:
    found = {row.reason: row for row in report.rejected}
    assert {reason: row.files for reason, row in found.items()} == {
        "zero_byte": EXAMPLES + 2,
        "not_image": 1,
        "duplicate": 1,
    }
    assert report.rejected[0].reason == "zero_byte"
    assert len(found["zero_byte"].examples) == EXAMPLES
    assert found["zero_byte"].examples[0].startswith("dark/empty 0.png: ")


def test_the_report_is_the_same_in_any_order_of_completion(
    report: QualityReport, tmp_path: Path
) -> None:
    assert measured(tmp_path, chaos=True) == report


def test_what_lies_beyond_the_edges_is_counted_in_the_outer_bins() -> None:
    tally = Tally(np.zeros(1, np.int64))
    tally.count("brightness", [-5.0, 255.0, 1e9])
    tally.count("stored_bytes", [])
    assert tally.histograms["brightness"][[0, -1]].tolist() == [1, 2]
    assert tally.histograms["stored_bytes"].sum() == 0

from pathlib import Path

import numpy as np

from pipeline.data.images.decode import decode
from pipeline.evaluation.corpus_figures import draw_corpus
from schemas.quality import Histogram, QualityReport, RejectedFiles, SplitQuality


def histogram(*counts: int) -> Histogram:
    return Histogram(edges=tuple(float(edge) for edge in range(1, len(counts) + 2)), counts=counts)


def quality(classes: int, *, refused: bool = True, images: int = 9) -> QualityReport:
    names = tuple(f"class {number}" for number in range(classes))
    counts = histogram(0, images, 0)
    splits = tuple(
        SplitQuality(
            split=split,
            images=images,
            source_side_px=counts,
            aspect_ratio=counts,
            brightness=counts,
            brightness_unknown=3,
            stored_bytes=counts,
            images_of_class=(images,) * classes,
        )
        for split in ("$te_st", "train")
    )
    rejected = (RejectedFiles(reason="zero_byte", files=2, examples=("a",)),) if refused else ()
    return QualityReport(digest="0" * 64, class_names=names, splits=splits, rejected=rejected)


def test_each_figure_is_a_picture_and_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    paths = draw_corpus(tmp_path / "first", quality(3))
    again = draw_corpus(tmp_path / "again", quality(3))
    assert [path.name for path in paths] == ["quality.png", "classes.png", "rejections.png"]
    for path, other in zip(paths, again, strict=True):
        assert path.read_bytes() == other.read_bytes()
        assert np.unique(decode(path.read_bytes())).size > 10


def test_without_rejections_there_is_no_figure_of_them(tmp_path: Path) -> None:
    drawn = draw_corpus(tmp_path, quality(3, refused=False))
    assert [path.name for path in drawn] == ["quality.png", "classes.png"]


def test_many_classes_and_empty_splits_are_drawn_too(tmp_path: Path) -> None:
    _, classes = draw_corpus(tmp_path / "many", quality(500, refused=False))
    assert decode(classes.read_bytes()).shape[0] < 800, "500 bars would be taller"
    draw_corpus(tmp_path / "empty", quality(2, images=0))

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from pipeline.evaluation import figures
from pipeline.evaluation.figures import Bar


def draw_all(folder: Path, class_names: list[str]) -> None:
    rng = np.random.default_rng(0)
    count = len(class_names)
    figures.draw_confusion(
        folder / "confusion.png", rng.integers(0, 9, (count, count)), class_names
    )
    labels, answers = rng.integers(count, size=(2, 7))
    figures.draw_predictions(
        folder / "predictions.png",
        rng.integers(0, 256, (7, 8, 8, 3), dtype=np.uint8),
        label_M=labels,
        predicted_M=answers,
        class_names=class_names,
    )
    figures.draw_accuracies(
        folder / "accuracy.png",
        [Bar(name, 0.5, 0.4, 0.6, group=name) for name in class_names[:5]],
    )
    points = [(step, 1.0 / (step + 1)) for step in range(100)]
    figures.draw_curves(
        folder / "loss.png",
        {name: {name: points} for name in class_names[:3]},
        ylabel="loss",
        smooth=True,
    )


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    draw_all(tmp_path / "first", ["cat", "dog"])
    draw_all(tmp_path / "second", ["cat", "dog"])
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["accuracy.png", "confusion.png", "loss.png", "predictions.png"]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize(
    "class_names",
    [["only"], ["$x_{", "<b>", "日本", "x" * 300], [str(index) for index in range(120)]],
    ids=["one class", "awkward names", "many classes"],
)
def test_any_class_names_can_be_drawn(tmp_path: Path, class_names: list[str]) -> None:
    draw_all(tmp_path, class_names)
    for path in tmp_path.iterdir():
        pixels = imread(path)
        assert pixels.min() < 0.5 < pixels.max(), f"{path.name} is not blank"
        assert max(pixels.shape) < 4000


def test_a_single_point_is_a_curve(tmp_path: Path) -> None:
    figures.draw_curves(tmp_path / "loss.png", {"a": {"a": [(1, 2.0)]}}, ylabel="loss", smooth=True)
    assert (tmp_path / "loss.png").exists()

import html
import re
from pathlib import Path

import pytest

from pipeline.evaluation.report import write_report
from schemas.errors import IntegrityError
from schemas.report import ReportDocument, SearchReport, SearchTrial
from schemas.runs import InputArtifact
from schemas.spec import canonical_json
from tests.support.evaluation import artifact, measured, shard_set, trained

CURVE = [(1, 2.0), (2, 1.5), (3, 0.8765)]


def everything(folder: Path) -> list[InputArtifact]:
    return [
        shard_set(folder, "corpus", rejections={"truncated": 3, "duplicate": 2}),
        shard_set(folder, "clean", removed=[("cat/1.jpg", "pets/9.jpg")]),
        trained(folder, "pretrain", "pretrain", losses=CURVE),
        trained(folder, "transfer", "finetune", losses=[]),
        measured(folder, "accuracy", "evaluate", correct={"model": 91}),
        measured(
            folder,
            "pixels",
            "baseline",
            correct={"nearest_neighbour": 88, "logistic_regression": 95},
        ),
    ]


def make(folder: Path, sources: list[InputArtifact], title: str = "My title") -> ReportDocument:
    folder.mkdir()
    return write_report(folder, title=title, sources=sources)


def text_of(page: str) -> str:
    bare = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(bare)).replace("\N{NO-BREAK SPACE}", " ")


def test_a_report_says_what_was_measured_on_what(tmp_path: Path) -> None:
    make(tmp_path / "out", everything(tmp_path))
    text = text_of((tmp_path / "out" / "report.html").read_text())
    assert "accuracy model 91.0 % 83.8 % to 95.2 % 91 100 test" in text
    assert "pixels nearest neighbour 88.0 % 80.2 % to 93.0 % 88 100 test" in text
    assert "train 321" in text
    assert "test 123" in text
    assert "truncated 3" in text
    assert "exact copy 1" in text
    assert "cat/1.jpg exact copy pets/9.jpg pets@test" in text
    assert "pretrain pretrain 3 0.8765" in text
    assert "transfer finetune no log -" in text
    assert "C: 0.125" in text


def test_refused_files_are_listed_by_reason_with_examples(tmp_path: Path) -> None:
    document = make(tmp_path / "out", everything(tmp_path))
    assert [(row.reason, row.files) for row in document.rejections] == [
        ("truncated", 3),
        ("duplicate", 2),
    ]
    text = text_of((tmp_path / "out" / "report.html").read_text())
    assert "corpus truncated 3 0.jpg: <it> is truncated 1.jpg: <it> is truncated" in text


def test_a_report_says_when_a_baseline_is_ahead(tmp_path: Path) -> None:
    document = make(tmp_path / "out", everything(tmp_path))
    (note,) = document.notes
    assert note == (
        "Simple baselines are ahead of accuracy: pixels: logistic regression with 95.0% against "
        "91.0% of the 100 images of split test."
    )
    assert note in text_of((tmp_path / "out" / "report.html").read_text())


def test_baselines_on_other_images_are_not_compared(tmp_path: Path) -> None:
    sources = [
        measured(tmp_path, "accuracy", "evaluate", correct={"model": 50}),
        measured(tmp_path, "pixels", "baseline", correct={"nearest_neighbour": 60}, total=80),
    ]
    assert make(tmp_path / "out", sources).notes == ()


def test_a_report_is_one_file_that_asks_for_nothing_outside(tmp_path: Path) -> None:
    make(tmp_path / "out", everything(tmp_path))
    page = (tmp_path / "out" / "report.html").read_text()
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert addresses
    assert all(it.startswith("data:image/png;base64,") for it in addresses)
    assert not re.search(
        r"https?:|//|@import|url\(|<script|<link", re.sub(r'src="[^"]*"', "", page)
    )
    assert str(tmp_path) not in page, "where the workspace lies is nobody's business"


def test_the_figures_lie_beside_the_page(tmp_path: Path) -> None:
    make(tmp_path / "out", everything(tmp_path))
    names = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert names == ["accuracy-confusion.png", "accuracy.png", "learning_rate.png", "loss.png"]


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        make(folder / "out", everything(folder / "in"))
    for path in sorted((first / "out").rglob("*.*")):
        twin = second / "out" / path.relative_to(first / "out")
        assert path.read_bytes() == twin.read_bytes(), path.name


def test_the_document_reads_back_equal(tmp_path: Path) -> None:
    document = make(tmp_path / "out", everything(tmp_path))
    written = (tmp_path / "out" / "report.json").read_bytes()
    assert ReportDocument.model_validate_json(written) == document
    assert list(document.inputs) == [source.stage for source in everything(tmp_path / "again")]


def test_variants_get_means_and_paired_differences(tmp_path: Path) -> None:
    transfer, scratch = (91, 94, 92), (90, 90, 91)
    sources = [
        measured(tmp_path, f"{stage}[seed={seed}]", "evaluate", correct={"model": counts[seed]})
        for stage, counts in (("accuracy", transfer), ("accuracy-scratch", scratch))
        for seed in range(3)
    ]
    document = make(tmp_path / "out", sources)
    assert [row.mean_ratio for row in document.means] == pytest.approx([0.92333, 0.90333], abs=1e-4)
    (difference,) = document.differences
    assert (difference.first, difference.second) == ("accuracy", "accuracy-scratch")
    assert difference.mean_ratio == pytest.approx(0.02)
    text = text_of((tmp_path / "out" / "report.html").read_text())
    assert "accuracy accuracy-scratch +2.0 -2.3 to +6.3 3 not told apart" in text


def test_a_training_that_diverged_is_shown(tmp_path: Path) -> None:
    losses = [*CURVE, (4, float("nan"))]
    document = make(tmp_path / "out", [trained(tmp_path, "pretrain", "pretrain", losses=losses)])
    (row,) = document.training
    assert (row.steps, row.last_loss) == (4, None)
    assert (tmp_path / "out" / "figures" / "loss.png").exists()


def test_a_search_is_shown_with_its_winner(tmp_path: Path) -> None:
    source = trained(tmp_path, "transfer", "finetune", losses=CURVE)
    trials = [
        SearchTrial(peak_lr=peak_lr, steps=50, holdout_top1_ratio=ratio)
        for peak_lr, ratio in ((3e-4, 0.81), (1e-3, 0.92))
    ]
    search = SearchReport(trials=tuple(trials), chosen=1)
    (Path(source.path) / "search.json").write_text(canonical_json(search.dump()))
    document = make(tmp_path / "out", [source])
    assert [row.chosen for row in document.searches] == [False, True]
    text = text_of((tmp_path / "out" / "report.html").read_text())
    assert "transfer 0.0003 50 81.0 % transfer 0.001 50 92.0 % chosen" in text


def test_a_user_name_is_shown_as_it_is(tmp_path: Path) -> None:
    sources = [shard_set(tmp_path, "clean", removed=[("<img src=x>&/1.jpg", "pets/9.jpg")])]
    make(tmp_path / "out", sources, title="<script>alert(1)</script>")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "<img src=x>" not in page
    assert "<script>alert(1)</script>" in text_of(page)
    assert "<img src=x>&/1.jpg" in text_of(page)


def test_a_broken_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        IntegrityError, match=r"accuracy\.json does not hold a readable AccuracyReport"
    ):
        make(tmp_path / "out", [artifact(tmp_path, "accuracy", "evaluate")])

import html
import re
from collections import Counter
from pathlib import Path

import pytest

from infra.storage import open_store
from jobs.lineage import ancestry
from pipeline.evaluation.report import Origin, write_report
from pipeline.evaluation.report.words import number_text
from schemas.errors import IntegrityError
from schemas.report import FIGURES_FOLDER, FigureNote, SearchReport, SearchTrial
from schemas.report_page import Cell, ReportDocument, Table, Trace
from schemas.runs import InputArtifact
from schemas.spec import canonical_json
from tests.support.evaluation import (
    artifact,
    compared,
    explained,
    measured,
    noted,
    probed,
    shaken,
    shard_set,
    trained,
)
from tests.support.report_pages import PageReader, numbers_of, read_trace, recomputed, stored

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
        compared(folder, "pairs"),
        probed(folder, "shots"),
        shaken(folder, "robustness"),
        explained(folder, "insight"),
    ]


READS = {
    "clean": {"data": "corpus"},
    "pretrain": {"data": "clean"},
    "transfer": {"init": "pretrain"},
    "accuracy": {"model": "transfer"},
}


def make(folder: Path, sources: list[InputArtifact], title: str = "My title") -> ReportDocument:
    """A page about artifacts, all of whose records are in a store beside it."""
    folder.mkdir()
    store = open_store(str(folder.parent / "store"))
    made = ancestry(store, [it.artifact for it in sources])
    origin = Origin("tests", "run", made, spec_yaml="name: tests\n")
    return write_report(folder, title=title, sources=sources, origin=origin)


def make_all(folder: Path, *, seconds: float = 1.5) -> tuple[ReportDocument, list[InputArtifact]]:
    """A page about one stage of each kind, from a store."""
    sources = stored(folder / "store", everything(folder / "made"), READS, seconds=seconds)
    return make(folder / "out", sources), sources


def table(document: ReportDocument, title: str) -> Table:
    (found,) = (it for section in document.sections for it in section.tables if it.title == title)
    return found


def values(cell: Cell) -> list[float]:
    return [it.value for it in cell.numbers]


def text_of(page: str) -> str:
    bare = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(bare)).replace("\N{NO-BREAK SPACE}", " ")


def test_a_report_says_what_was_measured_on_what(tmp_path: Path) -> None:
    make(tmp_path / "out", everything(tmp_path))
    text = text_of((tmp_path / "out" / "report.html").read_text())
    assert "accuracy model 91.0 % 83.8 % to 95.2 % 91 100 test evaluate-" in text
    assert "pixels nearest neighbour 88.0 % 80.2 % to 93.0 % 88 100 test" in text
    assert "train 321" in text
    assert "test 123" in text
    assert "truncated 3" in text
    assert "exact copy 1" in text
    assert "cat/1.jpg exact copy pets/9.jpg pets@test" in text
    markdown = (tmp_path / "out" / "report.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "| accuracy | model | 91.0 % | 83.8 % to 95.2 % | 91 | 100 | test | `evaluate-" in markdown
    )
    assert "pretrain pretrain 3 0.8765" in text
    assert "transfer finetune no log -" in text
    assert "logistic regression C 0.125" in text


def test_refused_files_are_listed_by_reason_with_examples(tmp_path: Path) -> None:
    document = make(tmp_path / "out", everything(tmp_path))
    rows = table(document, "Files that were refused, by reason").rows
    assert [(row.cells[1].text, values(row.cells[2])) for row in rows] == [
        ("truncated", [3]),
        ("duplicate", [2]),
    ]
    assert "0.jpg: <it> is truncated; 1.jpg: <it> is truncated" in rows[0].cells[3].text


def test_a_report_says_when_a_baseline_is_ahead(tmp_path: Path) -> None:
    document = make(tmp_path / "out", everything(tmp_path))
    (note,) = document.notes
    assert note.text == (
        "Simple baselines are ahead of accuracy: pixels: logistic regression with 95.0% against "
        "91.0% of the 100 images of split test."
    )
    assert note.text in text_of((tmp_path / "out" / "report.html").read_text())


def test_baselines_on_other_images_are_not_compared(tmp_path: Path) -> None:
    sources = [
        measured(tmp_path, "accuracy", "evaluate", correct={"model": 50}),
        measured(tmp_path, "pixels", "baseline", correct={"nearest_neighbour": 60}, total=80),
    ]
    assert make(tmp_path / "out", sources).notes == ()


def test_a_report_is_one_file_that_asks_for_nothing_outside(tmp_path: Path) -> None:
    make_all(tmp_path)
    page = (tmp_path / "out" / "report.html").read_text()
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    reader = PageReader()
    reader.feed(page)
    assert any(it.startswith("data:image/png;base64,") for it in addresses)
    inside = [it.removeprefix("#") for it in addresses if it.startswith("#")]
    assert len(inside) + sum(it.startswith("data:image/png;base64,") for it in addresses) == len(
        addresses
    )
    assert set(inside) <= reader.anchors, "every link inside the page leads somewhere"
    bare = re.sub(r'src="[^"]*"|xmlns="[^"]*"', "", page)
    assert not re.search(r"https?:|//|@import|url\(|<script|<link", bare)
    assert str(tmp_path) not in page, "where the workspace lies is nobody's business"


def test_the_figures_lie_beside_the_page(tmp_path: Path) -> None:
    make(tmp_path / "out", everything(tmp_path))
    names = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert names == [
        "accuracy-confusion.png",
        "accuracy.png",
        "learning_rate.png",
        "lineage.svg",
        "loss.png",
    ]
    text = (tmp_path / "out" / "report.md").read_text()
    assert all(f"](figures/{name})" in text for name in names)


def test_a_figure_is_shown_with_what_its_stage_says_of_it(tmp_path: Path) -> None:
    source = measured(tmp_path, "accuracy", "evaluate", correct={"model": 91})
    (Path(source.path) / FIGURES_FOLDER / "other.png").write_bytes(
        (Path(source.path) / FIGURES_FOLDER / "confusion.png").read_bytes()
    )
    noted(source, FigureNote(file="confusion.png", title="who is who", caption="Read it so."))
    document = make(tmp_path / "out", [source])
    shown = [(it.file, it.title, it.caption) for it in document.sections[0].figures[1:]]
    assert shown == [
        ("accuracy-confusion.png", "accuracy: who is who", "Read it so."),
        ("accuracy-other.png", "accuracy: other", ""),
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'alt="accuracy: who is who. Read it so."' in page


def test_every_number_is_the_one_in_the_artifact_that_it_names(tmp_path: Path) -> None:
    document, sources = make_all(tmp_path)
    files = {it.artifact: Path(it.path) for it in sources}
    checked = 0
    for number in numbers_of(document):
        expected = recomputed(number, files)
        if expected is not None:
            assert number.value == pytest.approx(expected, rel=1e-12), number
            checked += 1
    assert checked > 60


def test_every_number_of_the_page_stands_beside_the_digest_that_it_rests_on(
    tmp_path: Path,
) -> None:
    document, sources = make_all(tmp_path)
    files = {it.artifact: Path(it.path) for it in sources}
    reader = PageReader()
    reader.feed((tmp_path / "out" / "report.html").read_text())
    assert reader.loose == [], "a column of numbers holds numbers with an origin, and no others"
    digests = {it.artifact: it.digest for it in sources}
    assert reader.chips.keys() == digests.keys()
    for name, title in reader.chips.items():
        assert title.endswith(f"{name}, content digest {digests[name]}")
    known = Counter((number.value, number_text(number)) for number in numbers_of(document))
    assert Counter((it.value, it.text) for it in reader.numbers) == known
    for shown in reader.numbers:
        assert shown.chips, f"{shown.text} has no artifact beside it"
        whole = re.fullmatch(r"(\S+): (\S+)#(.*)", shown.origin)
        if whole is not None:
            name, file, where = whole.groups()
            trace = Trace(artifact=name, file=file, where=where)
            assert name in shown.chips
            assert shown.value == read_trace(trace, files)


def test_equal_artifacts_give_equal_bytes_but_for_what_their_records_say(tmp_path: Path) -> None:
    first, _ = make_all(tmp_path / "first")
    second, _ = make_all(tmp_path / "second", seconds=99.0)
    assert first != second
    for path in sorted((tmp_path / "first" / "out" / "figures").iterdir()):
        twin = tmp_path / "second" / "out" / "figures" / path.name
        assert path.read_bytes() == twin.read_bytes(), path.name
    assert without_records(first) == without_records(second)
    pages = [(tmp_path / name / "out" / "report.html").read_text() for name in ("first", "second")]
    cut = [
        re.sub(r'<section id="\w+" data-from="records">.*?</section>', "", it, flags=re.DOTALL)
        for it in pages
    ]
    assert cut[0] == cut[1]
    assert len(cut[0]) < len(pages[0])


def without_records(document: ReportDocument) -> ReportDocument:
    kept = tuple(it for it in document.sections if not it.from_records)
    return document.revise(sections=kept)


def test_probes_are_shown_by_shots_and_by_method(tmp_path: Path) -> None:
    make(tmp_path / "out", [probed(tmp_path, "shots")])
    text = text_of((tmp_path / "out" / "report.html").read_text())
    assert "1 65.0 % 10.0 % to 100.0 % 2 60.0 % , 70.0 % probe-" in text
    assert "knn 20 90.0 % 82.6 % to 94.5 % 90 100 probe-" in text
    assert "logistic regression.C 0.25 probe-" in text


def test_comparisons_are_shown_pair_by_pair(tmp_path: Path) -> None:
    make(tmp_path / "out", [compared(tmp_path, "pairs")])
    text = text_of((tmp_path / "out" / "report.html").read_text())
    row = "transfer scratch +12.0 +5.0 to +19.0 15 3 0.0075 0.0075 first is ahead compare-"
    assert row in text


def test_what_explains_a_model_is_shown_layer_by_layer(tmp_path: Path) -> None:
    make(tmp_path / "out", [explained(tmp_path, "insight")])
    text = text_of((tmp_path / "out" / "report.html").read_text())
    assert "block 2 3.25 2.7 37.5 % 50.0 % interpret-" in text
    assert "positions it has <none> interpret-" in text


def test_robustness_is_shown_by_test_and_strength(tmp_path: Path) -> None:
    document = make(tmp_path / "out", [shaken(tmp_path, "robustness")])
    text = text_of((tmp_path / "out" / "report.html").read_text())
    assert "transfer 100.0 % 96.3 % to 100.0 % 21 robustness-" in text
    assert "transfer 40.0 % - - robustness-" in text
    drop = table(document, "robustness: patch drop, by cells dropped (%)")
    assert [it.title for it in drop.columns[3:]] == ["10 %", "90 %"]
    assert [values(it) for it in drop.rows[0].cells[3:]] == [[0.8], [0.3]]
    assert "corruption - frost no photographs robustness-" in text


def test_an_evaluation_says_more_than_top_1(tmp_path: Path) -> None:
    make(tmp_path / "out", [measured(tmp_path, "accuracy", "evaluate", correct={"model": 91})])
    text = text_of((tmp_path / "out" / "report.html").read_text())
    assert "accuracy - - 90.0 % 0.1234 0.2345 3.4 % evaluate-" in text
    assert "accuracy 91.0 % 83.8 % to 95.2 % 100 7 3 evaluate-" in text
    assert "accuracy 8 12 91.0 % 83.8 % to 95.2 % 0.4321 evaluate-" in text


def test_ancestors_that_nobody_asked_for_are_in_the_lineage(tmp_path: Path) -> None:
    sources = stored(tmp_path / "store", everything(tmp_path / "made"), READS)
    by_stage = {it.stage: it for it in sources}
    document = make(tmp_path / "out", [by_stage["accuracy"]])
    assert [it.stage for it in document.lineage] == [
        "corpus",
        "clean",
        "pretrain",
        "transfer",
        "accuracy",
    ]
    page = text_of((tmp_path / "out" / "report.html").read_text())
    assert f"model: transfer {by_stage['accuracy'].digest}" in page
    costs = {row.cells[0].text for row in table(document, "Time and work").rows}
    assert costs == {"corpus", "clean", "pretrain", "transfer", "accuracy", "all together"}


def test_the_document_reads_back_equal(tmp_path: Path) -> None:
    document = make(tmp_path / "out", everything(tmp_path))
    written = (tmp_path / "out" / "report.json").read_bytes()
    assert ReportDocument.model_validate_json(written) == document
    assert [it.stage for it in document.lineage] == [it.stage for it in everything(tmp_path / "2")]


def test_variants_get_means_and_paired_differences(tmp_path: Path) -> None:
    transfer, scratch = (91, 94, 92), (90, 90, 91)
    sources = [
        measured(tmp_path, f"{stage}[seed={seed}]", "evaluate", correct={"model": counts[seed]})
        for stage, counts in (("accuracy", transfer), ("accuracy-scratch", scratch))
        for seed in range(3)
    ]
    document = make(tmp_path / "out", sources)
    means = [values(row.cells[2])[0] for row in table(document, "Over the variants").rows]
    assert means == pytest.approx([0.92333, 0.90333], abs=1e-4)
    (difference,) = table(document, "Paired differences").rows
    assert values(difference.cells[2]) == pytest.approx([0.02])
    assert len(difference.artifacts) == 6
    files = {it.artifact: Path(it.path) for it in sources}
    for number in numbers_of(document):
        assert number.value == pytest.approx(recomputed(number, files), rel=1e-9), number
    text = text_of((tmp_path / "out" / "report.html").read_text())
    assert "accuracy accuracy-scratch +2.0 -2.3 to +6.3 3 not told apart" in text


def test_a_training_that_diverged_is_shown(tmp_path: Path) -> None:
    losses = [*CURVE, (4, float("nan"))]
    document = make(tmp_path / "out", [trained(tmp_path, "pretrain", "pretrain", losses=losses)])
    (row,) = table(document, "Where it ended").rows
    assert (values(row.cells[2]), row.cells[3].text) == ([4], "-")
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
    rows = table(document, "Search on held-out training labels").rows
    assert [row.marked for row in rows] == [False, True]
    text = text_of((tmp_path / "out" / "report.html").read_text())
    assert "transfer 0.001 50 92.0 % chosen" in text


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

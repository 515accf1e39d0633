"""The stage `compare`, and `vitrail compare` of two runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.run_folder import create_run
from jobs import compare
from jobs.compare_runs import show_comparison
from schemas.artifacts import StageResult
from schemas.comparison import CompareSpec, ComparisonReport, RunComparison
from schemas.errors import DataError, UsageError
from schemas.evaluation import EvaluateSpec
from schemas.runs import InputArtifact, RunDocument, StageOutcome
from schemas.training import PretrainSpec
from tests.support.evaluation import artifact
from tests.support.predictions import write_answers
from tests.support.runs import run_state
from tests.support.small_stage import SPEC
from tests.support.stages import run_stage
from tests.support.workspaces import keep

LABELS = np.arange(90) % 3


def predicted(right: int) -> np.ndarray:
    """The first so many are right."""
    return np.where(np.arange(90) < right, LABELS, (LABELS + 1) % 3)


def evaluated(folder: Path, stage: str, right: int, **changes: object) -> InputArtifact:
    made = artifact(folder, stage, "evaluate")
    write_answers(Path(made.path), predicted(right), LABELS, **changes)
    return made


def test_a_stage_compares_models(tmp_path: Path) -> None:
    inputs = {
        f"of[{number}]": evaluated(tmp_path, stage, right)
        for number, (stage, right) in enumerate({"vit": 70, "cnn": 50, "scratch": 48}.items())
    }
    spec = CompareSpec(of=("vit", "cnn", "scratch"))
    run = run_stage(compare.run, spec, tmp_path / "compare", inputs=inputs, seed=3)
    report = ComparisonReport.model_validate_json((run.path / "comparison.json").read_bytes())
    assert [model.name for model in report.models] == ["vit", "cnn", "scratch"]
    assert [pair.difference_ratio for pair in report.pairs] == pytest.approx(
        [2 / 9, 22 / 90, 1 / 45]
    )
    assert run.output.metrics["compare/lead_ratio"] == pytest.approx(2 / 9)
    assert run.said[0].startswith("vit less cnn: +22.2 points (")
    with Image.open(run.path / "figures" / "differences.png") as figure:
        assert figure.width > 600
    assert (run.path / "figures" / "figures.json").is_file()


def test_other_images_are_refused(tmp_path: Path) -> None:
    inputs = {
        "of[0]": evaluated(tmp_path, "a", 70),
        "of[1]": evaluated(tmp_path, "b", 70, first_uid=5),
    }
    with pytest.raises(DataError, match="5 are only of a, 5 only of b"):
        run_stage(compare.run, CompareSpec(of=("a", "b")), tmp_path / "c", inputs=inputs)


def trained(workspace: Path, folder: Path, spec: PretrainSpec) -> StageResult:
    folder.mkdir()
    (folder / "weights").write_text(str(spec.optim.peak_lr))
    return keep(workspace, folder, experiment="e", stage="pretrain", spec=spec)


def ended_run(workspace: Path, name: str, *, right: int, spec: PretrainSpec) -> None:
    """A run that trained with `spec` and then got so many of 90 images right."""
    files = workspace / "files" / name
    files.mkdir(parents=True)
    model = trained(workspace, files / "model", spec)
    write_answers(files / "answers", predicted(right), LABELS)
    accuracy = keep(
        workspace,
        files / "answers",
        experiment="e",
        stage="accuracy",
        spec=EvaluateSpec(data="pets@test", model="pretrain"),
        inputs={"model": model},
    )
    outcomes = [
        StageOutcome(
            name=stage,
            kind=result.kind,
            status="ran",
            key=result.key,
            artifact=result.artifact,
            seconds=1.0,
            metrics={},
        )
        for stage, result in (("pretrain", model), ("accuracy", accuracy))
    ]
    folder = create_run(workspace / "runs", run_state(name))
    document = RunDocument(run=name, status="finished", stages=tuple(outcomes))
    (folder.path / "outcome.json").write_text(json.dumps(document.dump()))


def test_two_runs_are_compared_with_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended_run(tmp_path, "a", right=50, spec=SPEC)
    ended_run(tmp_path, "b", right=70, spec=SPEC.revise(optim=SPEC.optim.revise(peak_lr=2e-3)))
    show_comparison("a", "b", tmp_path, "json")
    document = RunComparison.model_validate_json(capsys.readouterr().out)
    (stage,) = document.stages
    assert stage.pair is not None
    assert (stage.stage, stage.images, stage.same_artifact) == ("accuracy", 90, False)
    assert (stage.pair.only_first_correct, stage.pair.only_second_correct) == (0, 20)
    (changed,) = document.changes
    assert (changed.stage, str(changed.change)) == ("pretrain", "optim.peak_lr 0.001 -> 0.002")
    show_comparison("a", "b", tmp_path, "text")
    text = capsys.readouterr().out
    assert "+22.2" in text
    assert "optim.peak_lr" in text


def test_a_run_and_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended_run(tmp_path, "a", right=50, spec=SPEC)
    show_comparison("a", "a", tmp_path, "text")
    text = capsys.readouterr().out
    assert "same artifact" in text
    assert "-0.0" not in text, "nothing has no sign"
    assert "the specs do not differ" in text


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    ended_run(tmp_path, "a", right=50, spec=SPEC)
    create_run(tmp_path / "runs", run_state("going"))
    with pytest.raises(UsageError, match="going has not ended"):
        show_comparison("a", "going", tmp_path, "text")
    with pytest.raises(UsageError, match="there is no run 'b'"):
        show_comparison("a", "b", tmp_path, "text")
    empty = create_run(tmp_path / "runs", run_state("empty"))
    document = RunDocument(run="empty", status="finished", stages=())
    (empty.path / "outcome.json").write_text(json.dumps(document.dump()))
    with pytest.raises(UsageError, match="a has accuracy, empty has none"):
        show_comparison("a", "empty", tmp_path, "text")

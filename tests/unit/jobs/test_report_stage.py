"""What the stage `report` reads from the store and from the run's folder."""

import json
from pathlib import Path

import pytest

from infra.run_folder import RunFolder
from infra.storage import open_store
from jobs import report
from jobs.lineage import ancestry
from jobs.target import Target
from pipeline.cost import training_flops
from pipeline.dag.experiment_file import load_experiment
from pipeline.model.saved import save_model
from pipeline.model.vit import build
from schemas.checkpoint import SavedModel
from schemas.evaluation import ReportSpec
from schemas.report_page import ReportDocument
from schemas.runs import InputArtifact
from tests.support.evaluation import artifact, measured, shard_set
from tests.support.report_pages import stored
from tests.support.small_stage import SPEC
from tests.support.stages import run_stage

STEPS = 40
READS = {"tuned": {"data": "corpus"}, "accuracy": {"model": "tuned", "data": "corpus"}}


def trained(folder: Path) -> InputArtifact:
    """A pre-training of the spec in `small_stage`."""
    model = SPEC.model.to_vit(num_classes=2)
    saved = SavedModel(
        spec=model,
        class_names=("cat", "dog"),
        trained_steps=STEPS,
        key="k",
        data_digest="d",
        init_digest=None,
    )
    made = artifact(folder, "tuned", "pretrain")
    save_model(Path(made.path) / "model", dict(build(model, seed=1).state_dict()), saved)
    return made.revise(metrics={"train/steps_count": float(STEPS), "train/loss": 0.5})


def in_store(folder: Path) -> list[InputArtifact]:
    made = [
        shard_set(folder / "made", "corpus"),
        trained(folder / "made"),
        measured(folder / "made", "accuracy", "evaluate", correct={"model": 91}),
    ]
    made[2] = made[2].revise(metrics={"test/images_count": 100.0, "test/top1_ratio": 0.91})
    return stored(folder / "store", made, READS)


def test_the_work_of_a_training_is_that_of_its_steps_and_its_model(tmp_path: Path) -> None:
    sources = in_store(tmp_path)
    made = {
        it.record.stage: it
        for it in ancestry(open_store(str(tmp_path / "store")), [sources[2].artifact])
    }
    assert list(made) == ["corpus", "tuned", "accuracy"], "each after what it reads"
    each = training_flops(SPEC.model.to_vit(num_classes=2), SPEC.objective)
    assert made["tuned"].costs == {"flops": each * STEPS * SPEC.batch.global_samples}
    forward = made["accuracy"].costs["flops"] / 100
    assert 2.8 < each / forward < 3.2, "backward takes twice the work of forward"


def test_what_is_gone_from_the_store_is_left_out(tmp_path: Path) -> None:
    sources = in_store(tmp_path)
    (tmp_path / "store" / "artifacts" / sources[0].artifact / "result.json").unlink()
    made = ancestry(open_store(str(tmp_path / "store")), [sources[2].artifact])
    assert [it.record.stage for it in made] == ["tuned", "accuracy"]


@pytest.mark.parametrize("profile", [None, "study"])
def test_the_file_on_the_page_is_the_experiment_that_ran(
    tmp_path: Path, profile: str | None
) -> None:
    ran = Target("digits", None, profile, ("transfer.optim.peak_lr=1e-5",)).experiment()
    (tmp_path / "report").mkdir()
    RunFolder(tmp_path / "report").write_spec(ran)
    source = measured(tmp_path, "accuracy", "evaluate", correct={"model": 91})
    store = tmp_path / "report"
    (source,) = stored(store, [source], {})
    run = run_stage(report.run, ReportSpec(of=("accuracy",)), store, inputs={"of[0]": source})
    document = ReportDocument.parse(json.loads((run.path / "report.json").read_text()))
    (block,) = (it for section in document.sections for it in section.blocks if it.folded)
    again = tmp_path / "run.yaml"
    again.write_text(block.text)
    found = load_experiment(again)
    assert found.revise(profiles={}) == ran.revise(profiles={})
    assert block.text.splitlines()[0].startswith("name: digits")


def test_nothing_of_the_environment_stands_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIK7MDENG")
    sources = in_store(tmp_path)
    store = tmp_path / "store"
    run = run_stage(report.run, ReportSpec(of=("accuracy",)), store, inputs={"of[0]": sources[2]})
    for name in ("report.html", "report.md", "report.json"):
        text = (run.path / name).read_text()
        assert "wJalrXUtnFEMIK7MDENG" not in text
        assert str(tmp_path) not in text

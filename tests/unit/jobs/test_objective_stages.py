"""Stages that learn without labels or from a teacher, and what is made of their models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs import evaluate, train
from jobs.train_worker import CHECKPOINTS
from pipeline.model.saved import load_model
from schemas.errors import PausedError, VitrailError
from schemas.evaluation import EvaluateSpec
from schemas.runs import InputArtifact
from schemas.training import FinetuneSpec, PretrainSpec
from tests.support.stages import StageRun, run_stage

pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")

COMMON: dict[str, Any] = {
    "data": "corpus",
    "augment": {"crop": "shift", "flip": True},
    "optim": {"peak_lr": 1e-3, "warmup_steps": 2},
    "batch": {"global_samples": 12},
    "duration": {"steps": 6},
    "checkpoint": {"every_steps": 2},
    "resources": {"engine": "torch", "micro_batch": 4},
}
MODEL = {
    "width": 24,
    "depth": 2,
    "num_heads": 3,
    "mlp_dim": 32,
    "patch_px": 4,
    "image_px": 8,
    "drop_path": 0.3,
    "dropout": 0.1,
}
OBJECTIVES = {
    "mae": {"type": "mae", "decoder_width": 12, "decoder_depth": 1, "decoder_heads": 3},
    "masked_patch": {"type": "masked_patch"},
}


def pretrain(objective: dict[str, Any], **changes: Any) -> PretrainSpec:
    return PretrainSpec.parse({**COMMON, "model": MODEL, "objective": objective, **changes})


@pytest.fixture(scope="module", params=OBJECTIVES)
def encoder(
    request: pytest.FixtureRequest, corpus: InputArtifact, tmp_path_factory: pytest.TempPathFactory
) -> StageRun:
    folder = tmp_path_factory.mktemp("runs") / request.param
    spec = pretrain(OBJECTIVES[request.param])
    return run_stage(train.run, spec, folder, inputs={"data": corpus}, seed=3)


def test_what_is_left_is_an_encoder_that_fine_tuning_starts_from(
    encoder: StageRun, corpus: InputArtifact, tmp_path: Path
) -> None:
    model, saved = load_model(encoder.path / "model")
    assert (model.spec.num_classes, saved.class_names, saved.trained_steps) == (0, (), 6)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert encoder.output.metrics["model/parameters_count"] == counted
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 24)
    spec = FinetuneSpec.parse({**COMMON, "init": "encoder", "model": {"dropout": 0.0}})
    inputs = {"data": corpus, "init": encoder.at(None)}
    tuned = run_stage(train.run, spec, tmp_path / "tuned", inputs=inputs, seed=3)
    model, saved = load_model(tuned.path / "model")
    assert (model.spec.num_classes, saved.init_digest) == (3, encoder.artifact.digest)


def test_an_interrupted_stage_makes_the_same_bytes(
    encoder: StageRun, corpus: InputArtifact, tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    spec = pretrain(OBJECTIVES[encoder.artifact.stage])
    folder.mkdir()
    (folder / "pause").touch()
    with pytest.raises(PausedError):
        run_stage(train.run, spec, folder, inputs={"data": corpus}, seed=3)
    written = folder / "progress" / CHECKPOINTS
    assert [path.name for path in written.iterdir()] == ["step-00000001"]

    def resumed(request: Any, tools: Any) -> Any:
        written.parent.rename(tools.attempt.progress.with_name("old"))
        tools.attempt.progress = tools.attempt.progress.with_name("old")
        return train.run(request, tools)

    again = run_stage(resumed, spec, tmp_path / "again", inputs={"data": corpus}, seed=3)
    for name in ("model.json", "model.safetensors"):
        expected = (encoder.path / "model" / name).read_bytes()
        assert (again.path / "model" / name).read_bytes() == expected


def test_an_encoder_cannot_be_evaluated_and_says_so(
    encoder: StageRun, corpus: InputArtifact, tmp_path: Path
) -> None:
    spec = EvaluateSpec.parse({"data": "corpus@train", "model": "encoder"})
    inputs = {"data": corpus, "model": encoder.at(None)}
    with pytest.raises(VitrailError, match="the model knows 0 classes"):
        run_stage(evaluate.run, spec, tmp_path / "accuracy", inputs=inputs)


@pytest.fixture(scope="module")
def teacher(corpus: InputArtifact, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    spec = pretrain({"type": "supervised"})
    return run_stage(train.run, spec, folder, inputs={"data": corpus}, seed=5)


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_student_learns_from_another_stages_model(
    mode: str, teacher: StageRun, corpus: InputArtifact, tmp_path: Path
) -> None:
    spec = pretrain(
        {"type": "distillation", "mode": mode},
        teacher="teacher",
        model={**MODEL, "distillation_token": True},
        augment={"mixup_alpha": 0.4},
    )
    inputs = {"data": corpus, "teacher": teacher.at(None)}
    made = run_stage(train.run, spec, tmp_path / "student", inputs=inputs, seed=3)
    model, _ = load_model(made.path / "model")
    assert model.distillation_head is not None
    assert model.distillation_head.weight.any()
    search = {"peak_lr": [1e-3, 3e-3], "steps": [2], "holdout_ratio": 0.25}
    tuned = FinetuneSpec.parse(
        {
            **COMMON,
            "init": "student",
            "teacher": "teacher",
            "objective": {"type": "distillation", "mode": mode},
            "search": search,
        }
    )
    inputs["init"] = made.at(None)
    found = run_stage(train.run, tuned, tmp_path / "tuned", inputs=inputs, seed=3)
    assert len(json.loads((found.path / "search.json").read_text())["trials"]) == 2


def test_a_teacher_of_another_size_is_refused_before_anything_runs(
    teacher: StageRun, corpus: InputArtifact, tmp_path: Path
) -> None:
    spec = pretrain(
        {"type": "distillation"}, teacher="teacher", model={**MODEL, "image_px": [8, 12]}
    )
    inputs = {"data": corpus, "teacher": teacher.at(None)}
    with pytest.raises(VitrailError, match="the teacher takes images of 8 x 8 px and the model"):
        run_stage(train.run, spec, tmp_path / "student", inputs=inputs, seed=3)


def test_a_sigmoid_head_begins_where_it_is_told_and_is_measured_by_sigmoids(
    corpus: InputArtifact, tmp_path: Path
) -> None:
    spec = pretrain(
        {"type": "supervised", "loss": "sigmoid", "head_bias": -10.0},
        optim={"peak_lr": 1e-9},
        augment={"mixup_alpha": 0.4, "label_smoothing": 0.1},
    )
    made = run_stage(train.run, spec, tmp_path / "sigmoid", inputs={"data": corpus}, seed=3)
    bias = load_file(made.path / "model" / "model.safetensors")["head.bias"]
    assert bias.tolist() == pytest.approx([-10.0] * 3, abs=1e-6)
    _, saved = load_model(made.path / "model")
    assert saved.probabilities == "sigmoid"
    measured = run_stage(
        evaluate.run,
        EvaluateSpec.parse({"data": "corpus@train", "model": "sigmoid"}),
        tmp_path / "accuracy",
        inputs={"data": corpus, "model": made.at(None)},
    )
    # It says no to every class; of three it is wrong about one.
    assert measured.output.metrics["train/nll"] == pytest.approx(10.0, abs=1e-3)

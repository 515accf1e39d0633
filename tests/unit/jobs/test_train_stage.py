"""The training stages with the reference engine, on real images, in this process."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infra.metric_segments import read_points
from infra.pace_file import pace_path, read_pace
from jobs import evaluate, train, train_worker
from jobs.train_plan import TrainPlan, objective_of
from jobs.train_worker import CHECKPOINTS, run_alone
from pipeline.model.saved import load_model
from pipeline.model.vit import KEY_BIAS
from schemas.errors import OutOfMemoryError, PausedError, SpecError
from schemas.evaluation import EvaluateSpec
from schemas.optim import DurationSpec
from schemas.report import SearchReport
from schemas.runs import InputArtifact
from schemas.training import FinetuneSpec, PretrainSpec
from schemas.validation import ValidationSpec
from tests.support.stages import StageRun, run_stage

pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")

COMMON: dict[str, Any] = {
    "data": "corpus",
    "augment": {"crop": "shift", "flip": True},
    "optim": {"peak_lr": 1e-3, "warmup_steps": 2},
    "batch": {"global_samples": 12},
    "duration": {"steps": 8},
    "checkpoint": {"every_steps": 3},
    "resources": {"engine": "torch", "micro_batch": 4},
}
MODEL = {"width": 24, "depth": 1, "num_heads": 3, "mlp_dim": 32, "patch_px": 4, "image_px": 8}
PRETRAIN = PretrainSpec.parse({**COMMON, "model": MODEL})


@pytest.fixture(scope="module")
def pretrained(corpus: InputArtifact, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    return run_stage(train.run, PRETRAIN, folder, inputs={"data": corpus}, seed=3)


def test_pretraining_writes_a_model_that_stands_alone(
    pretrained: StageRun, corpus: InputArtifact
) -> None:
    model, saved = load_model(pretrained.path / "model")
    assert model.spec.image_px == (8, 8)
    assert model.spec.num_classes == len(saved.class_names) == 3
    assert (saved.trained_steps, saved.init_digest) == (8, None)
    assert saved.data_digest == corpus.digest
    figures = pretrained.output.metrics
    assert figures["train/steps_count"] == 8
    assert figures["model/parameters_count"] == sum(p.numel() for p in model.parameters())
    points, _ = read_points(pretrained.path.parent / "progress" / "metrics.jsonl", 0)
    assert [p.step for p in points if p.key == "train/loss"] == list(range(1, 9))
    assert {f"train/{it}" for it in ("mfu_ratio", "memory_bytes", "eta_seconds")} <= {
        point.key for point in points
    }
    pace = read_pace(pace_path(pretrained.path.parent, "pretrain"))
    assert pace is not None
    assert (pace.step, pace.total_steps) == (8, 8)
    assert CHECKPOINTS in pretrained.output.spent


def test_the_saved_model_is_the_average_where_one_is_kept(
    pretrained: StageRun, corpus: InputArtifact, tmp_path: Path
) -> None:
    optim = PRETRAIN.optim.revise(ema_decay=0.99)
    spec = PRETRAIN.revise(optim=optim)
    averaged = run_stage(train.run, spec, tmp_path / "averaged", inputs={"data": corpus}, seed=3)
    (checkpoint,) = (averaged.path.parent / "progress" / CHECKPOINTS).glob("step-00000008")
    state = load_file(checkpoint / "rank-0000.safetensors")
    last = load_file(pretrained.path / "model" / "model.safetensors")
    for name, tensor in load_file(averaged.path / "model" / "model.safetensors").items():
        assert torch.equal(tensor, state[f"average/{name}"])
        assert torch.equal(last[name], state[f"weight/{name}"]), "averaging changes no weight"
    assert not torch.equal(state["average/patch.weight"], state["weight/patch.weight"])


def test_an_interrupted_stage_makes_the_same_bytes(
    pretrained: StageRun, corpus: InputArtifact, tmp_path: Path
) -> None:
    folder = tmp_path / "pretrain"
    folder.mkdir()
    pause = folder / "pause"
    pause.touch()
    with pytest.raises(PausedError):
        run_stage(train.run, PRETRAIN, folder, inputs={"data": corpus}, seed=3)
    pause.unlink()
    again = tmp_path / "again"
    # A later attempt at the same key finds the progress of the one before.
    spy: list[Path] = []

    def resumed(request: Any, tools: Any) -> Any:
        attempt = replace(tools.attempt, progress=folder / "progress")
        spy.extend(sorted((folder / "progress" / CHECKPOINTS).iterdir()))
        return train.run(request, replace(tools, attempt=attempt))

    run = run_stage(resumed, PRETRAIN, again, inputs={"data": corpus}, seed=3)
    assert [path.name for path in spy] == ["step-00000001"]
    for name in ("model.json", "model.safetensors"):
        expected = (pretrained.path / "model" / name).read_bytes()
        assert (run.path / "model" / name).read_bytes() == expected


def test_a_stage_that_is_taken_back_goes_on_with_a_new_engine(
    corpus: InputArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled_from_step_3_to_5(*args: Any) -> Any:
        objective = objective_of(*args)

        def spoiled(model: torch.nn.Module, batch: Any) -> torch.Tensor:
            places = batch.places
            step = int(places.epoch[0]) * 2 + int(places.position[0]) // 12
            loss = objective(model, batch)
            return loss * torch.nan if model.training and step in (3, 4, 5) else loss

        return spoiled

    monkeypatch.setattr(train_worker, "objective_of", spoiled_from_step_3_to_5)
    spec = PRETRAIN.revise(optim=PRETRAIN.optim.revise(roll_back_steps=2))
    run = run_stage(train.run, spec, tmp_path / "pretrain", inputs={"data": corpus}, seed=3)
    assert run.output.metrics["train/steps_count"] == 8
    log = (tmp_path / "pretrain" / "log.txt").read_text()
    assert log.count("nothing is updated") == 3
    assert "back to the weights of step 2, on with the batch of 7" in log
    state = json.loads((run.path / "state" / "step-00000008" / "state.json").read_text())
    assert (state["updates"], state["rolled_back_to"]) == (4, 2), "steps 1, 2, 7 and 8"


@pytest.mark.filterwarnings("ignore")  # torch warns of itself while it compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_learn_the_same_under_the_same_names(
    pretrained: StageRun, corpus: InputArtifact, tmp_path: Path
) -> None:
    spec = PRETRAIN.revise(resources=PRETRAIN.resources.revise(compile=True))
    run = run_stage(train.run, spec, tmp_path / "compiled", inputs={"data": corpus}, seed=3)
    found, expected = (
        load_file(it.path / "model" / "model.safetensors") for it in (run, pretrained)
    )
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        if not name.endswith(KEY_BIAS):
            torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0)
    assert any(not torch.equal(found[name], expected[name]) for name in found), "other kernels"


def test_the_best_validation_is_handed_over(corpus: InputArtifact, tmp_path: Path) -> None:
    # A rate that soon does more harm than good: the best is not the last.
    spec = PRETRAIN.revise(
        optim=PRETRAIN.optim.revise(peak_lr=0.3),
        validation=ValidationSpec(every_steps=1, keep_best=True),
        validation_data="corpus@test",
    )
    inputs = {"data": corpus, "validation_data": corpus.revise(split="test")}
    run = run_stage(train.run, spec, tmp_path / "pretrain", inputs=inputs, seed=3)
    points, _ = read_points(run.path.parent / "progress" / "metrics.jsonl", 0)
    losses = {point.step: point.value for point in points if point.key == "validation/loss"}
    best = min(losses, key=losses.__getitem__)
    assert best < len(losses) == 8
    assert run.output.metrics["validation/best"] == losses[best]
    assert run.output.metrics["validation/best_step_count"] == best
    assert load_model(run.path / "model")[1].trained_steps == best
    accuracy = run_stage(
        evaluate.run,
        EvaluateSpec(data="corpus", model="pretrain"),
        tmp_path / "accuracy",
        inputs={"data": corpus.revise(split="test"), "model": run.at(None)},
    )
    assert accuracy.output.metrics["test/nll"] == pytest.approx(losses[best], rel=1e-5)
    top1 = {point.step: point.value for point in points if point.key == "validation/top1_ratio"}
    assert accuracy.output.metrics["test/top1_ratio"] == top1[best]


def test_a_longer_duration_continues_instead_of_starting_over(
    corpus: InputArtifact, tmp_path: Path
) -> None:
    steady = PRETRAIN.optim.revise(schedule="constant")
    specs = [PRETRAIN.revise(optim=steady, duration=DurationSpec(steps=steps)) for steps in (8, 14)]
    short, whole = (
        run_stage(train.run, spec, tmp_path / name, inputs={"data": corpus}, seed=3)
        for name, spec in zip(("short", "whole"), specs, strict=True)
    )
    assert [path.name for path in (short.path / "state").iterdir()] == ["step-00000008"]
    inputs = {"data": corpus, "continues": short.at(None)}
    spec = PretrainSpec.parse({**specs[1].dump(), "continue": "short"})
    longer = run_stage(train.run, spec, tmp_path / "longer", inputs=inputs, seed=3)
    weights = [load_file(run.path / "model" / "model.safetensors") for run in (longer, whole)]
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())
    points, _ = read_points(longer.path.parent / "progress" / "metrics.jsonl", 0)
    assert [p.step for p in points if p.key == "train/loss"] == list(range(9, 15))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch": {"global_samples": 24}}, "batch.global_samples is another"),
        ({"model": {**MODEL, "depth": 2}}, "the model is another"),
        ({"duration": {"steps": 5}}, "8 steps are done already, and duration says 5"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    pretrained: StageRun,
    corpus: InputArtifact,
    tmp_path: Path,
    change: dict[str, Any],
    sentence: str,
) -> None:
    spec = PretrainSpec.parse({**COMMON, "model": MODEL, **change, "continue": "pretrain"})
    inputs = {"data": corpus, "continues": pretrained.at(None)}
    with pytest.raises(SpecError, match=sentence):
        run_stage(train.run, spec, tmp_path / "longer", inputs=inputs, seed=3)


def test_fine_tuning_starts_from_the_weights_at_another_size(
    pretrained: StageRun, corpus: InputArtifact, tmp_path: Path
) -> None:
    spec = FinetuneSpec.parse({**COMMON, "init": "pretrain", "model": {"image_px": [8, 16]}})
    # At a rate this small the weights stay what they were.
    spec = spec.revise(optim=spec.optim.revise(peak_lr=1e-9))
    run = run_stage(
        train.run, spec, tmp_path / "transfer", inputs={"data": corpus, "init": pretrained.at(None)}
    )
    model, saved = load_model(run.path / "model")
    assert model.spec.image_px == (8, 16)
    assert saved.init_digest == pretrained.artifact.digest
    before = load_file(pretrained.path / "model" / "model.safetensors")
    assert torch.allclose(
        model.get_parameter("blocks.0.dense1.weight"), before["blocks.0.dense1.weight"], atol=1e-6
    )


def test_a_search_decides_rate_and_steps(corpus: InputArtifact, tmp_path: Path) -> None:
    spec = FinetuneSpec.parse(
        {
            **COMMON,
            "init": None,
            "model": MODEL,
            "search": {"peak_lr": [1e-3, 3e-3], "steps": [2, 4], "holdout_ratio": 0.25},
        }
    )
    run = run_stage(train.run, spec, tmp_path / "scratch", inputs={"data": corpus})
    report = SearchReport.parse(json.loads((run.path / "search.json").read_text()))
    best = report.trials[report.chosen]
    figures = run.output.metrics
    assert len(report.trials) == 4
    assert (figures["search/peak_lr"], figures["search/steps_count"]) == (best.peak_lr, best.steps)
    assert figures["train/steps_count"] == best.steps
    assert sum(line.startswith("search ") for line in run.said) == 4


def tuned(
    pretrained: StageRun, corpus: InputArtifact, folder: Path, **changes: object
) -> tuple[StageRun, dict[str, torch.Tensor]]:
    """A fine-tuning of `pretrained` and what it began with."""
    spec = FinetuneSpec.parse({**COMMON, "init": "pretrain", **changes})
    inputs = {"data": corpus, "init": pretrained.at(None)}
    run = run_stage(train.run, spec, folder, inputs=inputs, seed=3)
    return run, load_file(pretrained.path / "model" / "model.safetensors")


def test_frozen_layers_are_handed_over_as_they_came(
    pretrained: StageRun, corpus: InputArtifact, tmp_path: Path
) -> None:
    run, before = tuned(pretrained, corpus, tmp_path / "transfer", freeze={"up_to_layer": 1})
    after = load_file(run.path / "model" / "model.safetensors")
    same = {name for name, it in before.items() if torch.equal(after[name], it)}
    assert same == before.keys() - {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    with pytest.raises(SpecError, match="names hed, which is no part"):
        tuned(pretrained, corpus, tmp_path / "misspelt", freeze={"all_but": "hed"})


def test_what_lora_learned_is_in_the_model_and_beside_it(
    pretrained: StageRun, corpus: InputArtifact, tmp_path: Path
) -> None:
    lora = {"rank": 2, "targets": ["query", "dense2"]}
    run, before = tuned(pretrained, corpus, tmp_path / "transfer", lora=lora)
    model, _ = load_model(run.path / "model")
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    changed = {name for name, it in before.items() if not torch.equal(after[name], it)}
    layers = {f"blocks.0.{it}.weight" for it in ("attention.query", "dense2")}
    assert changed == {"head.weight", "head.bias"} | layers
    adapter = load_file(run.path / "adapter" / "adapter_model.safetensors")
    start = "base_model.model.blocks.0.dense2.lora"
    product = adapter[f"{start}_B.weight"] @ adapter[f"{start}_A.weight"] * 16 / 2
    name = "blocks.0.dense2.weight"
    torch.testing.assert_close(after[name], before[name] + product, rtol=0, atol=1e-6)
    assert torch.equal(adapter["base_model.model.head.bias"], after["head.bias"])
    figures = run.output.metrics
    assert figures["model/parameters_count"] == sum(it.numel() for it in after.values())


def test_a_linear_probe_of_the_whole_run_moves_the_head_alone(
    pretrained: StageRun, corpus: InputArtifact, tmp_path: Path
) -> None:
    probe = {"peak_lr": 1e-9, "linear_probe_steps": 7, "linear_probe_lr": 1e-2}
    run, before = tuned(pretrained, corpus, tmp_path / "transfer", optim=probe)
    after = load_file(run.path / "model" / "model.safetensors")
    for name, it in before.items():
        assert torch.allclose(after[name], it, atol=1e-6) == (not name.startswith("head."))


def test_a_search_takes_frozen_parts_and_probes_with_it(
    pretrained: StageRun, corpus: InputArtifact, tmp_path: Path
) -> None:
    search = {"peak_lr": [1e-3, 3e-3], "steps": [2, 4], "holdout_ratio": 0.25}
    probe = {"peak_lr": 1.0, "linear_probe_steps": 3, "linear_probe_lr": 1e-2}
    for name, way in {"freeze": {"all_but": "head"}, "lora": {"rank": 2}}.items():
        changes = {name: way, "search": search, "optim": probe}
        run, before = tuned(pretrained, corpus, tmp_path / name, **changes)
        after = load_file(run.path / "model" / "model.safetensors")
        assert torch.equal(after["patch.weight"], before["patch.weight"])
        assert (
            len(SearchReport.parse(json.loads((run.path / "search.json").read_text())).trials) == 4
        )


@pytest.mark.parametrize(("room", "ends"), [(2, True), (1, False)])
def test_short_memory_is_tried_once_more_with_half_the_micro_batch(
    room: int,
    ends: bool,
    pretrained: StageRun,
    corpus: InputArtifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []

    def on_a_small_machine(plan: TrainPlan) -> dict[str, float]:
        tried.append(plan.micro_batch(1))
        if tried[-1] > room:
            torch.empty(1 << 60, dtype=torch.uint8)
        return run_alone(plan)

    monkeypatch.setattr(train, "run_alone", on_a_small_machine)
    folder = tmp_path / "pretrain"
    if ends:
        run = run_stage(train.run, PRETRAIN, folder, inputs={"data": corpus}, seed=3)
        told = next(line for line in run.said if "memory" in line)
        assert "once again, with at most 2 samples in a forward" in told
        same = pretrained.output.metrics["train/loss"]
        assert run.output.metrics["train/loss"] == pytest.approx(same, abs=1e-5)
    else:
        with pytest.raises(OutOfMemoryError, match="ran out of memory"):
            run_stage(train.run, PRETRAIN, folder, inputs={"data": corpus}, seed=3)
    assert tried == [4, 2]


@pytest.mark.parametrize(("alpha", "halved"), [(0.0, [3, 3, 2]), (0.2, [2, 2, 2])])
def test_a_micro_batch_is_a_part_of_the_share_and_even_where_pairs_are_mixed(
    alpha: float, halved: list[int], tmp_path: Path
) -> None:
    resources = {"workers": {"min": 1, "max": 3}}
    changes = {"model": MODEL, "augment": {"mixup_alpha": alpha}, "resources": resources}
    spec = PretrainSpec.parse({**COMMON, **changes})
    request: Any = None  # nothing of the request is asked for
    plan = TrainPlan(request, spec, spec.model.resolved(num_classes=3), tmp_path, tmp_path)
    assert [plan.micro_batch(world) for world in (1, 2, 3)] == [12, 6, 4]
    smaller = replace(plan, largest_micro_batch=3)
    assert [smaller.micro_batch(world) for world in (1, 2, 3)] == halved

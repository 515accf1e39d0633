"""Models that are no ViT through the stages: trained, carried on, measured, shown, exported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from jobs import evaluate, train
from jobs.stage import StageOutput, StageTools
from pipeline.data.feed.loader import eval_batches
from pipeline.data.images.codec import encode
from pipeline.data.shards.shard_set import ShardSet
from pipeline.evaluation.passes import pixels_of, torch_threads
from pipeline.model.saved import load_model
from schemas.errors import OutOfMemoryError, PausedError, SpecError
from schemas.evaluation import EvaluateSpec
from schemas.manifest import DATASET_FOLDER
from schemas.runs import InputArtifact, StageRequest
from schemas.training import FinetuneSpec, PretrainSpec
from tests.support import foreign
from tests.support.commands import answer
from tests.support.stages import StageRun, run_stage

pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")

COMMON: dict[str, Any] = {
    "data": "corpus",
    "optim": {"peak_lr": 1e-2, "warmup_steps": 2, "weight_decay": 0.1},
    "batch": {"global_samples": 12},
    "duration": {"steps": 4},
    "checkpoint": {"every_steps": 3},
    "resources": {"engine": "torch"},
}
RESNET = {"type": "resnet", "blocks": [1, 1], "width": 32, "image_px": 16}


def pretrain(folder: Path, corpus: InputArtifact, model: dict[str, Any]) -> StageRun:
    spec = PretrainSpec.parse({**COMMON, "model": model})
    return run_stage(train.run, spec, folder, inputs={"data": corpus}, seed=3)


@pytest.fixture(scope="module")
def pretrained(corpus: InputArtifact, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return pretrain(tmp_path_factory.mktemp("resnet") / "pretrain", corpus, RESNET)


def finetune(folder: Path, corpus: InputArtifact, start: StageRun, **change: object) -> StageRun:
    spec = FinetuneSpec.parse({**COMMON, "init": "start", "model": change})
    inputs = {"data": corpus, "init": start.at(None)}
    return run_stage(train.run, spec, folder, inputs=inputs, seed=3)


def test_a_resnet_is_trained_carried_on_at_another_size_and_measured(
    corpus: InputArtifact, pretrained: StageRun, tmp_path: Path
) -> None:
    assert any("trains a ResNet of [1, 1] units, width 32" in line for line in pretrained.said)
    tuned = finetune(tmp_path / "tuned", corpus, pretrained, image_px=24)
    model, saved = load_model(tuned.path / "model")
    assert (saved.spec.type, saved.spec.image_px, saved.spec.num_classes) == ("resnet", (24, 24), 3)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert tuned.output.metrics["model/parameters_count"] == count
    measured = run_stage(
        evaluate.run,
        EvaluateSpec.parse({"data": "corpus@train", "model": "tuned"}),
        tmp_path / "accuracy",
        inputs={"data": corpus, "model": tuned.at(None)},
    )
    assert measured.output.metrics["train/images_count"] == 24


def test_a_fine_tuning_starts_with_the_given_weights_and_a_zero_head(
    corpus: InputArtifact, pretrained: StageRun, tmp_path: Path
) -> None:
    still = {"optim": {**COMMON["optim"], "peak_lr": 1e-12}}
    spec = FinetuneSpec.parse({**COMMON, **still, "init": "start"})
    inputs = {"data": corpus, "init": pretrained.at(None)}
    tuned = run_stage(train.run, spec, tmp_path / "tuned", inputs=inputs, seed=9)
    before, after = (
        load_file(run.path / "model" / "model.safetensors") for run in (pretrained, tuned)
    )
    assert before.keys() == after.keys()
    assert before["head.weight"].any()
    assert after["head.weight"].abs().max() < 1e-9
    for name in before.keys() - {"head.weight", "head.bias"}:
        torch.testing.assert_close(after[name], before[name])


def test_the_same_seed_trains_the_same_resnet(
    corpus: InputArtifact, pretrained: StageRun, tmp_path: Path
) -> None:
    again = pretrain(tmp_path / "again", corpus, RESNET)
    files = [run.path / "model" / "model.safetensors" for run in (pretrained, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_a_vit_alone_has_cannot_be_changed_of_a_resnet(
    corpus: InputArtifact, pretrained: StageRun, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=r"model.drop_path is not a field of a model of type resn"):
        finetune(tmp_path / "tuned", corpus, pretrained, drop_path=0.1)


def test_a_resnet_is_shown_and_exported(pretrained: StageRun, tmp_path: Path) -> None:
    folder = str(pretrained.path / "model")
    document = json.loads(answer("model", "info", folder, "--output", "json"))
    assert (document["spec"]["type"], document["layout"]) == ("resnet", "safetensors")
    assert document["parameters"] == pretrained.output.metrics["model/parameters_count"]
    assert "ResNet, units [1, 1], width 32" in answer("model", "info", folder)
    file = str(tmp_path / "resnet.safetensors")
    answer("model", "export", folder, "--layout", "safetensors", "--out", file)
    assert json.loads(answer("model", "info", file, "--output", "json"))["flops"] > 0
    with pytest.raises(SpecError, match="the layout timm is for ViTs"):
        answer("model", "export", folder, "--layout", "timm", "--out", str(tmp_path / "x"))


def test_a_resnet_names_what_is_on_an_image_and_draws_no_attention(
    pretrained: StageRun, tmp_path: Path
) -> None:
    image = tmp_path / "photo.png"
    image.write_bytes(encode(np.zeros((20, 30, 3), np.uint8), "png", quality=0))
    told = answer("predict", str(pretrained.path / "model"), str(image), "--output", "json")
    document = json.loads(told)
    assert len(document["images"][0]["top"]) == 3
    assert document["images"][0]["overlay"] is None
    assert document["notes"] == ["no attention is drawn: a model of type resnet has no attention"]


FOREIGN = {
    "timm": {
        "type": "timm",
        "name": "swin_tiny_patch4_window7_224",
        "image_px": 16,
        "drop_path": 0.2,
        "options": {"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
    },
    "batch_norm": {"type": "timm", "name": "resnet10t", "image_px": 16},
    "hf": {
        "type": "hf",
        "model_type": "convnext",
        "image_px": 16,
        "options": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    },
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_librarys_model_is_trained_carried_on_and_measured(
    name: str, corpus: InputArtifact, tmp_path: Path
) -> None:
    foreign.timm()
    start = pretrain(tmp_path / "start", corpus, FOREIGN[name])
    assert sum(" of timm" in line or " of transformers" in line for line in start.said) == 1
    tuned = finetune(tmp_path / "tuned", corpus, start)
    weights = load_file(tuned.path / "model" / "model.safetensors")
    assert weights["head.weight"].any()
    assert any("running_mean" in key for key in weights) is (name == "batch_norm")
    measured = run_stage(
        evaluate.run,
        EvaluateSpec.parse({"data": "corpus@train", "model": "tuned"}),
        tmp_path / "accuracy",
        inputs={"data": corpus, "model": tuned.at(None)},
    )
    model, saved = load_model(tuned.path / "model")
    assert measured.output.metrics["train/images_count"] == 24
    predicted = pa.ipc.open_file(measured.path / "predictions.arrow").read_all()
    split = ShardSet.open(Path(corpus.path) / DATASET_FOLDER).split("train")
    (batch,) = eval_batches(split, image_px=model.spec.image_px, batch_samples=64, threads=1)
    with torch.inference_mode(), torch_threads(1):
        again = model(pixels_of(batch, model))
    assert predicted["logits"].to_pylist() == again.tolist()
    assert saved.spec.type == FOREIGN[name]["type"]


@pytest.mark.parametrize("name", ["timm", "batch_norm"])
def test_an_interrupted_training_of_a_librarys_model_makes_the_same_bytes(
    name: str, corpus: InputArtifact, tmp_path: Path
) -> None:
    foreign.timm()
    whole = pretrain(tmp_path / "whole", corpus, FOREIGN[name])
    spec = PretrainSpec.parse({**COMMON, "model": FOREIGN[name]})

    def stopped_and_resumed(request: StageRequest, tools: StageTools) -> StageOutput:
        pause = tmp_path / "pause"
        pause.touch()
        with pytest.raises(PausedError):
            train.run(request.revise(pause_path=str(pause)), tools)
        pause.unlink()
        return train.run(request, tools)

    again = run_stage(
        stopped_and_resumed, spec, tmp_path / "again", inputs={"data": corpus}, seed=3
    )
    files = [run.path / "model" / "model.safetensors" for run in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_running_statistics_of_one_batch_are_not_learned_from_parts_of_it(
    corpus: InputArtifact, tmp_path: Path
) -> None:
    foreign.timm()
    resources = {"engine": "torch", "micro_batch": 6}
    for name, is_refused in (("batch_norm", True), ("timm", False)):
        model = {"model": FOREIGN[name]}
        spec = PretrainSpec.parse({**COMMON, **model, "resources": resources})
        folder, inputs = tmp_path / name, {"data": corpus}
        if not is_refused:
            run_stage(train.run, spec, folder, inputs=inputs, seed=3)
            continue
        with pytest.raises(SpecError, match=r"resources.workers 1 and without resources.micro_b"):
            run_stage(train.run, spec, folder, inputs=inputs, seed=3)


def test_short_memory_does_not_split_the_batch_of_running_statistics(
    corpus: InputArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign.timm()

    def short(_plan: object) -> dict[str, float]:
        raise MemoryError("no room")

    monkeypatch.setattr(train, "run_alone", short)
    with pytest.raises(OutOfMemoryError):
        pretrain(tmp_path / "start", corpus, FOREIGN["batch_norm"])


def test_parameters_of_a_librarys_model_are_counted_by_the_library(
    corpus: InputArtifact, tmp_path: Path
) -> None:
    foreign.timm()
    start = pretrain(tmp_path / "start", corpus, FOREIGN["hf"])
    folder = str(start.path / "model")
    document = json.loads(answer("model", "info", folder, "--output", "json"))
    assert document["parameters"] == start.output.metrics["model/parameters_count"]
    assert document["flops"] is None
    text = answer("model", "info", folder)
    assert "convnext of transformers, depths [1,1], hidden_sizes [8,16]" in " ".join(text.split())
    assert "not known" in text

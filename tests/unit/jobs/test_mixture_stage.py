"""Training on a mixture, with mixup and with tails, on the reference engine."""

from pathlib import Path

import pytest
import torch

from jobs import train
from pipeline.data.shards.shard_set import ShardSet
from pipeline.model.saved import load_weights
from schemas.manifest import DATASET_FOLDER
from schemas.runs import InputArtifact
from schemas.spec import digest_of
from schemas.training import FinetuneSpec, PretrainSpec
from tests.support.corpora import write_folder
from tests.support.datasets import build, ingest_spec, small_set
from tests.support.stages import StageRun, run_stage

SPEC = PretrainSpec.parse(
    {
        "data": ["first", "second"],
        "mixture": [{"from_step": 0, "weights": [2, 1]}, {"from_step": 4, "weights": [1, 1]}],
        "augment": {
            "crop": "inception",
            "randaugment": {"layers": 1, "magnitude": 9},
            "mixup_alpha": 0.2,
            "cutmix_alpha": 1.0,
            "label_smoothing": 0.1,
        },
        "optim": {"peak_lr": 1e-3},
        "batch": {"global_samples": 12},
        "duration": {"steps": 8},
        "checkpoint": {"every_steps": 3},
        "resources": {"engine": "torch", "micro_batch": 4},
        "model": {
            "width": 24,
            "depth": 1,
            "num_heads": 3,
            "mlp_dim": 32,
            "patch_px": 4,
            "image_px": 8,
        },
    }
)

pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, InputArtifact]:
    first = tmp_path_factory.mktemp("first")
    small_set(first, per_class=8)
    second = tmp_path_factory.mktemp("second")
    folder = write_folder(second / "raw", per_class=5, seed=1)
    (folder / "wave").rename(folder / "zigzag")
    build(ingest_spec(folder), second)
    return {
        f"data[{index}]": artifact(where.rename(where.with_suffix(".set")))
        for index, where in enumerate((first, second))
    }


def artifact(where: Path) -> InputArtifact:
    (where / "out").rename(where / DATASET_FOLDER)
    return InputArtifact(
        stage=where.stem,
        kind="ingest",
        artifact="ingest-1",
        digest="a" * 64,
        path=str(where),
        split="train",
        metrics={},
    )


def trained(spec: PretrainSpec, folder: Path, inputs: dict[str, InputArtifact]) -> StageRun:
    return run_stage(train.run, spec, folder, inputs=inputs, seed=3)


def test_a_model_of_a_mixture_knows_the_classes_of_all_sets(
    inputs: dict[str, InputArtifact], tmp_path: Path
) -> None:
    run = trained(SPEC, tmp_path / "run", inputs)
    weights, saved = load_weights(run.path / "model")
    assert saved.class_names == ("circle", "stripes", "wave", "zigzag")
    digests = [ShardSet.open(Path(it.path) / DATASET_FOLDER).digest for it in inputs.values()]
    assert saved.data_digest == digest_of(digests)
    halves = trained(
        SPEC.revise(resources=SPEC.resources.revise(loader_threads=1)), tmp_path / "again", inputs
    )
    again, _ = load_weights(halves.path / "model")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("tail", ["pad", "exact"])
def test_a_tail_is_trained_on(inputs: dict[str, InputArtifact], tmp_path: Path, tail: str) -> None:
    fields = {**SPEC.dump(), "data": "first", "mixture": None, "duration": {"epochs": 2}}
    fields["batch"] = {"global_samples": 16, "tail": tail}
    run = trained(PretrainSpec.parse(fields), tmp_path / "run", {"data": inputs["data[0]"]})
    assert run.output.metrics["train/steps_count"] == 4.0, "24 images are two steps of 16"


def test_a_search_with_mixing_takes_even_batches(
    inputs: dict[str, InputArtifact], tmp_path: Path
) -> None:
    fields = {**SPEC.dump(), "data": "first", "mixture": None, "kind": "finetune", "init": None}
    for name in ("objective", "continue"):
        del fields[name]
    fields["batch"] = {"global_samples": 24}
    fields["resources"] = {"engine": "torch"}
    fields["search"] = {"peak_lr": [1e-3], "steps": [2], "holdout_ratio": 0.3}
    spec = FinetuneSpec.parse(fields)
    run = run_stage(train.run, spec, tmp_path / "run", inputs={"data": inputs["data[0]"]}, seed=3)
    assert run.output.metrics["train/steps_count"] == 2.0

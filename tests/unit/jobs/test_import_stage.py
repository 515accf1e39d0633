"""A stage of kind `import`: keyed by the files it reads, and a start for other stages."""

import os
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from jobs import import_weights, ingest, train
from jobs.stage_sources import fingerprint, source_bytes
from jobs.target import Target
from jobs.wiring import planning_facts, stage_costs
from jobs.workspace import open_workspace
from pipeline.dag.graph import expand
from pipeline.dag.plan import plan
from pipeline.dag.selection import Selection
from pipeline.model.interchange import save
from pipeline.model.saved import load_weights
from pipeline.model.vit import build
from schemas.data import IngestSpec
from schemas.errors import SpecError
from schemas.interchange import ImportSpec, WeightsSource
from schemas.training import FinetuneSpec
from tests.support.models import tiny_spec
from tests.support.stages import run_stage

TEXT = """\
name: borrowed
seed: 1
stages:
  digits:
    kind: ingest
    source: {type: sklearn, name: digits}
    split: {test_ratio: 0.2}
    image: {encoding: png}
  vit: {kind: import, source: {layout: hf, uri: weights}}
  tuned:
    kind: finetune
    data: digits
    init: vit
    model: {image_px: 12}
    optim: {peak_lr: 1.0e-3}
    batch: {global_samples: 8}
    duration: {steps: 2}
    resources: {engine: torch}
  accuracy: {kind: evaluate, data: digits@test, model: vit}
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = build(tiny_spec(image_px=(8, 8)), seed=4)
    save(tmp_path / "weights", "hf", model.spec, dict(model.named_parameters()))
    return tmp_path / "weights"


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_fine_tuning_starts_from_imported_weights(weights: Path, tmp_path: Path) -> None:
    spec = ImportSpec.parse({"source": {"layout": "hf", "uri": str(weights)}})
    made = run_stage(import_weights.run, spec, tmp_path / "vit")
    start, saved = load_weights(made.path / "model")
    assert saved.origin is not None
    assert sorted(saved.origin.files) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    digits = run_stage(
        ingest.run,
        IngestSpec.parse(
            {
                "source": {"type": "sklearn", "name": "digits"},
                "select": {"classes": ["0", "1"], "per_class": {"train": 8}},
                "split": {"test_ratio": 0.2},
                "image": {"encoding": "png"},
            }
        ),
        tmp_path / "digits",
    )
    fields = {
        "data": "digits",
        "init": "vit",
        "model": {"image_px": 12},
        "optim": {"peak_lr": 1e-9},
        "batch": {"global_samples": 8},
        "duration": {"steps": 1},
        "resources": {"engine": "torch"},
    }
    inputs = {"data": digits.at("train"), "init": made.at(None)}
    tuned = run_stage(train.run, FinetuneSpec.parse(fields), tmp_path / "tuned", inputs=inputs)
    ended, ours = load_weights(tuned.path / "model")
    assert ours.init_digest == made.artifact.digest
    assert ours.spec == saved.spec.revise(num_classes=2, image_px=(12, 12))
    torch.testing.assert_close(ended["patch.weight"], start["patch.weight"], rtol=0, atol=1e-6)


def target(tmp_path: Path, *overrides: str) -> Target:
    (tmp_path / "run.yaml").write_text(TEXT.replace("uri: weights", f"uri: {tmp_path}/weights"))
    return Target(str(tmp_path / "run.yaml"), tmp_path / "space", None, overrides)


def keys(wanted: Target) -> dict[str, str | None]:
    experiment, workspace = wanted.experiment(), open_workspace(wanted.workspace)
    facts = planning_facts(experiment, wanted.spec, workspace)
    planned = plan(expand(experiment), facts, selection=Selection())
    return {item.decision.stage: item.decision.key for item in planned}


def test_key_follows_the_files_and_not_their_place(weights: Path, tmp_path: Path) -> None:
    before = keys(target(tmp_path))
    assert before["vit"] is not None
    weights.rename(tmp_path / "elsewhere")
    moved = keys(target(tmp_path, f"vit.source.uri={tmp_path}/elsewhere"))
    assert moved == before
    os.utime(tmp_path / "elsewhere/model.safetensors", ns=(1, 1))
    touched = keys(target(tmp_path, f"vit.source.uri={tmp_path}/elsewhere"))
    assert touched["vit"] != before["vit"]
    assert touched["digits"] == before["digits"]
    other = keys(target(tmp_path, f"vit.source.uri={tmp_path}/elsewhere", "vit.assume.gelu=tanh"))
    assert other["vit"] not in (before["vit"], touched["vit"])


def test_planning_costs_what_can_be_known(weights: Path, tmp_path: Path) -> None:
    graph = expand(target(tmp_path).experiment())
    costs = {node.name: stage_costs(graph)(node) for node in graph.nodes}
    source = WeightsSource(layout="hf", uri=str(weights))
    assert costs["vit"] == {"disk_bytes": 2.0 * source_bytes(source)}
    assert costs["tuned"] == {}
    assert "parameters" not in costs["accuracy"]
    assert len(fingerprint(source)) == 64


def test_weights_that_are_not_there_are_an_error_of_the_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there are no weights in") as caught:
        keys(target(tmp_path))
    assert caught.value.where == "stages.vit.source"


def test_weights_behind_a_uri_are_refused() -> None:
    with pytest.raises(ValidationError, match="is no path; fetch the weights"):
        WeightsSource(layout="hf", uri="s3://bucket/vit")

"""An ONNX graph of ours gives the logits of the eager model, for any number of images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from pipeline.model.backbone import Backbone
from pipeline.model.building import build as build_any
from pipeline.model.interchange import save
from pipeline.model.interchange_names import parameter_shapes
from pipeline.model.vit import build
from schemas.backbones import BackboneSpec, HFModel, ResNetModel, TimmModel
from schemas.errors import SpecError
from schemas.model import ModelSpec, ResNetStemSpec
from tests.support import foreign
from tests.support.foreign import noise, randomise
from tests.support.models import tiny_spec


def test_a_model_beyond_two_gigabytes_is_refused(tmp_path: Path) -> None:
    spec = ModelSpec(variant="H", patch_px=14, image_px=224).to_vit(num_classes=10)
    with pytest.raises(SpecError, match=r"at most 2 GiB, and these weights take 2.3 GiB"):
        save(tmp_path / "vit.onnx", "onnx", spec, parameter_shapes(spec))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "gap", "position": "sincos_2d", "norm_at": "pooled"},
        {"pool": "map", "gelu": "tanh", "registers": 2},
        {"layer_scale": 0.5, "qk_norm": True, "position": "learned_2d"},
        {"distillation_token": True, "position_at": "every_layer"},
        {"position": "relative", "num_classes": 0},
        {"axial": True, "pool": "gap"},
        {"stem": ResNetStemSpec(blocks=(1, 2), width=32), "patch_px": 8, "image_px": (16, 24)},
    ],
)
def test_logits_are_those_of_eager(tmp_path: Path, changes: dict[str, Any]) -> None:
    pytest.importorskip("onnxscript", reason="extra `onnx`")
    runtime = pytest.importorskip("onnxruntime", reason="extra `parity`")
    model = build(tiny_spec(**changes), seed=0).eval()
    randomise(model, seed=1)
    _same_logits(model, tmp_path, runtime)


@pytest.mark.parametrize(
    "spec",
    [
        ResNetModel(blocks=(1, 2), width=32, image_px=(40, 32)),
        TimmModel(
            name="swin_tiny_patch4_window7_224",
            image_px=16,
            options={"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2},
        ),
        TimmModel(name="resnet10t", image_px=32),
        HFModel(
            model_type="convnext",
            image_px=16,
            options={"hidden_sizes": (8, 16), "depths": (1, 1), "num_stages": 2},
        ),
    ],
    ids=lambda spec: spec.type,
)
def test_logits_of_other_backbones_are_those_of_eager(
    tmp_path: Path, spec: ResNetModel | TimmModel | HFModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript", reason="extra `onnx`")
    runtime = pytest.importorskip("onnxruntime", reason="extra `parity`")
    if spec.type == "timm":
        foreign.timm()
    if spec.type == "hf":
        foreign.transformers(monkeypatch)
    model = build_any(spec.resolved(num_classes=5), seed=0).eval()
    randomise(model, seed=1)
    _same_logits(model, tmp_path, runtime)


def _same_logits(model: Backbone, folder: Path, runtime: Any) -> None:
    file = folder / "model.onnx"
    save(file, "onnx", model.spec, model.state_dict(), class_names=("a", "b"))
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for samples in (1, 3):
        pixels = noise(model.spec.image_px, seed=2, samples=samples)
        (found,) = session.run(None, {"pixels": pixels.numpy()})
        with torch.no_grad():
            wanted = model(pixels).numpy()
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1e-4
    properties = session.get_modelmeta().custom_metadata_map
    said = TypeAdapter(BackboneSpec).validate_json(properties["vitrail_spec"])
    assert said == model.spec
    assert json.loads(properties["class_names"]) == ["a", "b"]
    assert properties["probabilities"] == "softmax"
    assert [it.name for it in session.get_outputs()] == [
        "logits" if model.spec.num_classes else "features"
    ]

"""An ONNX graph of ours gives the logits of the eager model, for any number of images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.model.interchange import save
from pipeline.model.interchange_names import parameter_shapes
from pipeline.model.vit import build
from schemas.errors import SpecError
from schemas.model import ModelSpec, ResNetStemSpec, ViTSpec
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
    file = tmp_path / "vit.onnx"
    save(file, "onnx", model.spec, dict(model.named_parameters()), class_names=("a", "b"))
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for samples in (1, 3):
        pixels = noise(model.spec.image_px, seed=2, samples=samples)
        (found,) = session.run(None, {"pixels": pixels.numpy()})
        with torch.no_grad():
            wanted = model(pixels).numpy()
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1e-4
    properties = session.get_modelmeta().custom_metadata_map
    assert ViTSpec.model_validate_json(properties["vitrail_spec"]) == model.spec
    assert json.loads(properties["class_names"]) == ["a", "b"]
    assert [it.name for it in session.get_outputs()] == [
        "logits" if model.spec.num_classes else "features"
    ]

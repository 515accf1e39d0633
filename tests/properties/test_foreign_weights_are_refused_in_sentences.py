"""Whatever is wrong with a file of weights, it is read or refused, and never anything else."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.model.interchange import load, save
from pipeline.model.vit import build
from schemas.errors import VitrailError
from schemas.model import ResNetStemSpec
from tests.support.models import tiny_spec

SHAPES = st.lists(st.integers(0, 5), max_size=5).map(tuple)
STEM = ResNetStemSpec(blocks=(1, 1), width=32)
SPECS: dict[str, dict[str, Any]] = {
    "google": {"stem": STEM, "patch_px": 8, "image_px": (16, 16)},
    "timm": {"registers": 2, "layer_scale": 0.5, "pool": "cls"},
    "hf": {"distillation_token": True},
}
CONFIGS: dict[str, Any] = {
    "hidden_size": [0, -8, "24", 25, None],
    "num_attention_heads": [0, 5, 7, "3"],
    "num_hidden_layers": [0, 1, 3],
    "patch_size": ["4", 5, [4, 2], [], None],
    "image_size": ["8", 9, [8], [8, 8, 8], {}],
    "hidden_act": ["relu", None, 3],
    "layer_norm_eps": ["x", -1.0, 0],
    "model_type": ["bert", None, 3],
    "id2label": [{"a": "b"}, [], "x", {"0": 3}],
}


def damaged(names: list[str]) -> st.SearchStrategy[dict[str, tuple[int, ...] | None]]:
    """Some tensors, each of another shape or (None) gone."""
    return st.dictionaries(st.sampled_from(names), st.none() | SHAPES, min_size=1, max_size=3)


def refused_or_read(path: Path) -> None:
    with contextlib.suppress(VitrailError):
        load(path)


@pytest.mark.parametrize("layout", list(SPECS))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tensors_of_any_shape(tmp_path: Path, layout: Any, data: st.DataObject) -> None:
    folder = tmp_path / "whole"
    target = folder / ("vit.npz" if layout == "google" else "vit")
    if not folder.exists():
        folder.mkdir()
        spec = tiny_spec(**{"mlp_dim": 48, "image_px": (8, 8), "num_heads": 3, **SPECS[layout]})
        save(target, layout, spec, dict(build(spec, seed=0).named_parameters()))
    if layout == "google":
        arrays = dict(np.load(target))
        changes = data.draw(damaged(sorted(arrays)))
        kept = {name: it for name, it in arrays.items() if changes.get(name, 0) is not None}
        made = {name: np.zeros(it, np.float32) for name, it in changes.items() if it is not None}
        np.savez(tmp_path / "broken.npz", **(kept | made))
        refused_or_read(tmp_path / "broken.npz")
        return
    tensors = load_file(target / "model.safetensors")
    changes = data.draw(damaged(sorted(tensors)))
    kept = {name: it for name, it in tensors.items() if changes.get(name, 0) is not None}
    zeros = {name: torch.zeros(it) for name, it in changes.items() if it is not None}
    (tmp_path / "broken").mkdir(exist_ok=True)
    save_file(kept | zeros, tmp_path / "broken/model.safetensors")
    (tmp_path / "broken/config.json").write_text((target / "config.json").read_text())
    refused_or_read(tmp_path / "broken")


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in CONFIGS.items() for value in values]
)
def test_configurations_of_any_content(tmp_path: Path, name: str, value: Any) -> None:
    spec = tiny_spec(image_px=(8, 8))
    save(tmp_path / "vit", "hf", spec, dict(build(spec, seed=0).named_parameters()))
    config = json.loads((tmp_path / "vit/config.json").read_text())
    (tmp_path / "vit/config.json").write_text(json.dumps({**config, name: value}))
    refused_or_read(tmp_path / "vit")


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "x", "pretrained_cfg": None},
        {"architecture": "x", "pretrained_cfg": {"mean": 3, "std": "x"}},
        {"architecture": "x", "pretrained_cfg": {"input_size": "abc"}},
        {"architecture": "x", "model_args": {"img_size": "8", "num_heads": "3"}},
        {"architecture": "x", "model_args": [], "global_pool": 7},
        {"architecture": "x", "model_args": {"global_pool": "avgmax", "act_layer": "relu"}},
    ],
)
def test_configurations_of_timm_of_any_content(tmp_path: Path, config: dict[str, Any]) -> None:
    spec = tiny_spec(image_px=(8, 8))
    save(tmp_path / "vit", "timm", spec, dict(build(spec, seed=0).named_parameters()))
    (tmp_path / "vit/config.json").write_text(json.dumps(config))
    refused_or_read(tmp_path / "vit")

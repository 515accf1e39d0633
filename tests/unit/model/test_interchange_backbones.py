"""Folders of timm and `transformers` that come in as the library's own model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from jobs import import_weights
from pipeline.model.interchange import Loaded, load
from pipeline.model.saved import load_model
from schemas.errors import SpecError, UsageError
from schemas.interchange import Assumptions, ImportSpec
from tests.support import foreign
from tests.support.stages import run_stage
from tests.unit.model.test_backbones import DINO, SWIN

HEADED = "ForImageClassification"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "convnext": ("ConvNext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
    "swin": ("Swin", SWIN),
    "resnet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    "dinov2": ("Dinov2", {**DINO, "layerscale_value": 0.3}),
}
PREPROCESSOR = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}


def folder_of(
    kind: str,
    where: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    suffix: str = HEADED,
) -> tuple[nn.Module, Path]:
    """A model of `transformers` with weights of its own, and the folder it wrote."""
    library = foreign.transformers(monkeypatch)
    name, fields = KINDS[kind]
    size = {} if kind == "resnet" else {"image_size": 32}
    names = {0: "cat", 1: "dog", 2: "cow"}
    config = getattr(library, f"{name}Config")(**fields, **size, id2label=names)
    model = getattr(library, f"{name}{suffix}")(config).eval()
    foreign.randomise(model, seed=1)
    folder = foreign.save_theirs(model, where / kind)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return model, folder


def logits_of(found: Loaded, pixels: torch.Tensor) -> torch.Tensor:
    from pipeline.model.building import unfilled

    model = unfilled(found.spec)
    model.load_state_dict(found.weights)
    with torch.no_grad():
        return model.eval()(pixels)


@pytest.mark.parametrize("kind", ["convnext", "swin", "resnet"])
def test_a_folder_with_a_linear_head_gives_the_librarys_logits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    their, folder = folder_of(kind, tmp_path, monkeypatch)
    assume = Assumptions(image_px=32) if kind == "resnet" else None
    found = load(folder, "hf_backbone", assume=assume)
    pixels = foreign.noise((32, 32), seed=3)
    with torch.no_grad():
        expected = their(pixel_values=pixels).logits
    assert foreign.relative_error(logits_of(found, pixels), expected) < 1e-5
    assert found.class_names == ("cat", "dog", "cow")
    assert found.spec.pixel_mean == (0.4, 0.5, 0.6)
    assert {"config.json", "model.safetensors"} <= found.origin.files.keys()
    assert not found.origin.notes


def test_a_head_on_other_features_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    their, folder = folder_of("dinov2", tmp_path, monkeypatch)
    found = load(folder, "hf_backbone")
    pixels = foreign.noise((32, 32), seed=3)
    with torch.no_grad():
        expected = their.get_submodule("dinov2")(pixel_values=pixels).pooler_output
    assert foreign.relative_error(logits_of(found, pixels), expected) < 1e-5
    assert found.spec.num_classes == 0
    assert found.origin.dropped == ("classifier.bias", "classifier.weight")
    assert "it was left out" in found.origin.notes[0]


def test_a_folder_without_a_head_gives_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    their, folder = folder_of("swin", tmp_path, monkeypatch, suffix="Model")
    found = load(folder, "hf_backbone")
    pixels = foreign.noise((32, 32), seed=3)
    with torch.no_grad():
        expected = their(pixel_values=pixels).pooler_output
    assert foreign.relative_error(logits_of(found, pixels), expected) < 1e-5


def timm_folder(where: Path, name: str, **options: Any) -> tuple[nn.Module, Path]:
    """A model of timm, and the folder that its hub would hold."""
    model = foreign.timm().create_model(name, num_classes=3, **options).eval()
    foreign.randomise(model, seed=1)
    where.mkdir()
    save_file(model.state_dict(), where / "model.safetensors")
    said = {
        "architecture": name,
        "num_classes": 3,
        "label_names": ["cat", "dog", "cow"],
        "model_args": {key: value for key, value in options.items() if key != "img_size"},
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (where / "config.json").write_text(json.dumps(said))
    return model, where


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}),
        ("swin_tiny_patch4_window7_224", {**SWIN, "img_size": 32}),
        ("resnet10t", {}),
    ],
)
def test_a_folder_of_timm_gives_its_logits_and_starts_a_stage(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    their, folder = timm_folder(tmp_path / "theirs", name, **options)
    spec = ImportSpec.parse({"source": {"layout": "timm_backbone", "uri": str(folder)}})
    assert spec.needed_libraries()[-1] == "timm"
    made = run_stage(import_weights.run, spec, tmp_path / "made")
    model, saved = load_model(made.path / "model")
    pixels = foreign.noise((32, 32), seed=3)
    with torch.no_grad():
        assert foreign.relative_error(model(pixels), their(pixels)) < 1e-5
    assert saved.class_names == ("cat", "dog", "cow")


def test_what_is_no_whole_model_of_the_library_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = folder_of("convnext", tmp_path, monkeypatch)
    with pytest.raises(SpecError, match="num_heads cannot be assumed of a library's model"):
        load(folder, "hf_backbone", assume=Assumptions(num_heads=3))
    weights = load_file(folder / "model.safetensors")
    lacking = next(name for name in weights if "layernorm.weight" in name)
    del weights[lacking]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SpecError, match=r"not those of convnext of transformers \(missing: "):
        load(folder, "hf_backbone")
    (folder / "config.json").write_text('{"model_type": "bert", "image_size": 32}')
    with pytest.raises(SpecError, match="no model of images of the type 'bert'"):
        load(folder, "hf_backbone")
    (folder / "config.json").write_text("{}")
    with pytest.raises(SpecError, match="the folder does not say the input size"):
        load(folder, "hf_backbone")
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"is a folder with config.json"):
        load(folder, "hf_backbone")


def test_weights_of_another_model_of_timm_are_listed(tmp_path: Path) -> None:
    _, folder = timm_folder(tmp_path / "theirs", "resnet10t")
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "architecture": "convnext_atto"}))
    with pytest.raises(SpecError, match=r"timm's convnext_atto \(missing: .*; unexpected: .*conv1"):
        load(folder, "timm_backbone")
    (folder / "config.json").write_text(json.dumps({**said, "architecture": None}))
    with pytest.raises(SpecError, match="something of name that is not known"):
        load(folder, "timm_backbone")

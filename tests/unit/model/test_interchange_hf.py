"""Hugging Face's models and ours compute the same from the same files, both ways."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.model.interchange import load, save
from pipeline.model.noise import ForwardNoise
from pipeline.model.positions import resize_positions
from pipeline.model.transfer import adapt
from pipeline.model.vit import ViT, build
from schemas.errors import SpecError
from schemas.interchange import Assumptions
from schemas.model import ViTSpec
from tests.support.foreign import (
    DINOV2,
    noise,
    randomise,
    relative_error,
    save_theirs,
    transformers,
)
from tests.support.models import tiny_spec

BOUND = 1e-5
SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "attn_implementation": "sdpa",
}


def ours(folder: Path, **assume: Any) -> tuple[ViT, ViTSpec]:
    loaded = load(folder, assume=Assumptions(**assume))
    return with_weights(loaded.spec, loaded.weights), loaded.spec


def with_weights(spec: ViTSpec, weights: dict[str, torch.Tensor]) -> ViT:
    model = ViT(spec)
    model.load_state_dict(weights)
    return model.eval()


def compare_layers(model: ViT, theirs: Any, pixels: torch.Tensor, **options: Any) -> None:
    """Hidden states after each block, and the last one after the norm."""
    with torch.no_grad():
        found = theirs(pixels, output_hidden_states=True, **options)
        after = model.hidden_states(pixels)
        last = model.forward_tokens(pixels)
    wanted = found.hidden_states[1:]
    assert len(after) == len(wanted)
    assert [relative_error(*pair) <= BOUND for pair in zip(after, wanted, strict=True)] == [
        True
    ] * len(after)
    if hasattr(found, "last_hidden_state"):
        assert relative_error(last, found.last_hidden_state) <= BOUND


def test_vit_with_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = transformers(monkeypatch)
    config = hf.ViTConfig(**SMALL, intermediate_size=96, id2label={0: "cat", 1: "dog", 2: "owl"})
    theirs = hf.ViTForImageClassification(config).eval()
    randomise(theirs, seed=1)
    loaded = load(save_theirs(theirs, tmp_path / "vit"))
    assert (loaded.spec.layer_norm_eps, loaded.spec.gelu) == (1e-12, "erf")
    assert loaded.class_names == ("cat", "dog", "owl")
    assert loaded.origin.assumed == (
        "position_resize hf",
        "pixel_mean 0.5 x 0.5 x 0.5",
        "pixel_std 0.5 x 0.5 x 0.5",
    )
    pixels = noise((32, 32), seed=2)
    compare_layers(with_weights(loaded.spec, loaded.weights), theirs, pixels)
    with torch.no_grad():
        logits = with_weights(loaded.spec, loaded.weights)(pixels)
        assert relative_error(logits, theirs(pixels).logits) <= BOUND


def test_backbone_with_a_pooler_has_a_tanh_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = transformers(monkeypatch)
    theirs = hf.ViTModel(hf.ViTConfig(**SMALL, intermediate_size=96)).eval()
    randomise(theirs, seed=1)
    model, spec = ours(save_theirs(theirs, tmp_path / "vit"))
    assert (spec.hidden_head, spec.num_classes) == (True, 0)
    pixels = noise((32, 32), seed=2)
    with torch.no_grad():
        assert relative_error(model(pixels), theirs(pixels).pooler_output) <= BOUND


def test_mae_encoder_sees_the_same_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = transformers(monkeypatch)
    config = hf.ViTMAEConfig(
        **SMALL,
        intermediate_size=96,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    theirs = hf.ViTMAEForPreTraining(config).eval()
    position = theirs.vit.embeddings.position_embeddings.clone()
    randomise(theirs, seed=1)
    theirs.vit.embeddings.position_embeddings.data.copy_(position)
    loaded = load(save_theirs(theirs, tmp_path / "mae"))
    assert all(name.startswith("decoder.") for name in loaded.origin.dropped)
    assert "decoder.mask_token" in loaded.origin.dropped
    assert loaded.spec.position == "learned_1d"
    assert torch.equal(loaded.weights["position"], position[0])
    model, pixels = with_weights(loaded.spec, loaded.weights), noise((32, 32), seed=2)
    order = torch.rand(2, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = theirs.vit(pixels, noise=order, output_hidden_states=True)
        kept = order.argsort(dim=1)[:, :4]
        tokens = model.forward_tokens(pixels, ForwardNoise(kept_patches_BM=kept))
    assert relative_error(tokens, found.last_hidden_state) <= BOUND


def test_distilled_deit_means_both_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = transformers(monkeypatch)
    config = hf.DeiTConfig(**SMALL, intermediate_size=96, id2label={0: "a", 1: "b", 2: "c"})
    theirs = hf.DeiTForImageClassificationWithTeacher(config).eval()
    randomise(theirs, seed=1)
    model, spec = ours(save_theirs(theirs, tmp_path / "deit"))
    assert spec.distillation_token
    pixels = noise((32, 32), seed=2)
    compare_layers(model, theirs, pixels)
    with torch.no_grad():
        assert relative_error(model(pixels), theirs(pixels).logits) <= BOUND


def test_deit_with_one_head_keeps_its_second_token_as_a_register(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = transformers(monkeypatch)
    theirs = hf.DeiTForImageClassification(hf.DeiTConfig(**SMALL, intermediate_size=96)).eval()
    randomise(theirs, seed=1)
    model, spec = ours(save_theirs(theirs, tmp_path / "deit"))
    assert (spec.distillation_token, spec.registers) == (False, 1)
    pixels = noise((32, 32), seed=2)
    with torch.no_grad():
        assert relative_error(model(pixels), theirs(pixels).logits) <= BOUND


def test_dinov2_with_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = transformers(monkeypatch)
    config = hf.Dinov2WithRegistersConfig(**SMALL, mlp_ratio=2, num_register_tokens=3)
    theirs = hf.Dinov2WithRegistersModel(config).eval()
    randomise(theirs, seed=1)
    folder = save_theirs(theirs, tmp_path / "dinov2")
    loaded = load(folder)
    assert loaded.origin.dropped == ("embeddings.mask_token",)
    assert loaded.spec.position_resize == "timm"
    compare_layers(with_weights(loaded.spec, loaded.weights), theirs, noise((32, 32), seed=2))
    wider = loaded.spec.revise(image_px=(48, 40))
    compare_layers(
        with_weights(wider, adapt(loaded.weights, loaded.spec, wider)),
        theirs,
        noise((48, 40), seed=3),
    )


@pytest.mark.skipif(not DINOV2.is_dir(), reason="no real DINOv2 beside the project")
@pytest.mark.parametrize("side", [518, 224, 112])
def test_the_real_dinov2(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    hf = transformers(monkeypatch)
    theirs = hf.Dinov2Model.from_pretrained(
        DINOV2, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    loaded = load(DINOV2)
    assert loaded.origin.dropped == ("embeddings.mask_token",)
    assert "numbers were float16; they are float32 here" in loaded.origin.notes
    assert loaded.spec.image_px == (518, 518)
    target = loaded.spec.revise(image_px=(side, side))
    weights = adapt(loaded.weights, loaded.spec, target)
    assert target.position_resize == "hf"
    compare_layers(with_weights(target, weights), theirs, noise((side, side), seed=1, samples=1))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "ViTForImageClassification"),
        ({"num_classes": 0}, "ViTForImageClassification"),
        ({"num_classes": 0, "hidden_head": True}, "ViTModel"),
        ({"gelu": "tanh", "layer_norm_eps": 1e-5}, "ViTForImageClassification"),
        ({"distillation_token": True}, "DeiTForImageClassificationWithTeacher"),
        ({"layer_scale": 0.5}, "Dinov2ForImageClassification"),
        ({"layer_scale": 0.5, "num_classes": 0}, "Dinov2Model"),
        ({"layer_scale": 0.5, "registers": 2}, "Dinov2WithRegistersForImageClassification"),
        ({"layer_scale": 0.5, "registers": 2, "num_classes": 0}, "Dinov2WithRegistersModel"),
    ],
)
def test_transformers_loads_what_we_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: str
) -> None:
    hf = transformers(monkeypatch)
    spec = tiny_spec(**{"mlp_dim": 48, "image_px": (8, 8), **changes})
    model = build(spec, seed=0).eval()
    randomise(model, seed=1)
    names = tuple("abcde"[: spec.num_classes])
    save(tmp_path / "out", "hf", spec, dict(model.named_parameters()), class_names=names)
    theirs, info = getattr(hf, expected).from_pretrained(
        tmp_path / "out", output_loading_info=True, local_files_only=True
    )
    assert not any(info.values())
    pixels = noise((8, 8), seed=2)
    with torch.no_grad():
        found = theirs.eval()(pixels)
        features, logits = model.forward_features(pixels), model(pixels)
    if spec.num_classes:
        assert relative_error(logits, found.logits) <= BOUND
        assert theirs.config.id2label == dict(enumerate(names))
    elif expected == "ViTForImageClassification":
        assert relative_error(features, found.logits) <= BOUND
    else:
        assert relative_error(features, found.pooler_output) <= BOUND


def test_the_processor_beside_a_model_does_what_evaluation_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = transformers(monkeypatch)
    spec = tiny_spec(image_px=(8, 8), pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.4, 0.5, 0.6))
    save(tmp_path / "out", "hf", spec, dict(build(spec, seed=0).named_parameters()))
    processor = hf.AutoImageProcessor.from_pretrained(tmp_path / "out", local_files_only=True)
    image = np.full((30, 40, 3), 51, np.uint8)
    found = processor(images=image, return_tensors="pt")["pixel_values"]
    assert found.shape == (1, 3, 8, 8)
    wanted = [
        (0.2 - mean) / std for mean, std in zip((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), strict=True)
    ]
    assert found.mean(dim=(0, 2, 3)).tolist() == pytest.approx(wanted, abs=1e-5)


def test_dinov2_classifier_on_patches_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = transformers(monkeypatch)
    theirs = hf.Dinov2ForImageClassification(hf.Dinov2Config(**SMALL, mlp_ratio=2))
    randomise(theirs, seed=1)
    folder = save_theirs(theirs, tmp_path / "dinov2")
    with pytest.raises(SpecError, match="beside the mean of the patches"):
        load(folder)


def test_gated_mlp_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = transformers(monkeypatch)
    theirs = hf.Dinov2Model(hf.Dinov2Config(**SMALL, mlp_ratio=2, use_swiglu_ffn=True))
    with pytest.raises(SpecError, match="gated MLP"):
        load(save_theirs(theirs, tmp_path / "dinov2"))


def test_names_in_memory_are_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    hf = transformers(monkeypatch)
    for name, config in (("ViT", {"intermediate_size": 96}), ("Dinov2", {"mlp_ratio": 2})):
        theirs = getattr(hf, f"{name}Model")(getattr(hf, f"{name}Config")(**SMALL, **config))
        folder = save_theirs(theirs, tmp_path / name)
        before = load(folder).weights
        file = folder / "model.safetensors"
        assert load_file(file).keys() != theirs.state_dict().keys()
        save_file(theirs.state_dict(), file)
        after = load(folder).weights
        assert before.keys() == after.keys()
        assert all(torch.equal(before[it], after[it]) for it in before)


def test_resized_table_is_that_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    hf = transformers(monkeypatch)
    theirs = hf.ViTModel(hf.ViTConfig(**SMALL, intermediate_size=96)).embeddings
    spec = tiny_spec(width=48, image_px=(32, 32), patch_px=8, position_resize="hf")
    target = spec.revise(image_px=(72, 40))
    wanted = theirs.interpolate_pos_encoding(torch.zeros(1, 46, 48), 72, 40)[0].detach()
    found = resize_positions(theirs.position_embeddings.data[0], spec, target)
    assert relative_error(found, wanted) <= BOUND

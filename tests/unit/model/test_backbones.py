"""Models of timm and `transformers`: built, kept, changed, refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.model import build
from pipeline.model.backbone import batch_statistics, buffers
from pipeline.model.building import state_of
from pipeline.model.saved import load_model, save_model
from pipeline.model.transfer import adapt
from pipeline.training.optimizer import decayed_names
from schemas.backbones import HFModel, HFSpec, TimmModel, TimmSpec
from schemas.checkpoint import SavedModel
from schemas.errors import SpecError
from tests.support import foreign

SWIN = {"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
DINO = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
TIMM: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": {"options": SWIN, "drop_path": 0.2},
    "convnext_atto": {"options": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}},
    "resnet10t": {},
    "vit_tiny_patch16_224": {"options": {"depth": 1}},
}
HF: dict[str, dict[str, Any]] = {
    "convnext": {"options": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}},
    "swin": {"options": SWIN},
    "dinov2": {"options": DINO, "drop_path": 0.2, "image_px": 32},
    "dinov3_vit": {"options": {**DINO, "intermediate_size": 48}},
    "resnet": {"options": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}},
}
GRIDS = {
    "swin_tiny_patch4_window7_224": (4, 8),
    "convnext_atto": (1, 2),
    "resnet10t": (1, 2),
    "vit_tiny_patch16_224": (2, 4),
    "convnext": (4, 8),
    "swin": (4, 8),
    "dinov2": (4, 4),
    "dinov3_vit": (4, 8),
    "resnet": (4, 8),
}
CASES = [("timm", name) for name in TIMM] + [("hf", name) for name in HF]


def spec_of(kind: str, name: str, **more: Any) -> TimmSpec | HFSpec:
    """A tiny model of this name, 32 x 64 px, five classes; skips where the library is not there."""
    if kind == "timm":
        foreign.timm()
        fields = {"name": name, **TIMM.get(name, {}), **more}
        return TimmModel.parse({"image_px": [32, 64], **fields}).resolved(num_classes=5)
    pytest.importorskip("transformers", reason="extra `backbones`")
    fields = {"model_type": name, **HF.get(name, {}), **more}
    return HFModel.parse({"image_px": [32, 64], **fields}).resolved(num_classes=5)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_model_is_fixed_by_the_seed_and_leaves_the_global_generator_alone(
    kind: str, name: str
) -> None:
    spec = spec_of(kind, name)
    before = torch.get_rng_state()
    one, same, other = (state_of(build(spec, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert not one["head.weight"].any()


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_features_and_grid_are_of_one_width_and_the_head_is_linear(kind: str, name: str) -> None:
    spec = spec_of(kind, name)
    model, pixels = build(spec, seed=1).eval(), foreign.noise(spec.image_px, seed=1)
    assert model.head is not None
    torch.nn.init.normal_(model.head.weight)
    with torch.no_grad():
        features, grid = model.forward_features(pixels), model.forward_grid(pixels)
        assert grid.shape == (2, *GRIDS[name], features.shape[1])
        torch.testing.assert_close(model(pixels), features @ model.head.weight.T)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_saved_model_answers_the_same_bit_for_bit(kind: str, name: str, tmp_path: Path) -> None:
    spec = spec_of(kind, name)
    model, pixels = build(spec, seed=1), foreign.noise(spec.image_px, seed=1)
    randomise(model)
    with torch.no_grad():
        model(pixels)  # running statistics move
        expected = model.eval()(pixels)
    saved = SavedModel(spec=spec, class_names=tuple("abcde"), trained_steps=1)
    save_model(tmp_path / "model", state_of(model), saved)
    again, found = load_model(tmp_path / "model")
    assert found == saved
    with torch.no_grad():
        assert torch.equal(again(pixels), expected)


def randomise(model: torch.nn.Module) -> None:
    """A head that is not zero."""
    head: Any = model.head
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("timm", "swin_tiny_patch4_window7_224"), ("hf", "swin"), ("hf", "dinov3_vit")],
)
def test_recomputing_blocks_changes_no_gradient(kind: str, name: str) -> None:
    spec = spec_of(kind, name).revise(drop_path=0.0)
    gradients = []
    for recomputes in (False, True):
        model = build(spec, seed=1)
        randomise(model)
        model.recomputes = recomputes
        torch.manual_seed(0)  # of what is left to the library's chance
        model(foreign.noise(spec.image_px, seed=1)).square().sum().backward()
        gradients.append({path: it.grad for path, it in model.named_parameters()})
    for path, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradients[1][path], gradient)


def test_a_model_that_cannot_run_its_blocks_twice_says_so() -> None:
    model = build(spec_of("hf", "convnext"), seed=1)
    model.recomputes = False
    with pytest.raises(SpecError, match=r"leave resources.recompute out"):
        model.recomputes = True


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_kernels_decay_and_nothing_else(kind: str, name: str) -> None:
    model = build(spec_of(kind, name), seed=1)
    decayed = decayed_names(model)
    words = ("norm", "bias", "token", "position", "pos_embed", "gamma", "scale", "bn")
    assert "head.weight" in decayed
    for path, parameter in model.named_parameters():
        plain = any(word in path for word in words) or parameter.ndim == 1
        assert (path in decayed) is (path.endswith("weight") and not plain), path


def test_no_branch_is_skipped_unless_the_spec_says_so() -> None:
    spec = spec_of("timm", "swin_tiny_patch4_window7_224", drop_path=0.0)
    pixels = foreign.noise(spec.image_px, seed=1)
    with torch.no_grad():  # timm's own default is a tenth
        one, other = (build(spec, seed=1).train().forward_features(pixels) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("kind", "name", "has"), [("timm", "resnet10t", True), ("hf", "dinov2", False)]
)
def test_running_statistics_are_part_of_the_state(kind: str, name: str, has: bool) -> None:
    model = build(spec_of(kind, name), seed=1)
    kept = buffers(model)
    assert bool(batch_statistics(model)) is bool(kept) is has
    assert all("running" in name or "num_batches" in name for name in kept)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_new_head_is_zero_and_the_rest_is_carried_over(kind: str, name: str) -> None:
    source = spec_of(kind, name)
    model = build(source, seed=1)
    randomise(model)
    weights = state_of(model)
    target = source.revise(num_classes=3, drop_path=0.0)
    carried = adapt(weights, source, target)
    build(target, seed=2).load_state_dict(carried)
    assert carried["head.weight"].shape[0] == 3
    assert not carried["head.weight"].any()
    assert all(it is weights[name] for name, it in carried.items() if "head." not in name[:5])


def test_another_size_is_taken_where_no_weight_depends_on_it() -> None:
    source = spec_of("timm", "convnext_atto")
    weights = state_of(build(source, seed=1))
    adapt(weights, source, source.revise(image_px=(64, 64)))
    fixed = spec_of("timm", "vit_tiny_patch16_224")
    weights = state_of(build(fixed, seed=1))
    with pytest.raises(SpecError, match=r"other shapes of body.pos_embed; leave image_px"):
        adapt(weights, fixed, fixed.revise(image_px=(64, 64)))


def test_options_are_fixed_by_the_weights() -> None:
    source = spec_of("hf", "convnext")
    target = source.revise(options={**source.options, "hidden_act": "relu"})
    with pytest.raises(SpecError, match="cannot be carried over a change of options"):
        adapt(state_of(build(source, seed=1)), source, target)
    other = spec_of("hf", "resnet").revise(num_classes=3)
    vit = spec_of("timm", "vit_tiny_patch16_224")
    with pytest.raises(SpecError, match="of a hf model cannot be carried over to a timm model"):
        adapt({}, other, vit)


@pytest.mark.parametrize(
    ("kind", "name", "more", "sentence"),
    [
        ("timm", "convnext_ato", {}, "did you mean .*convnext_atto"),
        ("timm", "convnext_atto", {"options": {"foo": 1}}, "unexpected keyword argument 'foo'"),
        ("timm", "convnext_atto", {"options": {"img_size": 1}}, "here image_px decides it"),
        ("timm", "convnext_atto", {"options": {"pretrained": True}}, "here init decides it"),
        ("timm", "resnet10t", {"options": {"global_pool": ""}}, "not one vector for each image"),
        ("hf", "convnex", {}, "did you mean convnext"),
        ("hf", "bert", {}, "no model of images of the type 'bert'"),
        ("hf", "convnext", {"options": {"hidden_size": 3}}, "did you mean hidden_sizes"),
        ("hf", "swin", {"options": {"embed_dim": "a"}}, "expected int, got str"),
        ("hf", "resnet", {"drop_path": 0.1}, "resnet of transformers has no drop_path"),
        ("hf", "dinov2", {"image_px": 4}, r"cannot be made for image_px \[4, 4\]"),
    ],
)
def test_what_a_library_has_not_is_refused_in_a_sentence(
    kind: str, name: str, more: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SpecError, match=sentence):
        build(spec_of(kind, name, **more), seed=1)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (TimmModel, {"name": "hf-hub:timm/resnet50.a1_in1k"}),
        (HFModel, {"model_type": "facebook/dinov2-small"}),
    ],
)
def test_names_of_places_on_a_hub_are_refused(kind: Any, fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="nothing is downloaded"):
        kind.parse({"image_px": 32, **fields})


@pytest.mark.parametrize(
    ("library", "model"),
    [
        ("timm", TimmModel(name="resnet10t", image_px=32)),
        ("transformers", HFModel(model_type="convnext", image_px=32)),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    library: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SpecError, match=f"needs the library {library}") as refused:
        build(model.resolved(num_classes=2), seed=1)
    assert refused.value.hint is not None
    assert "pip install 'vitrail[backbones]'" in refused.value.hint

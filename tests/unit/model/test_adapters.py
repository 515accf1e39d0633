"""Narrow matrices beside frozen layers: nothing at first, and nothing of them in what is saved."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.model import build
from pipeline.model.adapters import LoraLinear, add_lora, save_adapter, without_lora
from pipeline.model.backbone import Backbone
from pipeline.model.building import state_of
from schemas.backbones import HFModel, TimmModel
from schemas.errors import SpecError
from schemas.tuning import LoraSpec
from tests.support import foreign
from tests.support.training import DEEP, RESNET, TINY, model

ALL = LoraSpec(rank=3, alpha=5.0, targets=("query", "key", "value", "out", "dense1", "dense2"))


def adapted(spec: LoraSpec, *, seed: int = 4, learnt: bool = False) -> Backbone:
    vit = model(DEEP)
    add_lora(vit, spec, seed=seed)
    if learnt:
        generator = torch.Generator().manual_seed(6)
        for name, parameter in vit.named_parameters():
            if name.endswith("lora_b.weight"):
                torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return vit


def test_the_start_is_the_model_itself_bit_for_bit() -> None:
    pixels = foreign.noise(DEEP.image_px, seed=1, samples=3)
    vit = adapted(ALL)
    assert sum(isinstance(module, LoraLinear) for module in vit.modules()) == 6 * DEEP.depth
    assert torch.equal(vit(pixels), model(DEEP)(pixels))
    learning = {name for name, parameter in vit.named_parameters() if parameter.requires_grad}
    assert {name for name in learning if ".lora_" not in name} == {"head.weight", "head.bias"}
    vit(pixels).sum().backward()
    grads = {name: it.grad for name, it in vit.named_parameters()}
    assert all((grads[name] is not None) == (name in learning) for name in grads)
    assert float(grads["blocks.0.attention.query.lora_b.weight"].abs().max()) > 0


def test_what_is_saved_answers_as_what_was_trained() -> None:
    pixels = foreign.noise(DEEP.image_px, seed=1, samples=8)
    vit = adapted(ALL, learnt=True)
    plain = model(DEEP)
    expected = vit(pixels)
    assert not torch.allclose(plain(pixels), expected, atol=1e-2), "it has learnt something"
    plain.load_state_dict(without_lora(state_of(vit), ALL))
    torch.testing.assert_close(plain(pixels), expected, rtol=0, atol=1e-5)


def test_a_product_is_what_the_paper_says() -> None:
    vit = adapted(ALL, learnt=True)
    found = without_lora(state_of(vit), ALL)["blocks.3.dense1.weight"]
    layer = vit.get_submodule("blocks.3.dense1")
    product = layer.lora_b.weight @ layer.lora_a.weight * 5 / 3
    torch.testing.assert_close(found, layer.weight + product, rtol=0, atol=1e-6)


def test_the_draw_is_of_the_seed_and_the_name_alone() -> None:
    name = "blocks.1.attention.query.lora_a.weight"
    first, other = adapted(ALL).get_parameter(name), adapted(ALL, seed=5).get_parameter(name)
    assert not torch.equal(first, other)
    alone = adapted(ALL.revise(targets=("query",)))
    assert torch.equal(first, alone.get_parameter(name)), "whatever else is adapted"
    largest = first.detach().abs().max().item()
    assert largest <= 24**-0.5 < 1.2 * largest


def test_targets_that_are_not_there_are_refused() -> None:
    with pytest.raises(SpecError, match="names qurey") as caught:
        adapted(LoraSpec(targets=("qurey",)))
    assert "query" in str(caught.value.hint)
    with pytest.raises(SpecError, match="no dense layer") as caught:
        add_lora(model(RESNET), LoraSpec(), seed=1)
    assert "none but its head" in str(caught.value.hint)


def test_dropout_is_of_training_alone() -> None:
    pixels = foreign.noise(DEEP.image_px, seed=1)
    vit = adapted(ALL.revise(dropout=0.5), learnt=True)
    assert not torch.equal(vit(pixels), vit(pixels))
    assert torch.equal(vit.eval()(pixels), vit(pixels))


def timm_vit() -> Backbone:
    foreign.timm()
    options = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    fields = {"name": "vit_tiny_patch16_224", "image_px": 32, "options": options}
    return build(TimmModel.parse(fields).resolved(num_classes=5), seed=1)


def hf_vit() -> Backbone:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    options = {**sizes, "intermediate_size": 40, "patch_size": 8}
    fields = {"model_type": "vit", "image_px": 32, "options": options}
    return build(HFModel.parse(fields).resolved(num_classes=5), seed=1)


@pytest.mark.parametrize(
    ("made", "targets", "layers"),
    [(timm_vit, ("qkv", "fc1"), 4), (hf_vit, ("q_proj", "fc2"), 4)],
)
def test_models_of_libraries_have_names_of_their_own(
    made: Callable[[], Backbone],
    targets: tuple[str, ...],
    layers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    foreign.transformers(monkeypatch)
    pixels = foreign.noise((32, 32), seed=1)
    backbone, spec = made(), LoraSpec(rank=2, targets=targets)
    torch.nn.init.normal_(backbone.head.weight, generator=torch.Generator().manual_seed(2))
    plain = backbone(pixels)
    before = backbone.layers()
    add_lora(backbone, spec, seed=3)
    assert torch.equal(backbone(pixels), plain)
    after = backbone.layers()
    added = [name for name in after if ".lora_" in name]
    assert len(added) == 2 * layers
    assert all(after[name] == number for name, number in before.items())
    for name in added:
        assert after[name] == before[name.partition(".lora_")[0] + ".weight"]


def test_a_layer_that_a_library_never_calls_is_refused() -> None:
    foreign.timm()
    sizes = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    fields = {"name": "beit_base_patch16_224", "image_px": 32, "options": sizes}
    backbone = build(TimmModel.parse(fields).resolved(num_classes=5), seed=1)
    with pytest.raises(SpecError, match=r"attn\.qkv without calling it"):
        add_lora(backbone, LoraSpec(targets=("qkv",)), seed=3)


def test_an_adapter_on_disk_has_the_names_of_peft(tmp_path: Path) -> None:
    spec = LoraSpec(rank=3, targets=("query", "value"))
    vit = adapted(spec, learnt=True)
    save_adapter(tmp_path / "adapter", state_of(vit), spec)
    found = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    start = "base_model.model."
    assert len(found) == 2 * 2 * DEEP.depth + 2
    assert found[f"{start}blocks.2.attention.query.lora_A.weight"].shape == (3, TINY.width)
    assert found[f"{start}blocks.2.attention.value.lora_B.weight"].shape == (TINY.width, 3)
    assert torch.equal(found[f"{start}head.weight"], vit.head.weight)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 16)
    assert (config["target_modules"], config["modules_to_save"]) == (["query", "value"], ["head"])

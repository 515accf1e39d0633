"""What a ViT cannot be is said in a sentence; what a change of a model makes of it."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.backbones import HFModel, ResNetModel, TimmModel
from schemas.checkpoint import SavedModel
from schemas.model import VARIANTS, ModelChange, ModelSpec, ResNetStemSpec
from schemas.training import FinetuneSpec, PretrainSpec
from tests.support.models import tiny_spec

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_heads": 5}, "num_heads 5 must divide width 24"),
    ({"image_px": (8, 9)}, r"image_px \[8, 9\] must be multiples of patch_px 4"),
    ({"stem": ResNetStemSpec(blocks=(1, 1))}, "patch_px 4 must be a multiple of 8, the stride"),
    ({"position_at": "shared", "position": "none"}, "needs a table of positions, not none"),
    ({"position_at": "every_layer", "position": "sincos_2d"}, "is the same at every layer"),
    ({"position": "learned_2d", "width": 21}, "needs an even width, not 21"),
    ({"position": "sincos_2d", "width": 18}, "a width of 8 or more that 4 divides, not 18"),
    ({"pool": "gap", "distillation_token": True}, "distillation_token is about the class token"),
    ({"pool": "map", "class_position": False}, "class_position is about the class token"),
    ({"distillation_token": True, "hidden_head": True}, "without hidden_head"),
    ({"axial": True}, "axial needs pool gap or map and no registers"),
    ({"axial": True, "pool": "gap", "registers": 1}, "axial needs pool gap or map"),
    ({"axial": True, "pool": "gap", "patch_dropout": 0.5}, "cannot go with axial blocks"),
    ({"position": "relative", "patch_dropout": 0.5}, "cannot go with relative positions"),
]


@pytest.mark.parametrize(("fields", "sentence"), REFUSED)
def test_parts_that_do_not_go_together_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        tiny_spec(**fields)


def test_a_stem_needs_whole_groups() -> None:
    with pytest.raises(ValidationError, match=r"stem\.width 48 must be a multiple of 32"):
        ResNetStemSpec(blocks=(), width=48)


@pytest.mark.parametrize(
    ("blocks", "stride", "channels"),
    [((), 4, 64), ((3, 4, 9), 16, 1024), ((2, 2, 2, 2), 32, 2048)],
)
def test_a_stem_is_as_deep_as_its_stages(
    blocks: tuple[int, ...], stride: int, channels: int
) -> None:
    stem = ResNetStemSpec(blocks=blocks)
    assert (stem.stride, stem.channels) == (stride, channels)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_size_can_be_named(variant: str) -> None:
    spec = ModelSpec.parse({"variant": variant, "patch_px": 14, "image_px": 224})
    assert spec.to_vit(num_classes=2).width == VARIANTS[variant].width


def test_a_change_keeps_the_rest_and_drops_the_hidden_layer() -> None:
    start = tiny_spec(hidden_head=True, registers=2, position_resize="hf")
    change = ModelChange.parse({"image_px": 16, "drop_path": 0.2})
    changed = change.applied_to(start, num_classes=7)
    expected = {"image_px": (16, 16), "drop_path": 0.2, "num_classes": 7, "hidden_head": False}
    assert changed == start.revise(**expected)


@pytest.mark.parametrize(
    ("model", "libraries"),
    [
        ({"variant": "Ti", "patch_px": 16, "image_px": 32}, ()),
        ({"type": "resnet", "variant": "R26", "image_px": 32}, ()),
        ({"type": "timm", "name": "resnet10t", "image_px": 32}, ("timm",)),
        ({"type": "hf", "model_type": "convnext", "image_px": 32}, ("transformers",)),
    ],
)
def test_the_library_of_a_model_is_in_the_key_of_what_builds_it(
    model: dict[str, object], libraries: tuple[str, ...]
) -> None:
    common = {"data": "d", "model": model, "optim": {"peak_lr": 1e-3}}
    common |= {"batch": {"global_samples": 4}, "duration": {"steps": 2}}
    for spec in (PretrainSpec.parse(common), FinetuneSpec.parse({**common, "init": None})):
        assert spec.needed_libraries() == (*spec.libraries, *libraries)
    carried = FinetuneSpec.parse({**common, "model": {"image_px": 64}, "init": "x"})
    assert carried.needed_libraries() == carried.libraries


def test_a_saved_model_without_a_type_is_a_vit() -> None:
    vit = ModelSpec.parse({"variant": "Ti", "patch_px": 16, "image_px": 32}).to_vit(num_classes=2)
    document = SavedModel(spec=vit, class_names=("a", "b"), trained_steps=1).dump()
    del document["spec"]["type"]
    assert SavedModel.parse(document).spec == vit


@pytest.mark.parametrize(
    "model",
    [
        ResNetModel(variant="R50", image_px=32),
        TimmModel(name="x", image_px=(32, 64), options={"depths": (1, 2), "a": ((1,), (2.5,))}),
        HFModel(model_type="x", image_px=32, drop_path=0.1),
    ],
)
def test_every_type_survives_a_round_trip(model: ResNetModel | TimmModel | HFModel) -> None:
    saved = SavedModel(spec=model.resolved(num_classes=2), class_names=("a", "b"), trained_steps=1)
    assert SavedModel.parse(saved.dump()) == saved
    assert type(model).parse(model.dump()) == model

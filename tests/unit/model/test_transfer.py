"""Positions in two dimensions, weights carried into another model, and models on disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.positions import resize_positions
from pipeline.model.saved import load_model, save_model
from pipeline.model.transfer import adapt
from pipeline.model.vit import ViT, build
from schemas.checkpoint import MODEL_FILE, WEIGHTS_FILE, SavedModel
from schemas.errors import IntegrityError, SpecError
from schemas.model import ViTSpec
from tests.support.models import tiny_spec

MODES = ["timm", "hf", "dinov2", "jax"]


def smooth_field(rows: int, columns: int) -> torch.Tensor:
    """Two channels, linear in the place of a patch's centre, from 0 to 1 over the image."""
    y = (torch.arange(rows) + 0.5) / rows
    x = (torch.arange(columns) + 0.5) / columns
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 2)


# torch's bicubic kernel without antialiasing is not exact on a straight line.
@pytest.mark.parametrize(("mode", "tolerance"), [("timm", 5e-3), ("hf", 2e-2), ("dinov2", 2e-2)])
@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_a_smooth_field_stays_what_it_was(mode: str, tolerance: float, pool: str) -> None:
    source = tiny_spec(pool=pool, image_px=(32, 24))
    target = source.revise(image_px=(48, 60), position_resize=mode)
    slot = torch.tensor([[7.0, -7.0]])[: pool == "cls"]
    resized = resize_positions(torch.cat([slot, smooth_field(8, 6)]), source, target)
    assert torch.equal(resized[: len(slot)], slot), "the class token has no place in the image"
    difference = (resized[len(slot) :] - smooth_field(12, 15)).reshape(12, 15, 2)
    assert difference[3:-3, 4:-4].abs().max() < tolerance, (
        "away from the border, where it must bend"
    )


@pytest.mark.parametrize("mode", MODES)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), constant=st.floats(-3, 3))
def test_equal_grids_change_nothing_and_a_constant_stays(
    mode: str, rows: int, columns: int, constant: float
) -> None:
    source = tiny_spec(pool="gap", image_px=(4 * rows, 4 * columns))
    field = torch.full((rows * columns, 2), constant)
    assert resize_positions(field, source, source) is field
    target = source.revise(image_px=(16, 28), position_resize=mode)
    resized = resize_positions(field, source, target)
    assert resized.shape == (28, 2)
    assert torch.allclose(resized, torch.tensor(constant), atol=1e-5)


def weights_of(spec: ViTSpec) -> dict[str, torch.Tensor]:
    return build(spec, seed=1).state_dict()


def test_adapted_weights_fit_the_target_and_the_head_is_new() -> None:
    source, target = tiny_spec(), tiny_spec(image_px=(12, 12), num_classes=3)
    weights = weights_of(source)
    weights["head.bias"] = torch.ones(5)
    adapted = adapt(weights, source, target)
    ViT(target).load_state_dict(adapted)
    assert adapted["head.weight"].shape == (3, 24)
    assert not adapted["head.weight"].any()
    assert not adapted["head.bias"].any()
    assert torch.equal(adapted["blocks.1.dense1.weight"], weights["blocks.1.dense1.weight"])


@pytest.mark.parametrize(
    ("has", "gets"),
    [
        ({"hidden_head": True}, {"hidden_head": False}),
        ({"distillation_token": True}, {"drop_path": 0.1}),
        ({"position": "learned_2d"}, {"position_resize": "jax"}),
        ({"position": "sincos_2d"}, {"patch_dropout": 0.1}),
        ({"position": "relative"}, {"dropout": 0.1}),
        ({"position_at": "every_layer"}, {"num_classes": 0}),
    ],
)
def test_weights_follow_into_another_grid_and_head(
    has: dict[str, Any], gets: dict[str, Any]
) -> None:
    source = tiny_spec(**has)
    target = source.revise(**{"image_px": (16, 12), "num_classes": 3, **gets})
    adapted = adapt(weights_of(source), source, target)
    model = ViT(target)
    model.load_state_dict(adapted)
    assert model.eval()(torch.randn(2, 3, 16, 12)).shape == (2, target.num_classes or 24)


def test_a_hidden_layer_is_not_carried_over() -> None:
    deep = tiny_spec(hidden_head=True)
    with pytest.raises(SpecError, match="hidden_head"):
        adapt(weights_of(deep), deep, deep)


def test_missing_unexpected_and_misshapen_weights_are_listed() -> None:
    weights = weights_of(tiny_spec())
    weights["stem.weight"] = weights.pop("patch.weight")
    weights["norm.bias"] = torch.zeros(7)
    with pytest.raises(SpecError) as caught:
        adapt(weights, tiny_spec(), tiny_spec())
    for part in ("missing: patch.weight", "unexpected: stem.weight", "norm.bias [7]"):
        assert part in caught.value.what


def test_a_change_that_weights_cannot_follow_is_refused() -> None:
    with pytest.raises(SpecError, match="patch_px 4 -> 2"):
        adapt(weights_of(tiny_spec()), tiny_spec(), tiny_spec(patch_px=2))


def saved(spec: ViTSpec) -> SavedModel:
    return SavedModel(
        spec=spec,
        class_names=("a", "b", "c", "d", "e"),
        trained_steps=3,
        key="k",
        data_digest="d",
        init_digest=None,
    )


def test_a_saved_model_comes_back_bit_equal_from_equal_bytes(tmp_path: Path) -> None:
    spec = tiny_spec()
    for name in ("one", "two"):
        save_model(tmp_path / name, weights_of(spec), saved(spec))
    model, said = load_model(tmp_path / "one")
    assert said == saved(spec)
    assert not model.training
    for name, tensor in weights_of(spec).items():
        assert torch.equal(model.state_dict()[name], tensor)
    for file in (MODEL_FILE, WEIGHTS_FILE):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_an_unreadable_saved_model_is_named(tmp_path: Path) -> None:
    save_model(tmp_path, weights_of(tiny_spec()), saved(tiny_spec()))
    (tmp_path / WEIGHTS_FILE).write_bytes(b"torn")
    with pytest.raises(IntegrityError, match="does not hold a readable saved model"):
        load_model(tmp_path)

"""timm's models and ours compute the same from the same files, both ways."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.model.interchange import load, save
from pipeline.model.vit import ViT, build
from schemas.errors import SpecError
from schemas.interchange import Assumptions
from schemas.model import ResNetStemSpec
from tests.support.foreign import noise, randomise, timm
from tests.support.models import tiny_spec

BOUND = 2e-5
SMALL = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 4,
    "num_classes": 5,
}


def state_file(theirs: torch.nn.Module, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(theirs.state_dict(), path)
    else:
        torch.save({"model": theirs.state_dict()}, path)
    return path


def loaded_model(path: Path, **assume: Any) -> ViT:
    found = load(path, assume=Assumptions(**assume))
    model = ViT(found.spec)
    model.load_state_dict(found.weights)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"global_pool": "avg"},
        {"class_token": False, "global_pool": "map"},
        {"no_embed_class": True, "reg_tokens": 3, "init_values": 0.1},
        {"reg_tokens": 3},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 2},
        {"qk_norm": True, "fc_norm": True},
        {"pos_embed": "none"},
        {"num_classes": 0},
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_state_dict(tmp_path: Path, options: dict[str, Any], suffix: str) -> None:
    library = timm()
    theirs = library.models.vision_transformer.VisionTransformer(**{**SMALL, **options})
    randomise(theirs, seed=1)
    path = state_file(theirs, tmp_path / f"vit{suffix}")
    said = {"image_px": 32} if "pos_embed" in options else {}
    said |= {"pool": "cls"} if "qk_norm" in options else {}
    model = loaded_model(path, num_heads=4, **said)
    pixels = noise((32, 32), seed=2)
    with torch.no_grad():
        assert float((model(pixels) - theirs.eval()(pixels)).abs().max()) <= BOUND


def test_distilled(tmp_path: Path) -> None:
    library = timm()
    theirs = library.models.deit.VisionTransformerDistilled(**SMALL)
    randomise(theirs, seed=1)
    model = loaded_model(state_file(theirs, tmp_path / "deit.pth"), num_heads=4)
    assert model.spec.pixel_mean == (0.485, 0.456, 0.406)
    pixels = noise((32, 32), seed=2)
    with torch.no_grad():
        assert float((model(pixels) - theirs.eval()(pixels)).abs().max()) <= BOUND


@pytest.mark.parametrize(
    ("name", "blocks"), [("vit_tiny_r_s16_p8_224", ()), ("vit_small_r26_s32_224", (2, 2, 2, 2))]
)
def test_hybrid(tmp_path: Path, name: str, blocks: tuple[int, ...]) -> None:
    library = timm()
    theirs = library.create_model(
        name, img_size=64, embed_dim=64, depth=1, num_heads=1, num_classes=3
    )
    randomise(theirs, seed=1)
    model = loaded_model(state_file(theirs, tmp_path / "vit.safetensors"))
    assert model.spec.stem is not None
    assert (model.spec.stem.blocks, model.spec.patch_px) == (blocks, 32)
    pixels = noise((64, 64), seed=2)
    with torch.no_grad():
        assert float((model(pixels) - theirs.eval()(pixels)).abs().max()) <= 1e-4


def test_what_a_state_dict_does_not_say_is_told(tmp_path: Path) -> None:
    library = timm()
    theirs = library.models.vision_transformer.VisionTransformer(**{**SMALL, "num_heads": 1})
    found = load(state_file(theirs, tmp_path / "vit.pth"))
    assert found.origin.assumed == (
        "gelu erf",
        "layer_norm_eps 1e-06",
        "pixel_mean 0.5 x 0.5 x 0.5",
        "pixel_std 0.5 x 0.5 x 0.5",
        "position_resize timm",
        "num_heads 1",
        "pool cls",
    )
    assert found.origin.notes == ("the weights were taken from 'model' in the file",)


def test_unusual_width_needs_the_number_of_heads(tmp_path: Path) -> None:
    model = build(tiny_spec(image_px=(8, 8)), seed=0)
    save(tmp_path / "vit.safetensors", "timm", model.spec, dict(model.named_parameters()))
    with pytest.raises(SpecError, match="does not say the number of heads") as caught:
        load(tmp_path / "vit.safetensors")
    assert caught.value.hint == "--set num_heads=N"


def test_files_of_dinov2_itself(tmp_path: Path) -> None:
    """Registers have no rows among the positions there, and another name."""
    library = timm()
    theirs = library.models.vision_transformer.VisionTransformer(
        **SMALL, reg_tokens=2, init_values=1e-5
    )
    randomise(theirs, seed=1)
    theirs.pos_embed.data[:, 1:3] = 0.0
    state = theirs.state_dict()
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], state["pos_embed"][:, 3:]], dim=1)
    state["mask_token"] = torch.zeros(1, 64)
    save_file(state, tmp_path / "dinov2.safetensors")
    found = load(tmp_path / "dinov2.safetensors", assume=Assumptions(num_heads=4))
    assert found.origin.dropped == ("mask_token",)
    assert (found.spec.registers, found.spec.class_position) == (2, True)
    model = loaded_model(tmp_path / "dinov2.safetensors", num_heads=4)
    pixels = noise((32, 32), seed=2)
    with torch.no_grad():
        assert float((model(pixels) - theirs.eval()(pixels)).abs().max()) <= BOUND


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "gap"},
        {"pool": "gap", "norm_at": "pooled"},
        {"pool": "map"},
        {"pool": "map", "registers": 2},
        {"class_position": False},
        {"registers": 2, "layer_scale": 0.5},
        {"qk_norm": True},
        {"position": "none"},
        {"position": "sincos_2d", "pool": "gap"},
        {"position": "learned_2d"},
        {"distillation_token": True},
        {"gelu": "tanh"},
        {"num_classes": 0},
        {"image_px": (8, 12)},
        {
            "stem": ResNetStemSpec(
                blocks=(2, 2, 2, 2),
                group_norm_eps=1e-5,
                weight_std="timm",
                weight_std_eps=1e-8,
            ),
            "patch_px": 32,
            "image_px": (64, 32),
        },
    ],
)
def test_timm_makes_a_model_of_our_folder(tmp_path: Path, changes: dict[str, Any]) -> None:
    library = timm()
    spec = tiny_spec(**{"image_px": (8, 8), "pixel_mean": (0.4, 0.5, 0.6), **changes})
    model = build(spec, seed=0).eval()
    randomise(model, seed=1)
    names = tuple("abcde"[: spec.num_classes])
    save(tmp_path / "out", "timm", spec, dict(model.named_parameters()), class_names=names)
    theirs = library.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert tuple(theirs.pretrained_cfg["mean"]) == (0.4, 0.5, 0.6)
    pixels = noise(spec.image_px, seed=2)
    with torch.no_grad():
        ours, found = model(pixels), theirs(pixels)
    assert float((ours - found).abs().max()) <= (BOUND if spec.stem is None else 1e-4)
    again = load(tmp_path / "out")
    assert again.class_names == names
    assert again.spec.num_heads == spec.num_heads
    assert again.spec.gelu == spec.gelu

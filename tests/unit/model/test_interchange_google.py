"""Google's `.npz`: every dialect is read, and timm's own loader reads what we write."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.model.interchange import load, save
from pipeline.model.vit import ViT, build
from schemas.errors import SpecError
from schemas.interchange import Assumptions
from schemas.model import ResNetStemSpec, ViTSpec
from tests.support.foreign import noise, randomise, timm
from tests.support.models import tiny_spec

BOUND = 2e-5
Arrays = dict[str, np.ndarray]
JAX_STEM = ResNetStemSpec(blocks=(1, 2), width=32)


def model_of(spec: ViTSpec) -> ViT:
    model = build(spec, seed=0).eval()
    randomise(model, seed=1)
    return model


def google_spec(**changes: Any) -> ViTSpec:
    """As all readers of the layout take it."""
    return tiny_spec(**{"image_px": (8, 8), "gelu": "tanh", "position_resize": "jax", **changes})


def written(model: ViT, path: Path) -> Arrays:
    save(path, "google", model.spec, dict(model.named_parameters()))
    return dict(np.load(path, allow_pickle=False))


def same_as(model: ViT, path: Path, **assume: Any) -> bool:
    loaded = load(path, assume=Assumptions(**assume))
    weights = dict(model.named_parameters())
    assert loaded.spec == model.spec
    assert loaded.weights.keys() == weights.keys()
    return all(torch.equal(loaded.weights[name], weights[name]) for name in weights)


def test_names_are_those_of_the_authors(tmp_path: Path) -> None:
    arrays = written(model_of(google_spec(depth=1, hidden_head=True)), tmp_path / "vit.npz")
    block = "Transformer/encoderblock_0/"
    attention = f"{block}MultiHeadDotProductAttention_1/"
    assert {name: array.shape for name, array in arrays.items()} == {
        "cls": (1, 1, 24),
        "embedding/kernel": (4, 4, 3, 24),
        "embedding/bias": (24,),
        "Transformer/posembed_input/pos_embedding": (1, 5, 24),
        f"{block}LayerNorm_0/scale": (24,),
        f"{block}LayerNorm_0/bias": (24,),
        **{f"{attention}{name}/kernel": (24, 3, 8) for name in ("query", "key", "value")},
        **{f"{attention}{name}/bias": (3, 8) for name in ("query", "key", "value")},
        f"{attention}out/kernel": (3, 8, 24),
        f"{attention}out/bias": (24,),
        f"{block}LayerNorm_2/scale": (24,),
        f"{block}LayerNorm_2/bias": (24,),
        f"{block}MlpBlock_3/Dense_0/kernel": (24, 40),
        f"{block}MlpBlock_3/Dense_0/bias": (40,),
        f"{block}MlpBlock_3/Dense_1/kernel": (40, 24),
        f"{block}MlpBlock_3/Dense_1/bias": (24,),
        "Transformer/encoder_norm/scale": (24,),
        "Transformer/encoder_norm/bias": (24,),
        "pre_logits/kernel": (24, 24),
        "pre_logits/bias": (24,),
        "head/kernel": (24, 5),
        "head/bias": (5,),
    }


def test_what_no_file_says_is_told(tmp_path: Path) -> None:
    written(model_of(google_spec()), tmp_path / "vit.npz")
    assert load(tmp_path / "vit.npz").origin.assumed == (
        "gelu tanh",
        "layer_norm_eps 1e-06",
        "pixel_mean 0.5 x 0.5 x 0.5",
        "pixel_std 0.5 x 0.5 x 0.5",
        "position_resize jax",
    )


def renamed(arrays: Arrays, *pairs: tuple[str, str], prefix: str = "") -> Arrays:
    found = {}
    for full, array in arrays.items():
        name = full
        for old, new in pairs:
            name = name.replace(old, new)
        found[prefix + name] = array
    return found


LINEN = (
    ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
    ("LayerNorm_2", "LayerNorm_1"),
    ("MlpBlock_3", "MlpBlock_0"),
)


def test_numbering_since_linen_and_the_prefix_of_sam_files(tmp_path: Path) -> None:
    model = model_of(google_spec())
    arrays = renamed(written(model, tmp_path / "vit.npz"), *LINEN, prefix="opt/target/")
    arrays["opt/state/step"] = np.int32(7)
    np.savez(tmp_path / "sam.npz", **arrays)
    assert same_as(model, tmp_path / "sam.npz")
    assert load(tmp_path / "sam.npz").origin.dropped == ("opt/state/step",)


def scanned(arrays: Arrays) -> Arrays:
    """All blocks in one array each, as big_vision's scan models have them."""
    blocks = {name: it for name, it in arrays.items() if "encoderblock_" in name}
    rest = {name: it for name, it in arrays.items() if name not in blocks}
    parts = {name.split("/", 3)[3] for name in blocks}
    stacked = {
        f"params/Transformer/encoderblock/{part}": np.stack(
            [blocks[f"params/Transformer/encoderblock_{index}/{part}"] for index in range(2)]
        )
        for part in parts
    }
    return rest | stacked


@pytest.mark.parametrize("pool", ["gap", "map", "cls"])
@pytest.mark.parametrize("prefix", ["params/", "params/img/"])
def test_big_vision_with_and_without_scan(tmp_path: Path, pool: str, prefix: str) -> None:
    model = model_of(google_spec(pool=pool, class_position=pool != "cls"))
    arrays = written(model, tmp_path / "loop.npz")
    assert arrays["params/pos_embedding"].shape == (1, 4, 24)
    assert same_as(model, tmp_path / "loop.npz")
    shifted = renamed(scanned(arrays), ("params/", prefix))
    shifted |= (
        {"params/txt/head/bias": np.ones(3), "params/t": np.ones(1)} if "img" in prefix else {}
    )
    np.savez(tmp_path / "scan.npz", **shifted)
    assert same_as(model, tmp_path / "scan.npz")


def test_big_vision_without_a_table_has_fixed_positions(tmp_path: Path) -> None:
    model = model_of(google_spec(pool="gap", position="sincos_2d", image_px=(8, 12)))
    arrays = written(model, tmp_path / "vit.npz")
    assert not [name for name in arrays if "pos_embedding" in name]
    assert same_as(model, tmp_path / "vit.npz", image_px=(8, 12))


def test_bfloat16_is_kept_as_raw_bytes(tmp_path: Path) -> None:
    model = model_of(google_spec(pool="map"))
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    arrays = written(model, tmp_path / "vit.npz")
    raw = {name: torch.from_numpy(it).bfloat16() for name, it in arrays.items()}
    np.savez(
        tmp_path / "bf16.npz",
        **{name: it.view(torch.int16).numpy().view("V2") for name, it in raw.items()},
    )
    assert same_as(model, tmp_path / "bf16.npz")
    assert (
        "numbers were bfloat16; they are float32 here" in load(tmp_path / "bf16.npz").origin.notes
    )


def test_hybrid_with_norms_of_four_axes(tmp_path: Path) -> None:
    model = model_of(google_spec(stem=JAX_STEM, patch_px=16, image_px=(32, 32)))
    arrays = written(model, tmp_path / "vit.npz")
    assert arrays["conv_root/kernel"].shape == (7, 7, 3, 32)
    assert arrays["block2/unit1/conv_proj/kernel"].shape == (1, 1, 128, 256)
    assert same_as(model, tmp_path / "vit.npz")
    wide = {
        name: it[None, None, None] if "/gn" in name or name.startswith("gn") else it
        for name, it in arrays.items()
    }
    np.savez(tmp_path / "old.npz", **wide)
    assert wide["gn_root/scale"].shape == (1, 1, 1, 32)
    assert same_as(model, tmp_path / "old.npz")


def test_table_that_is_no_square_needs_a_size(tmp_path: Path) -> None:
    model = model_of(google_spec(image_px=(8, 12)))
    written(model, tmp_path / "vit.npz")
    with pytest.raises(SpecError, match="positions for 6 patches, which is no square"):
        load(tmp_path / "vit.npz")
    with pytest.raises(SpecError, match="image_px is given as 8 x 8, but the file has"):
        load(tmp_path / "vit.npz", assume=Assumptions(image_px=8))
    assert same_as(model, tmp_path / "vit.npz", image_px=(8, 12))


def test_grid_of_196_is_not_taken_for_195_and_a_class_token(tmp_path: Path) -> None:
    model = model_of(google_spec(pool="gap", image_px=(56, 56)))
    written(model, tmp_path / "vit.npz")
    assert load(tmp_path / "vit.npz").spec.grid == (14, 14)


@pytest.mark.parametrize(
    ("name", "changes", "theirs"),
    [
        ("class token", {}, {}),
        ("class token without position", {"class_position": False}, {"no_embed_class": True}),
        ("mean", {"pool": "gap"}, {"class_token": False, "global_pool": "avg", "fc_norm": False}),
        ("attention pooling", {"pool": "map"}, {"class_token": False, "global_pool": "map"}),
    ],
)
@pytest.mark.parametrize("scan", [False, True])
def test_timm_loads_our_file(
    tmp_path: Path, name: str, changes: dict[str, Any], theirs: dict[str, Any], *, scan: bool
) -> None:
    library = timm()
    spec = tiny_spec(image_px=(8, 8), mlp_dim=48, **changes)
    model = model_of(spec)
    file = tmp_path / "vit.npz"
    arrays = written(model, file)
    if scan and "params/embedding/kernel" in arrays:
        file = tmp_path / "scan.npz"
        np.savez(file, **scanned(arrays))
    other = library.models.vision_transformer.VisionTransformer(
        img_size=8,
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=3,
        mlp_ratio=2.0,
        num_classes=5,
        **theirs,
    )
    randomise(other, seed=5)
    other.load_pretrained(str(file))
    pixels = noise((8, 8), seed=2)
    with torch.no_grad():
        ours, found = model(pixels), other.eval()(pixels)
    assert float((ours - found).abs().max()) <= BOUND
    loaded = load(file, assume=Assumptions(gelu="erf"))
    again = ViT(loaded.spec)
    again.load_state_dict(loaded.weights)
    with torch.no_grad():
        assert torch.equal(again.eval()(pixels), ours)


def test_timm_loads_our_hybrid(tmp_path: Path) -> None:
    library = timm()
    stem = ResNetStemSpec(
        blocks=(3, 4, 9), group_norm_eps=1e-5, weight_std="timm", weight_std_eps=1e-8
    )
    spec = tiny_spec(image_px=(64, 64), patch_px=16, stem=stem, width=48, num_heads=3, mlp_dim=96)
    model = model_of(spec)
    written(model, tmp_path / "vit.npz")
    other = library.create_model(
        "vit_base_r50_s16_224",
        img_size=64,
        embed_dim=48,
        depth=2,
        num_heads=3,
        mlp_ratio=2.0,
        num_classes=5,
    )
    other.load_pretrained(str(tmp_path / "vit.npz"))
    pixels = noise((64, 64), seed=2)
    with torch.no_grad():
        ours, found = model(pixels), other.eval()(pixels)
    assert float((ours - found).abs().max()) <= 1e-4

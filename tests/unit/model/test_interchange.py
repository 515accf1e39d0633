"""Round trips of every variant through every layout, and what is refused, in sentences."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.model.interchange import load, recognise, save
from pipeline.model.saved import save_model
from pipeline.model.vit import ViT, build
from schemas.checkpoint import SavedModel
from schemas.errors import IntegrityError, SpecError, UsageError, VitrailError
from schemas.interchange import Assumptions, Layout
from schemas.model import ResNetStemSpec, ViTSpec
from tests.support.foreign import noise, randomise
from tests.support.models import tiny_spec

TIMM_STEM = ResNetStemSpec(
    blocks=(3, 4, 9), width=32, group_norm_eps=1e-5, weight_std="timm", weight_std_eps=1e-8
)
JAX_STEM = ResNetStemSpec(blocks=(2, 1), width=32)
HYBRID = {"patch_px": 16, "image_px": (32, 32)}

EXACT: dict[str, tuple[tuple[Layout, ...], dict[str, Any]]] = {
    "class token": (("google", "timm", "hf"), {}),
    "mean": (("google", "timm"), {"pool": "gap"}),
    "mean, then norm": (("timm",), {"pool": "gap", "norm_at": "pooled"}),
    "attention pooling": (("google", "timm"), {"pool": "map"}),
    "class token without position": (("google", "timm"), {"class_position": False}),
    "fixed positions": (("google",), {"position": "sincos_2d", "pool": "gap"}),
    "no positions": (("timm",), {"position": "none"}),
    "registers": (("timm",), {"registers": 3}),
    "registers beside patches alone": (("timm",), {"pool": "gap", "registers": 3}),
    "layer scale": (("timm", "hf"), {"layer_scale": 0.5}),
    "layer scale and registers": (("timm", "hf"), {"layer_scale": 0.5, "registers": 3}),
    "norms of queries and keys": (("timm",), {"qk_norm": True}),
    "distillation token": (("timm", "hf"), {"distillation_token": True}),
    "tanh layer": (("google",), {"hidden_head": True}),
    "tanh layer without a head": (("google", "hf"), {"hidden_head": True, "num_classes": 0}),
    "no head": (("google", "timm", "hf"), {"num_classes": 0}),
    "tanh GELU": (("google", "timm", "hf"), {"gelu": "tanh"}),
    "no square": (("google", "timm", "hf"), {"image_px": (8, 12)}),
    "hybrid of the authors": (("google",), {"stem": JAX_STEM, "patch_px": 8, "image_px": (16, 16)}),
    "hybrid of timm": (("timm",), {"stem": TIMM_STEM, **HYBRID}),
    "root alone": (
        ("google",),
        {"stem": ResNetStemSpec(blocks=(), width=32), "patch_px": 8, "image_px": (16, 16)},
    ),
    "six heads": (("google", "timm", "hf"), {"num_heads": 6}),
}
"""Variant -> the layouts that have words for it, and how its spec differs from the smallest."""

SUFFIX = {"google": ".npz", "timm": "", "hf": "", "safetensors": ".safetensors", "onnx": ".onnx"}
UNSAID = {
    "google": ("gelu", "image_px", "position_resize"),
    "timm": ("position_resize", "layer_norm_eps"),
    "hf": ("position_resize",),
}
"""What the reader has to be told of an unusual model."""


def some_model(**changes: Any) -> ViT:
    model = build(tiny_spec(**{"mlp_dim": 48, "image_px": (8, 8), **changes}), seed=0).eval()
    randomise(model, seed=1)
    return model


def weights_of(model: ViT) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def path_for(folder: Path, layout: str) -> Path:
    return folder / f"out{SUFFIX[layout]}"


def travelled(model: ViT, folder: Path, layout: Layout) -> tuple[ViTSpec, dict[str, torch.Tensor]]:
    path = path_for(folder, layout)
    save(path, layout, model.spec, weights_of(model))
    said = {name: getattr(model.spec, name) for name in UNSAID[layout]}
    found = load(path, assume=Assumptions(**said))
    return found.spec, found.weights


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        pytest.param(layout, changes, id=f"{name}-{layout}")
        for name, (layouts, changes) in EXACT.items()
        for layout in layouts
    ],
)
def test_round_trip_is_bitwise(tmp_path: Path, layout: Layout, changes: dict[str, Any]) -> None:
    model = some_model(**changes)
    spec, weights = travelled(model, tmp_path, layout)
    assert spec == model.spec
    assert list(weights) == list(weights_of(model))
    for name, parameter in weights_of(model).items():
        assert torch.equal(weights[name], parameter), name
        assert weights[name].is_contiguous()


@pytest.mark.parametrize("changes", [changes for _, changes in EXACT.values()])
def test_our_own_file_says_everything(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = some_model(**changes, layer_norm_eps=1e-5, pixel_std=(0.1, 0.2, 0.3))
    names = tuple("abcde"[: model.spec.num_classes])
    file = tmp_path / "vit.safetensors"
    assert save(file, "safetensors", model.spec, weights_of(model), class_names=names) == ()
    found = load(file)
    assert (found.spec, found.class_names, found.origin.assumed) == (model.spec, names, ())
    assert all(torch.equal(found.weights[it], tensor) for it, tensor in weights_of(model).items())


@pytest.mark.parametrize("layout", ["google", "timm", "hf"])
@pytest.mark.parametrize("position", ["learned_2d", "sincos_2d", "none"])
def test_positions_without_words_go_out_as_a_table(
    tmp_path: Path, layout: Layout, position: str
) -> None:
    model = some_model(position=position)
    notes = save(path_for(tmp_path, layout), layout, model.spec, weights_of(model))
    if (layout, position) == ("timm", "none"):
        return
    assert f"positions {position} are written out as a table for 4 patches" in notes
    path_for(tmp_path, layout).rename(tmp_path / f"other{SUFFIX[layout]}")
    spec, weights = travelled(model, tmp_path, layout)
    again, pixels = ViT(spec), noise((8, 8), seed=2)
    again.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(again.eval()(pixels), model(pixels))


@pytest.mark.parametrize(
    ("layout", "changes", "sentence"),
    [
        ("google", {"registers": 2}, "cannot express registers 2 (only 0)"),
        ("google", {"layer_scale": 0.5}, "cannot express layer_scale 0.5"),
        ("google", {"distillation_token": True}, "cannot express distillation_token"),
        ("google", {"qk_norm": True}, "cannot express qk_norm"),
        ("google", {"pool": "gap", "norm_at": "pooled"}, "cannot express norm_at pooled"),
        ("google", {"position": "relative"}, "cannot express position relative"),
        ("timm", {"position": "relative"}, "cannot express position relative"),
        ("timm", {"position_at": "shared"}, "cannot express position_at shared"),
        ("timm", {"axial": True, "pool": "gap"}, "cannot express axial"),
        ("timm", {"hidden_head": True}, "cannot express hidden_head"),
        ("timm", {"stem": JAX_STEM, "patch_px": 8, "image_px": (16, 16)}, "its state dict alone"),
        ("timm", {"distillation_token": True, "registers": 1}, "beside registers"),
        ("hf", {"pool": "gap"}, "cannot express pool gap"),
        ("hf", {"registers": 2}, "registers have LayerScale"),
        ("hf", {"hidden_head": True}, "without a classifier"),
        ("hf", {"layer_scale": 0.5, "image_px": (8, 12)}, "square grids only"),
        ("hf", {"layer_scale": 0.5, "mlp_dim": 40}, "must be a multiple of width"),
        ("hf", {"stem": JAX_STEM, "patch_px": 8, "image_px": (16, 16)}, "ResNet stem"),
        ("hf", {"distillation_token": True, "num_classes": 0}, "not told from a register"),
    ],
)
def test_what_a_layout_cannot_say_is_refused(
    tmp_path: Path, layout: Layout, changes: dict[str, Any], sentence: str
) -> None:
    model = some_model(**changes)
    with pytest.raises(SpecError) as caught:
        save(path_for(tmp_path, layout), layout, model.spec, weights_of(model))
    assert sentence in caught.value.what
    assert list(tmp_path.iterdir()) == []


def test_conventions_that_a_file_cannot_carry_are_told(tmp_path: Path) -> None:
    model = some_model(layer_norm_eps=1e-5)
    assert save(tmp_path / "vit.npz", "google", model.spec, weights_of(model)) == (
        "gelu is erf; the layout google does not say it, and its readers take tanh",
        "layer_norm_eps is 1e-05; the layout google does not say it, and its readers take 1e-06",
    )
    (note,) = save(tmp_path / "vit", "timm", model.spec, weights_of(model))
    assert note.startswith("layer_norm_eps is 1e-05")


def test_layouts_are_recognised(tmp_path: Path) -> None:
    model = some_model()
    for layout in ("google", "timm", "hf", "safetensors"):
        path = tmp_path / f"{layout}{SUFFIX[layout]}"
        save(path, layout, model.spec, weights_of(model))
        assert recognise(path) == layout
    assert recognise(tmp_path / "timm/model.safetensors") == "timm"
    assert recognise(tmp_path / "hf/model.safetensors") == "hf"
    assert load(tmp_path / "hf/model.safetensors").spec == model.spec.revise(position_resize="hf")


def test_our_folder_is_read_like_any_other(tmp_path: Path) -> None:
    model = some_model()
    saved = SavedModel(spec=model.spec, class_names=tuple("abcde"), trained_steps=3)
    save_model(tmp_path / "model", weights_of(model), saved)
    found = load(tmp_path / "model")
    assert (found.spec, found.class_names) == (model.spec, tuple("abcde"))
    assert sorted(found.origin.files) == ["model.json", "model.safetensors"]


def test_origin_names_every_file_by_digest(tmp_path: Path) -> None:
    import hashlib

    model = some_model()
    save(tmp_path / "vit", "hf", model.spec, weights_of(model))
    files = load(tmp_path / "vit").origin.files
    assert sorted(files) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    for name, told in files.items():
        data = (tmp_path / "vit" / name).read_bytes()
        assert (told.size_bytes, told.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_user_and_file_must_agree(tmp_path: Path) -> None:
    model = some_model()
    save(tmp_path / "vit", "hf", model.spec, weights_of(model))
    with pytest.raises(SpecError, match="gelu is given as tanh, but the file says erf"):
        load(tmp_path / "vit", assume=Assumptions(gelu="tanh"))


# What strangers hand in: one sentence each.


def refusal(path: Path, layout: Layout | None = None) -> VitrailError:
    with pytest.raises(VitrailError) as caught:
        load(path, layout)
    assert "\n" not in caught.value.what
    return caught.value


MOBILENET = {
    "conv_stem.weight": (16, 3, 3, 3),
    "bn1.weight": (16,),
    "blocks.0.0.conv_dw.weight": (16, 1, 3, 3),
    "classifier.weight": (10, 16),
    "classifier.bias": (10,),
}


@pytest.mark.parametrize("layout", [None, "timm"])
def test_a_mobilenet_is_no_vit(tmp_path: Path, layout: Layout | None) -> None:
    state = {name: torch.zeros(shape) for name, shape in MOBILENET.items()}
    torch.save(state, tmp_path / "mobilenet.pth")
    found = refusal(tmp_path / "mobilenet.pth", layout)
    assert isinstance(found, SpecError)
    assert "blocks.0.0.conv_dw.weight" in found.what
    if layout:
        assert "it lacks patch_embed.proj.weight" in found.what


def test_a_mobilenet_in_an_npz_is_no_vit(tmp_path: Path) -> None:
    np.savez(tmp_path / "net.npz", **{name: np.zeros(it) for name, it in MOBILENET.items()})
    assert "it lacks embedding/kernel" in refusal(tmp_path / "net.npz").what


def test_another_model_of_hugging_face_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "says model_type bert" in refusal(tmp_path).what


@pytest.mark.parametrize("layout", ["google", "timm", "hf", "safetensors"])
def test_a_truncated_file_is_torn(tmp_path: Path, layout: Layout) -> None:
    model = some_model()
    path = path_for(tmp_path, layout)
    save(path, layout, model.spec, weights_of(model))
    file = path if path.is_file() else path / "model.safetensors"
    for share in (0.9, 0.5, 0.01, 0.0):
        data = file.read_bytes()
        cut = tmp_path / f"cut{file.suffix}"
        cut.write_bytes(data[: int(len(data) * share)])
        found = refusal(cut, "timm" if layout == "hf" else layout)
        assert isinstance(found, IntegrityError)
        assert "cut off or damaged" in found.what


def test_a_truncated_torch_file_is_torn(tmp_path: Path) -> None:
    torch.save({"cls_token": torch.zeros(1, 1, 24)}, tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    for size in (len(data) - 30, len(data) // 2, 3, 0):
        (tmp_path / "cut.pth").write_bytes(data[:size])
        found = refusal(tmp_path / "cut.pth")
        assert isinstance(found, IntegrityError)
        assert "damaged" in found.what


def test_missing_unexpected_and_misshapen_are_listed_at_once(tmp_path: Path) -> None:
    model = some_model()
    save(tmp_path / "vit", "timm", model.spec, weights_of(model))
    from safetensors.torch import load_file

    file = tmp_path / "vit/model.safetensors"
    state = load_file(file)
    del state["blocks.1.norm2.bias"]
    state["blocks.1.norm3.bias"] = torch.zeros(24)
    state["blocks.0.mlp.fc2.weight"] = torch.zeros(24, 47)
    save_file(state, file)
    said = refusal(tmp_path / "vit").what
    assert "missing: blocks.1.norm2.bias" in said
    assert "unexpected: blocks.1.norm3.bias" in said
    assert "of another shape: blocks.0.mlp.fc2.weight [24, 47] instead of [24, 48]" in said


def test_gap_in_the_depth_is_a_missing_block(tmp_path: Path) -> None:
    model = some_model(depth=3)
    save(tmp_path / "vit.npz", "google", model.spec, weights_of(model))
    arrays = dict(np.load(tmp_path / "vit.npz"))
    kept = {name: it for name, it in arrays.items() if "encoderblock_1/" not in name}
    np.savez(tmp_path / "vit.npz", **kept)
    said = refusal(tmp_path / "vit.npz").what
    assert "missing: Transformer/encoderblock_1/" in said
    assert "unexpected: Transformer/encoderblock_2/" in said


class Trap:
    """A pickle that would write a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt"])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, suffix: str) -> None:
    mark = tmp_path / "ran"
    file = tmp_path / f"weights{suffix}"
    torch.save({"x": Trap(mark)}, file)
    found = refusal(file, "timm")
    assert isinstance(found, SpecError)
    assert "which is more than tensors, so nothing of it was run" in found.what
    file.write_bytes(pickle.dumps({"x": Trap(mark)}))
    assert "nothing of it was run" in refusal(file, "timm").what
    assert not mark.exists()


def test_objects_in_an_npz_are_never_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    np.savez(tmp_path / "x.npz", **{"embedding/kernel": np.array([Trap(mark)], dtype=object)})
    assert "nothing of it was run" in refusal(tmp_path / "x.npz").what
    assert not mark.exists()


def test_a_state_dict_of_something_else(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": [0.1]}, tmp_path / "run.pth")
    assert "holds no state dict" in refusal(tmp_path / "run.pth").what
    torch.save(torch.zeros(3), tmp_path / "one.pth")
    assert "holds no state dict" in refusal(tmp_path / "one.pth").what


@pytest.mark.parametrize("name", ["nothing.npz", "nothing"])
def test_nothing_there(tmp_path: Path, name: str) -> None:
    assert isinstance(refusal(tmp_path / name), UsageError)


def test_folder_without_weights(tmp_path: Path) -> None:
    assert "holds neither model.json nor config.json" in refusal(tmp_path).what
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert "holds no model.safetensors" in refusal(tmp_path).what
    (tmp_path / "config.json").write_text("{")
    assert isinstance(refusal(tmp_path), IntegrityError)


def test_shards_of_an_index_are_joined_and_never_looked_for_elsewhere(tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file

    model, folder = some_model(), tmp_path / "vit"
    save(folder, "hf", model.spec, weights_of(model))
    state = load_file(folder / "model.safetensors")
    whole = load(folder).weights
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = folder / "model.safetensors.index.json"
    where = {name: file for file, part in parts.items() for name in part}
    index.write_text(json.dumps({"weight_map": where}))
    assert all(torch.equal(tensor, whole[it]) for it, tensor in load(folder).weights.items())
    index.write_text(json.dumps({"weight_map": {"x": "../vit/a.safetensors"}}))
    assert "names shards that are not there" in refusal(folder).what


@pytest.mark.parametrize(
    ("layout", "name", "sentence"),
    [
        ("google", "vit.safetensors", "ends in .npz"),
        ("onnx", "vit", "ends in .onnx"),
        ("hf", "vit.safetensors", "is a folder"),
        ("timm", "vit.pth", "is a folder"),
        ("google", "there.npz", "exists and stays as it is"),
        ("hf", "no/such/folder", "there is no folder"),
    ],
)
def test_places_that_are_not_written_to(
    tmp_path: Path, layout: Any, name: str, sentence: str
) -> None:
    (tmp_path / "there.npz").touch()
    model = some_model()
    with pytest.raises(UsageError, match=sentence):
        save(tmp_path / name, layout, model.spec, weights_of(model))

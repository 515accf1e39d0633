"""The masked autoencoder against Hugging Face's, with the same weights and the same mask."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data.feed.course import Places
from pipeline.model.interchange import load
from pipeline.model.mae import MaskedAutoencoder, build_mae
from pipeline.model.masked import build_masked, encoder_weights
from pipeline.model.noise import ForwardNoise
from pipeline.model.vit import build
from pipeline.training.objectives.masked import Autoencoding
from schemas.objectives import MaeSpec
from tests.support.foreign import noise as pictures
from tests.support.foreign import randomise, relative_error, save_theirs, transformers
from tests.support.models import tiny_spec
from tests.support.training import FakeBatch, setting

BOUND = 1e-5
NAMES = {
    "decoder_embed": "embed",
    "decoder_norm": "norm",
    "decoder_pred": "pixels",
    "decoder_layers": "blocks",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "mlp.fc1": "dense1",
    "mlp.fc2": "dense2",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "out",
}


def decoder_weights(theirs: nn.Module, patch_px: int) -> dict[str, Tensor]:
    """Their decoder's parameters under our names; a pixel's channels come last with them."""
    found = {}
    for theirs_name, tensor in theirs.decoder.named_parameters():
        ours = theirs_name
        for old, new in NAMES.items():
            ours = ours.replace(old, new)
        found[f"decoder.{ours}"] = tensor.detach()
    for name in ("decoder.pixels.weight", "decoder.pixels.bias"):
        cells = found[name].reshape(patch_px, patch_px, 3, -1)
        found[name] = cells.permute(2, 0, 1, 3).reshape(found[name].shape)
    found["decoder.mask_token"] = found["decoder.mask_token"].flatten()
    del found["decoder.decoder_pos_embed"]
    return found


@pytest.mark.parametrize("normalised", [True, False])
def test_loss_and_pixels_are_those_of_hugging_face(
    normalised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transformers(monkeypatch).ViTMAEConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=128,
        norm_pix_loss=normalised,
        attn_implementation="sdpa",
    )
    theirs = transformers(monkeypatch).ViTMAEForPreTraining(config).eval()
    position = theirs.vit.embeddings.position_embeddings.clone()
    randomise(theirs, seed=1)
    theirs.vit.embeddings.position_embeddings.data.copy_(position)
    theirs.decoder.initialize_weights(16)  # the table, which a new model of theirs lacks
    table = theirs.decoder.decoder_pos_embed[0]

    loaded = load(save_theirs(theirs, tmp_path / "mae"))
    spec = MaeSpec(
        decoder_width=32, decoder_depth=2, decoder_heads=4, normalised_targets=normalised
    )
    model = MaskedAutoencoder(loaded.spec, spec.decoder(loaded.spec)).eval()
    model.load_state_dict(loaded.weights | decoder_weights(theirs, 8))
    torch.testing.assert_close(model.decoder.position, table.detach(), atol=1e-7, rtol=0)

    rows = np.arange(6)
    pixels = np.random.default_rng(5).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    batch = FakeBatch(pixels, rows, Places(rows * 0, rows * 0, rows))
    objective = Autoencoding(setting(loaded.spec), spec)
    order = objective.setting.uniforms("mask", batch.places, 16)
    shown = objective.setting.pixels(batch)
    with torch.no_grad():
        found = theirs(shown, noise=order)
        loss = objective(model, batch)
        drawn = model(shown, ForwardNoise(kept_patches_BM=objective.kept(batch.places)))
    assert loss.item() == pytest.approx(found.loss.item(), rel=BOUND)
    wanted = found.logits.unflatten(2, (8, 8, 3)).permute(0, 1, 4, 2, 3).flatten(2)
    assert relative_error(drawn, wanted) <= BOUND


@torch.no_grad()
def test_hidden_patches_have_no_say() -> None:
    spec = tiny_spec(num_classes=0, registers=1)
    decoder = MaeSpec(decoder_width=16, decoder_depth=1, decoder_heads=2).decoder(spec)
    model = build_mae(spec, decoder, seed=1)
    randomise(model, seed=2)
    images = pictures(spec.image_px, samples=1, seed=3)
    changed = images.clone()
    changed[:, :, :4, 4:8] = 9.0  # patch 1
    seen = ForwardNoise(kept_patches_BM=torch.tensor([[0, 4]]))
    assert torch.equal(model(images, seen), model(changed, seen))
    assert model(images, seen).shape == (1, 6, 48)
    changed[:, :, :4, :4] = 9.0  # patch 0 is seen
    assert not torch.equal(model(images, seen), model(changed, seen))


@pytest.mark.parametrize("kind", ["masked_patch", "mae"])
def test_an_encoder_begins_and_is_kept_as_the_plain_model(kind: str) -> None:
    spec = tiny_spec(num_classes=0)
    decoder = MaeSpec(decoder_width=16, decoder_depth=1, decoder_heads=2).decoder(spec)
    model = build_mae(spec, decoder, seed=4) if kind == "mae" else build_masked(spec, seed=4)
    plain = dict(build(spec, seed=4).named_parameters())
    found = encoder_weights(dict(model.named_parameters()))
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], weight) for name, weight in plain.items())
    assert len(dict(model.named_parameters())) > len(plain)

"""Pictures of a model: every number against its definition, written another way."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from pipeline.evaluation.interpret.components import (
    feature_maps_of,
    filters_of,
    principal_components,
)
from pipeline.evaluation.interpret.distances import (
    AttentionTotals,
    patch_distances,
    uniform_distance,
)
from pipeline.evaluation.interpret.layers import layers_of, linear_cka
from pipeline.evaluation.interpret.looks import look, rolled
from pipeline.evaluation.interpret.neighbourhood import Embedded, neighbourhood_of
from pipeline.evaluation.interpret.positions import positions_of, similarities
from pipeline.evaluation.interpret.sample import in_turn
from pipeline.model import build
from pipeline.model.anatomy import first_kernels, pooled_layers, position_table
from pipeline.model.attention_maps import Attended, Places, each_attention
from pipeline.model.stem import standardise
from pipeline.model.vit import ViT
from schemas.backbones import ResNetSpec
from schemas.errors import SpecError
from schemas.model import ResNetStemSpec
from tests.support import foreign
from tests.support.models import tiny_spec, weights_of


def random_vit(**changes: Any) -> ViT:
    model = build(tiny_spec(**changes), seed=0)
    assert isinstance(model, ViT)
    foreign.randomise(model, seed=1)
    return model.eval()


def weights(places: Places, *, samples: int = 2, heads: int = 3) -> torch.Tensor:
    tokens = places.leading + places.patches
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(samples, heads, tokens, tokens, generator=generator, dtype=torch.float64)
    return (2 * scores).softmax(dim=-1)


def test_uniform_attention_has_the_distance_of_the_closed_form() -> None:
    """14 x 14 patches of 16 px: the mean over all pairs, one by one, and through the statistics."""
    places = Places(1, 14, 14)
    centres = [(16.0 * row, 16.0 * column) for row in range(14) for column in range(14)]
    brute = math.fsum(math.dist(a, b) for a in centres for b in centres) / len(centres) ** 2
    assert uniform_distance(places, (16.0, 16.0)) == pytest.approx(brute, abs=1e-9)
    totals = AttentionTotals((224, 224), (14, 14))
    totals.add(Attended("block 1", places, torch.full((2, 3, 197, 197), 1 / 197), whole=True))
    found = totals.result(2)
    assert found.patch_px == (16.0, 16.0)
    assert found.distances_px[0] == pytest.approx([brute] * 3, abs=1e-6)
    assert found.uniform_distances_px == pytest.approx((brute,), abs=1e-9)
    assert found.entropies[0] == pytest.approx([1.0] * 3, abs=1e-6)
    assert found.leading_ratios[0] == pytest.approx([1 / 197] * 3, abs=1e-6)


def test_attention_statistics_are_those_of_their_definitions() -> None:
    """Non-square grid and patches, leading tokens, two batches; token by token."""
    places, patch = Places(2, 2, 3), (4.0, 5.0)
    whole = weights(places, samples=5)
    totals = AttentionTotals((8, 15), None)
    for part in (whole[:2], whole[2:]):
        totals.add(Attended("block 1", places, part, whole=True))
    found = totals.result(5)
    at = [(patch[0] * row, patch[1] * column) for row in range(2) for column in range(3)]
    for head in range(3):
        distances, entropies, leading = [], [], []
        for image in range(5):
            for query in range(6):
                row = whole[image, head, 2 + query].tolist()
                rest = sum(row[2:])
                distances.append(
                    sum(share * math.dist(at[query], at[key]) for key, share in enumerate(row[2:]))
                    / rest
                )
                entropies.append(-sum(it * math.log(it) for it in row) / math.log(len(row)))
                leading.append(row[0] + row[1])
        assert found.distances_px[0][head] == pytest.approx(np.mean(distances), abs=1e-6)
        assert found.entropies[0][head] == pytest.approx(np.mean(entropies), abs=1e-9)
        assert found.leading_ratios[0][head] == pytest.approx(np.mean(leading), abs=1e-9)


def test_distances_are_between_centres_of_patches() -> None:
    distances = patch_distances(Places(3, 2, 2), (3.0, 4.0))
    assert distances[0].tolist() == [0.0, 4.0, 3.0, 5.0]


def test_rows_of_a_rollout_sum_to_one() -> None:
    through = None
    for _ in range(24):
        through = rolled(through, weights(Places(1, 7, 7)).float())
    assert through is not None
    assert torch.allclose(through.sum(dim=-1), torch.ones(2, 50), atol=1e-5)
    assert through.min() >= 0


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({"registers": 2}, "class token"),
        ({"distillation_token": True}, "class token"),
        ({"pool": "gap", "registers": 1}, "mean over patches"),
        ({"pool": "map", "registers": 2}, "pooling query"),
    ],
)
def test_a_look_follows_what_the_model_pools_with(changes: dict[str, Any], reads: str) -> None:
    model = random_vit(**changes)
    pixels = foreign.noise((8, 12), seed=4)
    *blocks, last = (it.double().numpy() for it in weights_of(model, pixels))
    lead, tokens = model.spec.leading, model.spec.leading + 6
    reading = np.zeros((2, 1, tokens))
    if reads == "pooling query":
        reading[:] = last.mean(axis=1)
        heads = last[:, :, 0]
    else:
        blocks.append(last)
        rows = (
            slice(0, 1 + model.spec.distillation_token) if "class" in reads else slice(lead, None)
        )
        heads = last[:, :, rows].mean(axis=2)
        count = len(range(tokens)[rows])
        reading[:, :, rows] = 1 / count
    through = np.broadcast_to(np.eye(tokens), (2, tokens, tokens))
    for block in blocks:
        through = (block.mean(axis=1) + np.eye(tokens)) / 2 @ through
    found = look(model, pixels)
    assert found.reads == reads
    for got, wanted in (
        (found.heads_BARQ, heads),
        (found.last_BRQ, heads.mean(axis=1)),
        (found.rollout_BRQ, (reading @ through)[:, 0]),
    ):
        patches = wanted[..., lead:]
        patches = patches / patches.sum(axis=-1, keepdims=True)
        assert np.allclose(got.numpy(), patches.reshape(*patches.shape[:-1], 2, 3), atol=1e-6)


def test_the_query_of_an_attention_pooling_is_what_pools() -> None:
    model = random_vit(pool="map", norm_at="pooled")
    pixels = foreign.noise((8, 12), seed=4)
    pooling = model.pooling
    assert pooling is not None
    with torch.no_grad():
        last = weights_of(model, pixels)[-1]
        tokens = model.forward_tokens(pixels)
        value = pooling.attention.value(tokens).view(2, 6, 3, 8).transpose(1, 2)
        mixed = pooling.attention.out((last @ value).transpose(1, 2).reshape(2, 1, 24))
        assert torch.allclose(mixed, pooling.attention(tokens, pooling.asking(tokens)), atol=1e-6)


@torch.no_grad()
def test_axial_blocks_have_distances_along_lines_and_no_look() -> None:
    model = random_vit(axial=True, pool="gap")
    seen: list[Attended] = []
    totals = AttentionTotals(model.spec.image_px, model.spec.grid)
    pixels = foreign.noise((8, 12), seed=4)
    each_attention(model, pixels, lambda it: (seen.append(it), totals.add(it))[0])
    assert [it.layer for it in seen] == [
        f"block {number}, {part}" for number in (1, 2) for part in ("rows", "columns")
    ]
    assert [tuple(it.weights_SAMT.shape) for it in seen[:2]] == [(4, 3, 3, 3), (6, 3, 2, 2)]
    found = totals.result(2)
    # Three patches of 4 px in a row: two thirds of the pairs are apart, by 4, 4 and 8 px.
    assert found.uniform_distances_px[:2] == pytest.approx((32 / 9, 2.0))
    assert found.patch_px == (4.0, 4.0)
    with pytest.raises(SpecError, match="no token of axial blocks"):
        look(model, pixels)


def test_a_resnet_has_no_attention_and_no_positions() -> None:
    spec = ResNetSpec(blocks=(1, 1), width=32, image_px=(16, 16), num_classes=3)
    model = build(spec, seed=0).eval()
    pixels = foreign.noise((16, 16), seed=1)
    with pytest.raises(SpecError, match="has no attention"):
        look(model, pixels)
    with pytest.raises(SpecError, match="adds no positions"):
        positions_of(model)
    layers, features = pooled_layers(model, pixels)
    assert list(layers) == ["stage 1, unit 1", "stage 2, unit 1"]
    assert layers["stage 2, unit 1"].shape == features.shape == (2, 256)
    section, kernels = filters_of(model)
    assert (section.what, section.count, kernels.shape) == ("kernels", 32, (32, 7, 7, 3))
    norms = np.linalg.norm(kernels.reshape(32, -1), axis=1)
    assert (np.diff(norms) <= 1e-6).all()


@torch.no_grad()
def test_layers_are_means_over_the_patches_after_each_block() -> None:
    model = random_vit(registers=2)
    pixels = foreign.noise((8, 12), seed=4)
    layers, features = pooled_layers(model, pixels)
    assert list(layers) == ["block 1", "block 2"]
    for found, tokens in zip(layers.values(), model.hidden_states(pixels), strict=True):
        assert torch.allclose(found, tokens[:, 3:].mean(dim=1))
    assert torch.equal(features, model.forward_features(pixels))
    assert not any(block._forward_hooks for block in model.blocks), "no hook is left behind"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": "learned_2d", "registers": 2},
        {"position": "sincos_2d", "pool": "gap"},
        {"position_at": "every_layer"},
        {"position": "learned_2d", "position_at": "every_layer", "distillation_token": True},
    ],
)
def test_positions_are_what_the_first_block_is_given(changes: dict[str, Any]) -> None:
    """Told by what it gets for patches of zeros."""
    model = random_vit(**changes)
    given: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _m, inputs: given.append(inputs[0]))
    with torch.no_grad():
        model.encode(torch.zeros(1, 6, 24))
    expected = given[0][0, model.spec.leading :]
    table = position_table(model)
    assert table.grid == (2, 3)
    assert torch.allclose(table.table_ND, expected, atol=1e-6)
    section, maps = positions_of(model)
    assert section.every_layer == ("every_layer" in changes.values())
    assert section.shown == tuple((row, column) for row in range(2) for column in range(3))
    cosines = torch.cosine_similarity(expected[4], expected, dim=1).detach().reshape(2, 3)
    assert np.allclose(maps[4], cosines.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("position", "sentence"), [("none", "has no positions"), ("relative", "keys of distances")]
)
def test_models_without_a_table_say_so(position: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        positions_of(random_vit(position=position))


def test_a_large_grid_shows_seven_by_seven() -> None:
    section, maps = positions_of(random_vit(image_px=(32, 80)))
    assert section.grid == (8, 20)
    assert maps.shape == (49, 8, 20)
    assert all(maps[place][at] == pytest.approx(1.0) for place, at in enumerate(section.shown))


def test_a_vector_of_zeros_is_like_none() -> None:
    assert similarities(np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([0, 1])).tolist() == [
        [0.0, 0.0],
        [0.0, 1.0],
    ]


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_components_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(5).normal(size=shape) @ np.diag(np.linspace(3, 0.1, shape[1]))
    found = principal_components(vectors, 4)
    theirs = PCA(4, svd_solver="full").fit(vectors)
    assert np.allclose(found.ratios_K, theirs.explained_variance_ratio_, atol=1e-10)
    signs = np.sign((found.directions_KD * theirs.components_).sum(axis=1))
    assert np.allclose(found.directions_KD, theirs.components_ * signs[:, None], atol=1e-8)
    assert np.allclose(found.of(vectors), theirs.transform(vectors) * signs, atol=1e-8)
    furthest = np.abs(found.directions_KD).argmax(axis=1)
    assert (found.directions_KD[np.arange(4), furthest] > 0).all()


def test_equal_vectors_have_no_components() -> None:
    with pytest.raises(SpecError, match="all vectors are equal"):
        principal_components(np.ones((5, 3)), 2)


def test_filters_of_a_patch_projection_are_its_components() -> None:
    model = random_vit(width=48)
    section, tiles = filters_of(model)
    assert (section.what, section.count, tiles.shape) == ("components", 48, (28, 4, 4, 3))
    kernels = model.patch.weight.detach().numpy()
    theirs = PCA(28, svd_solver="full").fit(kernels.astype(np.float64))
    first = theirs.components_[0].reshape(3, 4, 4).transpose(1, 2, 0)
    assert abs(float((first * tiles[0]).sum())) == pytest.approx(1.0, abs=1e-6)
    assert section.explained_ratios == pytest.approx(theirs.explained_variance_ratio_, abs=1e-8)


def test_kernels_of_a_hybrid_are_those_of_its_root_as_applied() -> None:
    stem = ResNetStemSpec(blocks=(1,), width=32)
    model = random_vit(stem=stem, patch_px=4, image_px=(8, 8))
    found = first_kernels(model)
    assert not found.is_patch
    assert model.stem is not None
    assert torch.equal(found.weights_DCHW, standardise(model.stem.root.weight, stem))


def test_maps_of_features_are_fitted_over_all_images_at_once() -> None:
    model = random_vit()
    pixels = foreign.noise((8, 12), seed=4, samples=3)
    section, maps = feature_maps_of(model, pixels)
    with torch.no_grad():
        patches = model.forward_grid(pixels).double().numpy().reshape(18, 24)
    theirs = PCA(3, svd_solver="full").fit(patches)
    assert maps.shape == (3, 2, 3, 3)
    assert section.explained_ratios == pytest.approx(theirs.explained_variance_ratio_, abs=1e-6)
    assert np.allclose(np.abs(maps.reshape(18, 3)), np.abs(theirs.transform(patches)), atol=1e-5)


def hsic(left: np.ndarray, right: np.ndarray) -> float:
    """Song et al. 2012, equation 5, as it is written there."""
    n = len(left)
    k, l_ = left @ left.T, right @ right.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l_, 0)
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ l_ @ one) / ((n - 1) * (n - 2))
    last = 2 / (n - 2) * (one @ k @ l_ @ one)
    return float((np.trace(k @ l_) + middle - last) / (n * (n - 3)))


def test_cka_is_that_of_its_definition() -> None:
    draws = np.random.default_rng(6)
    first = draws.normal(size=(20, 7)) + 2.0
    second = np.concatenate([first[:, :3], draws.normal(size=(20, 30))], axis=1)
    turned = 3.0 * first @ np.linalg.qr(draws.normal(size=(7, 7)))[0]
    vectors = {"a": first, "b": second, "c": turned}
    found = linear_cka(vectors)
    for row, left in enumerate(vectors.values()):
        for column, right in enumerate(vectors.values()):
            wanted = hsic(left, right) / math.sqrt(hsic(left, left) * hsic(right, right))
            assert found[row, column] == pytest.approx(wanted, abs=1e-9)
    assert found[0, 2] == pytest.approx(1.0), "turning and scaling change nothing"


def test_unrelated_wide_layers_are_not_alike() -> None:
    """Where the biased estimate says 0.9."""
    draws = np.random.default_rng(7)
    found = linear_cka({name: draws.normal(size=(60, 600)) for name in "ab"})
    assert abs(found[0, 1]) < 0.15


def test_layers_are_compared_over_some_images_and_some_layers() -> None:
    few = {name: np.eye(5) for name in "ab"}
    with pytest.raises(SpecError, match="8 images or more, not 5"):
        layers_of(few)
    with pytest.raises(SpecError, match="single layer"):
        layers_of({"a": np.eye(9)})


def clusters(count: int = 60) -> Embedded:
    draws = np.random.default_rng(8)
    labels = np.arange(count) % 3
    features = 5.0 * np.eye(3)[labels] @ draws.normal(size=(3, 16))
    features += 0.3 * draws.normal(size=(count, 16))
    return Embedded(features, labels, tuple(f"{it:032x}" for it in range(count)))


def test_a_map_of_features_keeps_groups_together_and_does_not_change() -> None:
    section, points = neighbourhood_of(clusters(), perplexity=30.0, seed=5)
    assert section.perplexity == pytest.approx(59 / 3), "no more than a third of the images"
    assert section.same_class_ratio == 1.0
    assert section.same_class_chance == pytest.approx(19 / 59)
    assert section.trustworthiness > 0.8
    centres = np.stack([points[np.arange(60) % 3 == label].mean(axis=0) for label in range(3)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == np.arange(60) % 3).all()
    again = neighbourhood_of(clusters(), perplexity=30.0, seed=5)[1]
    assert np.array_equal(points, again)


def test_a_map_of_few_or_equal_images_is_refused() -> None:
    with pytest.raises(SpecError, match="8 images or more, not 7"):
        neighbourhood_of(clusters(7), perplexity=30.0, seed=5)
    equal = clusters()._replace(features_ND=np.ones((60, 16)))
    with pytest.raises(SpecError, match="equal"):
        neighbourhood_of(equal, perplexity=30.0, seed=5)


def test_shown_images_are_of_as_many_classes_as_there_are() -> None:
    labels = np.array([4, 4, 4, 2, 2, 7])
    assert in_turn(labels, 4).tolist() == [0, 3, 5, 1]
    assert in_turn(labels, 10).tolist() == [0, 3, 5, 1, 4, 2]

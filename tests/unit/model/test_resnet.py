"""The ResNet against timm's, and what it is by itself."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cost import resnet_flops, resnet_parameters
from pipeline.model import build
from pipeline.model.resnet import ResNet
from schemas.backbones import ResNetModel, ResNetSpec
from tests.support import foreign

TINY = ResNetSpec(blocks=(1, 2), width=32, image_px=(40, 36), num_classes=5)


def resnet(**fields: object) -> ResNetSpec:
    return ResNetModel.parse({"image_px": 224, **fields}).resolved(num_classes=1000)


def theirs(spec: ResNetSpec) -> torch.nn.Module:
    """Timm's model of the same sizes."""
    foreign.timm()
    from timm.layers import StdConv2d
    from timm.models.resnetv2 import ResNetV2

    class Conv(StdConv2d):
        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, **more, eps=spec.weight_std_eps)  # type: ignore[arg-type]

    channels = [4 * spec.width * 2**stage for stage in range(len(spec.blocks))]
    return ResNetV2(
        list(spec.blocks),
        channels,
        num_classes=spec.num_classes,
        stem_chs=spec.width,
        stem_type="fixed",
        conv_layer=Conv,
    )


def renamed(name: str) -> str:
    """Our name of a tensor of timm's."""
    for old, new in (
        ("stem.conv", "root"),
        (".blocks.", "."),
        ("downsample.conv", "project"),
        ("head.fc", "head"),
    ):
        name = name.replace(old, new)
    return name


def copied(spec: ResNetSpec, their: torch.nn.Module) -> ResNet:
    """Our model with their weights: all of them, and no other."""
    weights = {renamed(name): tensor for name, tensor in their.state_dict().items()}
    weights["head.weight"] = weights["head.weight"].flatten(1)  # a convolution of one cell
    model = ResNet(spec)
    model.load_state_dict(weights)
    return model.eval()


def test_r50x1_has_timms_number_of_parameters() -> None:
    timm = foreign.timm()
    with torch.device("meta"):
        bit = timm.create_model("resnetv2_50x1_bit", num_classes=1000)
        ours = ResNet(resnet(variant="R50"))
    counts = [sum(it.numel() for it in model.parameters()) for model in (bit, ours)]
    assert counts == [25_549_352, 25_549_352]


def test_logits_of_r50x1_are_timms() -> None:
    timm = foreign.timm()
    their = timm.create_model("resnetv2_50x1_bit", num_classes=1000).eval()
    foreign.randomise(their, seed=1)
    spec = resnet(variant="R50", image_px=(96, 80), weight_std_eps=1e-8)
    pixels = foreign.noise((96, 80), seed=2)
    with torch.no_grad():
        expected, found = their(pixels), copied(spec, their)(pixels)
    assert (found - expected).abs().max() < 1e-4
    assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("image_px", [(40, 36), (33, 47)])
def test_any_size_gives_timms_logits(image_px: tuple[int, int]) -> None:
    spec = TINY.revise(image_px=image_px)
    their = theirs(spec).eval()
    foreign.randomise(their, seed=3)
    ours, pixels = copied(spec, their), foreign.noise(image_px, seed=4)
    with torch.no_grad():
        assert (ours(pixels) - their(pixels)).abs().max() < 1e-5
        assert ours.forward_grid(pixels).shape == (2, *spec.grid, spec.features)


@pytest.mark.parametrize(
    "fields",
    [
        {"variant": "R50"},
        {"variant": "R101", "width_factor": 3},
        {"variant": "R152", "width_factor": 4},
        {"blocks": [1, 1, 2], "width": 32, "image_px": [37, 50]},
    ],
)
def test_the_cost_counts_every_parameter_and_every_multiplication(
    fields: dict[str, object],
) -> None:
    spec = resnet(**fields)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = ResNet(spec)
        model(torch.empty(1, 3, *spec.image_px))
    assert resnet_parameters(spec) == sum(it.numel() for it in model.parameters())
    assert resnet_flops(spec) == counter.get_total_flops()


def test_features_are_the_mean_of_the_grid_and_the_head_is_linear() -> None:
    model, pixels = build(TINY, seed=1).eval(), foreign.noise(TINY.image_px, seed=1)
    foreign.randomise(model, seed=1)
    features = model.forward_features(pixels)
    torch.testing.assert_close(features, model.forward_grid(pixels).mean(dim=(1, 2)))
    assert model.head is not None
    expected = features @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(pixels), expected)
    bare = build(TINY.revise(num_classes=0), seed=1)
    assert bare(pixels).shape == (2, TINY.features)


def test_initial_weights_are_fixed_by_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (dict(build(TINY, seed=seed).named_parameters()) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert not torch.equal(one["root.weight"], other["root.weight"])
    assert not one["head.weight"].any()
    assert bool((one["norm.weight"] == 1).all())


def test_recomputing_units_changes_no_gradient() -> None:
    gradients = []
    for recomputes in (False, True):
        model = build(TINY, seed=1)
        foreign.randomise(model, seed=1)
        model.recomputes = recomputes
        model(foreign.noise(TINY.image_px, seed=1)).square().sum().backward()
        gradients.append({name: it.grad for name, it in model.named_parameters()})
    assert all(torch.equal(it, gradients[1][name]) for name, it in gradients[0].items())


def test_noise_is_refused_by_a_model_without_chance() -> None:
    from pipeline.model.noise import ForwardNoise

    with pytest.raises(ValueError, match="takes no noise"):
        build(TINY, seed=1)(foreign.noise(TINY.image_px, seed=1), ForwardNoise())


@pytest.mark.parametrize(
    ("fields", "blocks", "width"),
    [
        ({"variant": "R50"}, (3, 4, 6, 3), 64),
        ({"variant": "R152", "width_factor": 4}, (3, 8, 36, 3), 256),
        ({"variant": "R26"}, (2, 2, 2, 2), 64),
        ({"blocks": [1, 2], "width": 32}, (1, 2), 32),
    ],
)
def test_named_sizes_are_the_papers(
    fields: dict[str, object], blocks: tuple[int, ...], width: int
) -> None:
    spec = resnet(**fields)
    assert (spec.blocks, spec.width) == (blocks, width)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "give either variant"),
        ({"variant": "R50", "blocks": [1]}, "give either variant"),
        ({"variant": "R50", "width": 64}, "width_factor goes with variant"),
        ({"blocks": [1], "width": 40}, "must be a multiple of 32"),
    ],
)
def test_half_sizes_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        resnet(**fields)

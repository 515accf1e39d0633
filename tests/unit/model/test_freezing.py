"""What keeps its weights: by layers, by names, and the statistics of what is frozen."""

import pytest
import torch
from torch import nn

from pipeline.model.backbone import Backbone
from pipeline.model.freezing import freeze, is_frozen, learned, to_training
from schemas.errors import SpecError
from schemas.tuning import FreezeSpec
from tests.support.training import RESNET, TINY, model


def learning(backbone: Backbone) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def of(backbone: Backbone, *starts: str) -> set[str]:
    return {name for name, _ in backbone.named_parameters() if name.startswith(starts)}


def test_layers_are_frozen_from_below() -> None:
    vit = model()
    freeze(vit, FreezeSpec(up_to_layer=0))
    assert learning(vit) == of(vit, "blocks.", "norm.", "head.")
    freeze(vit, FreezeSpec(up_to_layer=1))
    assert learning(vit) == of(vit, "blocks.1.", "norm.", "head.")
    resnet = model(RESNET)
    freeze(resnet, FreezeSpec(up_to_layer=1))
    assert learning(resnet) == of(resnet, "stages.1.", "norm.", "head.")


@pytest.mark.parametrize(
    ("given", "starts"),
    [
        ("head", ("head.",)),
        (("head", "norm", "blocks.1"), ("head.", "norm.", "blocks.1.")),
        (("blocks.0.attention.query.bias",), ("blocks.0.attention.query.bias",)),
    ],
)
def test_named_parts_alone_learn(given: str | tuple[str, ...], starts: tuple[str, ...]) -> None:
    vit = model()
    freeze(vit, FreezeSpec(all_but=given))
    assert learning(vit) == of(vit, *starts)
    assert [id(parameter) for parameter in learned(vit)] == [
        id(parameter) for name, parameter in vit.named_parameters() if name in learning(vit)
    ]


def test_what_is_not_there_is_refused_with_what_may_be_meant() -> None:
    with pytest.raises(SpecError, match="names haed") as caught:
        freeze(model(), FreezeSpec(all_but="haed"))
    assert "head" in str(caught.value.hint)
    with pytest.raises(SpecError, match="0 to 3, and 3 is the head's; give at most 2"):
        freeze(model(), FreezeSpec(up_to_layer=3))


@pytest.mark.parametrize("fields", [{}, {"up_to_layer": 1, "all_but": "head"}, {"all_but": ()}])
def test_exactly_one_way_is_given(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"freeze\."):
        FreezeSpec.model_validate(fields)


def test_statistics_of_what_is_frozen_stay() -> None:
    net = nn.ModuleList([*(nn.BatchNorm1d(2) for _ in range(2)), nn.BatchNorm1d(2, affine=False)])
    for parameter in net[0].parameters():
        parameter.requires_grad_(requires_grad=False)
    assert [is_frozen(layer) for layer in net] == [True, False, False]
    to_training(net)
    for layer in net:
        layer(torch.full((8, 2), 3.0))
    assert torch.equal(net[0].running_mean, torch.zeros(2))
    assert all(float(net[index].running_mean.abs().min()) > 0.1 for index in (1, 2))
    assert net.training, "the rest, dropout included, is in training"


def test_nothing_below_what_learns_is_kept_for_the_backward_pass() -> None:
    """What autograd keeps: of everything, and of the last block and the head alone."""

    def kept(spec: FreezeSpec | None) -> int:
        vit, found = model(TINY.revise(depth=4)), {}
        if spec is not None:
            freeze(vit, spec)
        own = {parameter.data_ptr() for parameter in vit.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            vit(torch.randn(2, 3, 8, 8)).sum().backward()
        return sum(found.values())

    assert kept(FreezeSpec(up_to_layer=3)) < kept(None) / 3
    assert kept(FreezeSpec(all_but="head")) < kept(None) / 50

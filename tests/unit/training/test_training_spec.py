"""Rules of training specs that tie several fields together."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.training import FinetuneSpec, PretrainSpec

BASE: dict[str, Any] = {
    "data": "a",
    "optim": {"peak_lr": 1e-3},
    "batch": {"global_samples": 24},
    "duration": {"steps": 12},
    "model": {"width": 24, "depth": 2, "num_heads": 3, "mlp_dim": 32, "patch_px": 4, "image_px": 8},
}
PHASES = [{"from_step": 0, "weights": [3, 1]}, {"from_step": 6, "weights": [1, 1]}]


def spec(**changes: Any) -> PretrainSpec:
    return PretrainSpec.parse({**BASE, **changes})


def test_every_set_of_a_mixture_is_an_input() -> None:
    made = spec(data=["a", "b@test"], mixture=PHASES)
    assert {port: str(ref) for port, ref in made.inputs().items()} == {
        "data[0]": "a@train",
        "data[1]": "b@test",
    }
    assert str(spec().inputs()["data"]) == "a@train"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ["a", "b"]}, "data names 2 shard sets; name one, or weigh several by mixture"),
        ({"data": []}, "data names 0 shard sets"),
        ({"data": ["a", "b"], "mixture": PHASES[1:]}, "begin at 0 and go up"),
        ({"data": ["a", "b"], "mixture": PHASES[::-1]}, "begin at 0 and go up"),
        ({"data": ["a", "b"], "mixture": []}, "begin at 0 and go up"),
        ({"data": ["a", "b", "c"], "mixture": PHASES}, "2 weights from step 0, and data names 3"),
        (
            {"data": ["a", "b"], "mixture": [{"from_step": 0, "weights": [0, 0]}]},
            "weights sum up to 0",
        ),
        (
            {"data": ["a", "b"], "mixture": PHASES, "duration": {"epochs": 3}},
            "a mixture has no epochs of its own",
        ),
        (
            {
                "data": ["a", "b"],
                "mixture": PHASES,
                "batch": {"global_samples": 24, "tail": "exact"},
            },
            "no batch.tail",
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_in_a_sentence(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**changes)


@pytest.mark.parametrize("alphas", [{"mixup_alpha": 0.2}, {"cutmix_alpha": 1.0}])
@pytest.mark.parametrize(
    ("resources", "even"),
    [
        ({"workers": 2}, True),
        ({"workers": 8}, False),
        ({"workers": 2, "micro_batch": 6}, True),
        ({"workers": 2, "micro_batch": 3}, False),
    ],
)
def test_partners_are_never_torn_apart(
    alphas: dict[str, float], resources: dict[str, int], even: bool
) -> None:
    assert spec(resources=resources), "without mixing anything goes"
    if even:
        assert spec(augment=alphas, resources=resources).augment.mixes
    else:
        with pytest.raises(ValidationError, match="a micro-batch must be even but is 3"):
            spec(augment=alphas, resources=resources)


def test_a_search_needs_one_shard_set() -> None:
    search = {"peak_lr": [1e-3], "steps": [5]}
    changes = {"data": ["a", "b"], "mixture": PHASES, "init": None, "search": search}
    with pytest.raises(ValidationError, match="search holds out images of one shard set"):
        FinetuneSpec.parse({**BASE, **changes})


def test_weights_leave_the_input_size_and_the_regularisation_free() -> None:
    free = {"image_px": 16, "position_resize": "jax", "drop_path": 0.1, "patch_dropout": 0.5}
    made = FinetuneSpec.parse({**BASE, "init": "b", "model": free})
    assert made.model.given() == free
    with pytest.raises(ValidationError, match=r"model\.qk_norm is fixed by the weights of 'b'"):
        FinetuneSpec.parse({**BASE, "init": "b", "model": {**free, "qk_norm": True}})

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


MAE = {"type": "mae"}
COLOURS = {"type": "masked_patch"}


def test_a_teacher_is_an_input_and_comes_with_distillation_alone() -> None:
    made = spec(objective={"type": "distillation"}, teacher="big")
    assert str(made.inputs()["teacher"]) == "big"
    for changes in ({"objective": {"type": "distillation"}}, {"teacher": "big"}):
        with pytest.raises(ValidationError, match="teacher names the stage whose model teaches"):
            spec(**changes)


@pytest.mark.parametrize("objective", [MAE, COLOURS])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": {"mixup_alpha": 0.2}}, "uses no labels"),
        ({"augment": {"label_smoothing": 0.1}}, "uses no labels"),
        ({"model": {"stem": {"blocks": []}, "width": 24}}, "a stem sees beyond the patch"),
        ({"model": {"pool": "map"}}, "would not train the query of pool map"),
        ({"model": {"hidden_head": True}}, "would not train hidden_head"),
        ({"model": {"patch_dropout": 0.5}}, "hides patches itself"),
        ({"model": {"patch_px": 8}}, "of 1 patches"),
        (
            {"resnet": {"type": "resnet", "variant": "R26", "image_px": 32}},
            "hides patches of a ViT",
        ),
    ],
)
def test_hidden_patches_want_a_model_that_they_can_train(
    objective: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    assert not spec(objective=objective).objective.uses_labels
    changes = dict(changes)
    model = changes.pop("resnet", None) or {**BASE["model"], **changes.get("model", {})}
    with pytest.raises(ValidationError, match=message):
        spec(objective=objective, **{**changes, "model": model})


@pytest.mark.parametrize(
    "model", [{"axial": True, "pool": "gap"}, {"position": "relative"}], ids=str
)
def test_mae_cannot_leave_patches_out_of_a_whole_grid(model: dict[str, Any]) -> None:
    assert spec(objective=COLOURS, model={**BASE["model"], **model})
    with pytest.raises(ValidationError, match="need the whole grid"):
        spec(objective=MAE, model={**BASE["model"], **model})


def test_a_decoder_has_sizes_that_divide() -> None:
    for sizes in ({"decoder_width": 30, "decoder_heads": 3}, {"decoder_width": 64}):
        if sizes.get("decoder_heads"):
            with pytest.raises(ValidationError, match="must be a multiple of 4 and of"):
                spec(objective={**MAE, **sizes})
        else:
            assert spec(objective={**MAE, **sizes})


def test_rates_by_layer_want_a_head_above_the_layers() -> None:
    layered = {"optim": {"peak_lr": 1e-3, "layer_decay": 0.7}}
    assert spec(**layered).optim.layer_decay == 0.7
    with pytest.raises(ValidationError, match=r"objective mae .* leave optim\.layer_decay out"):
        spec(objective=MAE, **layered)


@pytest.mark.parametrize("other", [{"engine": "torch"}, {"zero_stage": 0}])
def test_only_a_spread_optimizer_is_offloaded(other: dict[str, Any]) -> None:
    assert spec(resources={"offload_optimizer": True}).resources.offload_optimizer
    with pytest.raises(ValidationError, match="offload_optimizer needs engine deepspeed"):
        spec(resources={"offload_optimizer": True, **other})


def test_samples_are_known_steps() -> None:
    optim = {"peak_lr": 1e-3, "schedule": "constant", "warmup_samples": 80, "cooldown_samples": 80}
    fields = {"optim": optim, "batch": {"global_samples": 8}}
    made = spec(**fields, duration={"samples": 160})
    assert made.known_steps() == 20
    resolved = made.in_steps()
    assert resolved.duration.steps == 20
    assert (resolved.optim.warmup_steps, resolved.optim.cooldown_steps) == (10, 10)
    with pytest.raises(ValidationError, match="cool-down of 10 and 10 steps do not fit into"):
        spec(**fields, duration={"samples": 152})
    with pytest.raises(ValidationError, match="10 must be less than"):
        spec(**fields, duration={"samples": 40})


def test_fine_tuning_learns_from_labels() -> None:
    with pytest.raises(ValidationError, match="mae"):
        FinetuneSpec.parse({**BASE, "init": None, "objective": MAE})


TUNED: dict[str, Any] = {
    "data": "pets",
    "init": "pretrain",
    "optim": {"peak_lr": 1e-3},
    "batch": {"global_samples": 8},
    "duration": {"steps": 20},
}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"freeze": {"all_but": "head"}, "lora": {}}, "leave freeze out"),
        ({"freeze": {"up_to_layer": 2}, "init": None}, "freeze keeps weights of init"),
        ({"lora": {}, "init": None}, "lora keeps weights of init"),
        (
            {"optim": {"peak_lr": 1e-3, "linear_probe_steps": 20, "linear_probe_lr": 0.1}},
            "must be less than duration.steps 20 less optim.linear_probe_steps 20",
        ),
    ],
)
def test_what_a_fine_tuning_cannot_keep_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        FinetuneSpec.parse({**TUNED, **changes})


def test_a_pre_training_has_no_linear_probe() -> None:
    probe = {"peak_lr": 1e-3, "linear_probe_steps": 2, "linear_probe_lr": 0.1}
    with pytest.raises(ValidationError, match="take kind: finetune"):
        spec(optim=probe)


def test_the_paper_fine_tunes_as_a_spec_can_say() -> None:
    """Table 4 and B.1.1: SGD with momentum 0.9, no weight decay, clip 1, cosine, 384 px."""
    pets = FinetuneSpec.parse(
        {
            "data": "pets",
            "init": "pretrain",
            "model": {"image_px": 384},
            "optim": {"algorithm": "sgd", "peak_lr": 0.01, "warmup_steps": 100},
            "batch": {"global_samples": 512},
            "duration": {"steps": 500},
            "search": {
                "peak_lr": [0.001, 0.003, 0.01, 0.03],
                "steps": [500],
                "holdout_ratio": 0.1,
            },
        }
    )
    optim = pets.optim
    assert (optim.beta1, optim.weight_decay, optim.clip_norm) == (0.9, 0.0, 1.0)
    assert (optim.schedule, optim.layer_decay) == ("cosine", None)
    assert pets.freeze is pets.lora is None


def test_weights_leave_the_input_size_and_the_regularisation_free() -> None:
    free = {"image_px": 16, "position_resize": "jax", "drop_path": 0.1, "patch_dropout": 0.5}
    made = FinetuneSpec.parse({**BASE, "init": "b", "model": free})
    assert made.model.given() == free
    with pytest.raises(ValidationError, match=r"model\.qk_norm is fixed by the weights of 'b'"):
        FinetuneSpec.parse({**BASE, "init": "b", "model": {**free, "qk_norm": True}})


@pytest.mark.parametrize(
    ("resources", "augment", "worlds"),
    [
        ({}, {}, (1,)),
        ({"workers": 8}, {}, (8,)),
        ({"workers": {"min": 1, "max": 9}}, {}, (8, 6, 4, 3, 2, 1)),
        ({"workers": {"min": 3, "max": 9}, "micro_batch": 4}, {}, (6, 3)),
        ({"workers": {"min": 1, "max": 9}}, {"mixup_alpha": 0.2}, (6, 4, 3, 2, 1)),
    ],
)
def test_a_world_is_any_size_in_the_range_that_shares_the_batch_evenly(
    resources: dict[str, Any], augment: dict[str, float], worlds: tuple[int, ...]
) -> None:
    assert spec(resources=resources, augment=augment).worlds() == worlds


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"workers": 7}, "resources.workers 7 must divide batch.global_samples 24"),
        (
            {"workers": {"min": 9, "max": 11}},
            "no number of workers from 9 to 11 will do; of the last: resources.workers 11 must",
        ),
        ({"workers": {"min": 4, "max": 2}}, "workers has min 4 and max 2"),
        ({"workers": {"min": 1, "max": 2}, "engine": "torch"}, "engine torch runs one worker"),
    ],
)
def test_a_range_in_which_no_world_can_train_is_refused(
    resources: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(resources=resources)

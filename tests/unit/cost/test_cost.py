import pytest

from pipeline.cost import (
    ASSUMED_CLASSES,
    SMALL_BYTES,
    estimate,
    resnet_parameters,
    state_bytes,
    training_flops,
    vit_flops,
    vit_parameters,
)
from schemas.backbones import ResNetSpec
from schemas.model import ModelSpec, ViTSpec
from schemas.objectives import SupervisedSpec
from schemas.optim import OptimSpec
from schemas.sources import SourceSpec
from tests.support.dag import graph_of


def vit(variant: str, patch_px: int, **more: object) -> ViTSpec:
    fields = {"variant": variant, "patch_px": patch_px, "image_px": 224, **more}
    return ModelSpec.parse(fields).to_vit(num_classes=1000)


@pytest.mark.parametrize(
    ("variant", "patch_px", "parameters", "training_gflops"),
    [
        ("Ti", 16, 5_717_416, 7.6),
        ("S", 16, 22_050_664, 27.7),
        ("B", 16, 86_567_656, 105.5),
        ("B", 32, 88_224_232, 26.5),
        ("L", 16, 304_326_632, 369.6),
        ("H", 14, 632_045_800, 1004.0),
    ],
)
def test_sizes_of_the_paper(
    variant: str, patch_px: int, parameters: int, training_gflops: float
) -> None:
    spec = vit(variant, patch_px)
    assert vit_parameters(spec) == parameters
    # timm's count of multiply-adds, three passes, two operations each.
    assert 3 * vit_flops(spec) / 1e9 == pytest.approx(training_gflops, rel=0.015)


def test_mean_pooling_has_neither_class_token_nor_its_position() -> None:
    assert vit_parameters(vit("B", 16, pool="gap")) == 86_566_120


@pytest.mark.parametrize(
    ("algorithm", "zero_stage", "bytes_each"),
    [("adamw", 0, 16), ("adamw", 1, 8), ("adamw", 2, 8), ("adamw", 3, 5), ("sgd", 0, 12)],
)
def test_each_zero_stage_divides_more_parts(
    algorithm: str, zero_stage: int, bytes_each: float
) -> None:
    optim = OptimSpec.parse({"peak_lr": 1e-3, "algorithm": algorithm})
    found = state_bytes(100, optim, zero_stage=zero_stage, world=4)
    assert found.held - found.buckets == 100 * bytes_each


def test_an_average_and_a_copy_to_validate_with_take_their_part() -> None:
    optim = OptimSpec(peak_lr=1e-3, ema_decay=0.9)
    found = state_bytes(100, optim, zero_stage=1, world=4, validates=True)
    assert found.held == 100 * (8 + 1 + 4)


def costs(stage: str, *overrides: str) -> dict[str, float]:
    graph = graph_of(*overrides)

    def source_bytes(_source: SourceSpec) -> int:
        return 1000

    return estimate(graph.node(stage), graph, source_bytes)


def test_a_build_needs_room_for_staged_files_and_shards() -> None:
    assert costs("corpus") == {"disk_bytes": 2000}


def test_training_counts_all_its_steps() -> None:
    spec = ModelSpec.parse({"variant": "Ti", "patch_px": 16, "image_px": 32})
    model = spec.to_vit(num_classes=ASSUMED_CLASSES)
    found = costs("pretrain")
    assert found["parameters"] == vit_parameters(model)
    assert found["flops"] == training_flops(model, SupervisedSpec()) * 10 * 8
    assert found["disk_bytes"] == (3 * 12 + 4) * vit_parameters(model)
    assert found["memory_bytes"] > 16 * vit_parameters(model)
    assert "flops" not in costs("pretrain", "pretrain.duration={epochs: 2}")


def test_workers_and_bf16_lower_the_memory_of_each() -> None:
    def memory(*overrides: str) -> float:
        return costs("pretrain", "pretrain.model.image_px=224", *overrides)["memory_bytes"]

    assert memory("pretrain.resources.workers=8") < memory()
    assert memory("pretrain.precision=bf16") < memory()
    assert memory("pretrain.resources.micro_batch=2") < memory()


def test_a_fine_tuned_model_is_its_start_at_its_own_resolution_and_classes() -> None:
    assert costs("transfer")["parameters"] == costs("pretrain")["parameters"]
    larger = costs("transfer", "transfer.model.image_px=64")
    assert larger["parameters"] == costs("pretrain")["parameters"] + (16 - 4) * 192
    named = costs("transfer", "pets.select.classes=[a, b]")
    assert named["parameters"] == costs("pretrain")["parameters"] - (1000 - 2) * (192 + 1)
    assert costs("accuracy")["parameters"] == costs("transfer")["parameters"]


SMALL = "transfer.model={variant: S, patch_px: 16, image_px: 32}"
RESNET = "pretrain.model={type: resnet, blocks: [1, 2], width: 32, image_px: 64}"


def test_a_resnet_is_costed_from_its_spec_alone() -> None:
    spec = ResNetSpec(blocks=(1, 2), width=32, image_px=(64, 64), num_classes=ASSUMED_CLASSES)
    found = costs("pretrain", RESNET)
    assert found["parameters"] == resnet_parameters(spec)
    assert found["flops"] == training_flops(spec, SupervisedSpec()) * 10 * 8
    assert found["memory_bytes"] > 16 * resnet_parameters(spec)
    assert costs("transfer", RESNET, "transfer.model.image_px=96")["flops"] > found["flops"]


@pytest.mark.parametrize("model", ["{type: timm, name: x}", "{type: hf, model_type: x}"])
def test_nothing_is_said_of_a_librarys_model_before_it_runs(model: str) -> None:
    foreign = f"pretrain.model={model[:-1]}, image_px: 32}}"
    assert costs("pretrain", foreign) == costs("transfer", foreign) == {}
    assert costs("accuracy", foreign) == {"disk_bytes": SMALL_BYTES}


def test_a_search_counts_every_pair_that_it_tries() -> None:
    plain = costs("transfer")["flops"] / 5
    searched = costs("transfer", "transfer.search={peak_lr: [1, 2], steps: [5, 10], repeats: 3}")
    assert searched["flops"] == plain * ((5 + 10) * 2 * 3 + 10)


def test_a_teacher_looks_at_every_image_once() -> None:
    plain = costs("transfer", "transfer.init=null", SMALL)["flops"]
    taught = costs(
        "transfer",
        "transfer.init=null",
        SMALL,
        "transfer.objective={type: distillation}",
        "transfer.teacher=pretrain",
    )
    spec = ModelSpec.parse({"variant": "Ti", "patch_px": 16, "image_px": 32})
    teacher = vit_flops(spec.to_vit(num_classes=ASSUMED_CLASSES))
    assert taught["flops"] == plain + teacher * 5 * 8


def test_a_model_from_scratch_is_costed_by_its_own_spec() -> None:
    assert costs("transfer", "transfer.init=null", SMALL)["parameters"] > 20e6


def test_tables_are_small() -> None:
    for stage in ("clean", "pixels", "report"):
        assert costs(stage) == {"disk_bytes": SMALL_BYTES}


def test_a_stage_that_validates_holds_a_whole_copy_of_the_weights() -> None:
    plain = costs("transfer")
    asked = ("transfer.validation_data=pets@test", "transfer.validation={every_steps: 5}")
    more = costs("transfer", *asked)["memory_bytes"] - plain["memory_bytes"]
    assert more == 4 * plain["parameters"]

"""How a stage is spread over its world, as a function of memory."""

from itertools import pairwise
from typing import Any

import pytest

from pipeline.cost import USABLE_RATIO, Layout, lay_out, training_memory
from schemas.backbones import BackboneSpec, TimmSpec
from schemas.model import ModelSpec, ViTSpec
from schemas.training import PretrainSpec

GIGA = 10**9


def spec_of(resources: dict[str, Any] | None = None, **more: Any) -> PretrainSpec:
    fields: dict[str, Any] = {
        "kind": "pretrain",
        "data": "corpus",
        "model": {"variant": "L", "patch_px": 16, "image_px": 224},
        "optim": {"peak_lr": 1e-3},
        "batch": {"global_samples": 96},
        "duration": {"steps": 10},
        "resources": resources or {},
    }
    return PretrainSpec.parse({**fields, **more})


def vit(spec: PretrainSpec) -> ViTSpec:
    assert isinstance(spec.model, ModelSpec)
    return spec.model.to_vit(num_classes=1000)


def laid(spec: PretrainSpec, gigabytes: float, world: int = 2, **more: Any) -> Layout:
    return lay_out(spec, vit(spec), world=world, device_bytes=gigabytes * GIGA, **more)


def test_the_lowest_stage_that_fits_is_taken() -> None:
    spec = spec_of({"workers": 8, "micro_batch": 1})
    layouts = [laid(spec, gigabytes, world=8) for gigabytes in (80, 4, 3.2, 1)]
    assert [layout.zero_stage for layout in layouts] == [1, 2, 3, 3]
    assert "more than fits" in layouts[-1].reason


def test_an_offloaded_optimizer_is_not_in_the_memory_of_a_gpu() -> None:
    on_gpu = {"gpus_per_worker": 1, "zero_stage": 1}
    spec = spec_of({**on_gpu, "offload_optimizer": True})
    sizes = {"zero_stage": 1, "world": 2, "micro_batch": 48}
    moved = training_memory(vit(spec), spec, **sizes).state
    there = training_memory(vit(spec), spec_of(on_gpu), **sizes).state
    assert (moved.master, moved.moments) == (0, 0)
    assert moved.held == there.held - there.master - there.moments
    without_gpu = spec_of({"offload_optimizer": True})
    assert training_memory(vit(spec), without_gpu, **sizes).state == there
    assert laid(without_gpu, 80, world=1).zero_stage == 1, "stage 0 has nothing apart"


def test_one_worker_has_nothing_to_share() -> None:
    assert laid(spec_of(), 80, world=1).zero_stage == 0
    assert laid(spec_of({"engine": "torch"}), 0.1, world=1).zero_stage == 0
    assert laid(spec_of({"zero_stage": 2}), 80, world=1).zero_stage == 2


def test_the_micro_batch_is_the_largest_part_of_the_share_that_fits() -> None:
    spec = spec_of({"workers": 2, "micro_batch": "auto"})
    found = [laid(spec, gigabytes) for gigabytes in (200, 20, 12, 8)]
    assert found[0].micro_batch == 48
    assert all(larger.micro_batch > smaller.micro_batch for larger, smaller in pairwise(found))
    for layout, gigabytes in zip(found, (200, 20, 12, 8), strict=True):
        assert layout.micro_batch * layout.accumulation == 48
        used = training_memory(
            vit(spec),
            spec,
            zero_stage=layout.zero_stage,
            world=2,
            micro_batch=layout.micro_batch,
        )
        assert used.peak <= USABLE_RATIO * gigabytes * GIGA


def test_without_auto_the_whole_share_stays_together() -> None:
    assert laid(spec_of({"workers": 2}), 12).micro_batch == 48


def test_pairs_that_are_mixed_stay_together() -> None:
    spec = spec_of({"micro_batch": "auto"}, augment={"mixup_alpha": 0.2})
    assert laid(spec, 0.1, world=1).micro_batch == 2
    assert laid(spec_of({"micro_batch": "auto"}), 0.1, world=1).micro_batch == 1


@pytest.mark.parametrize("given", [None, "auto", 24])
def test_experience_limits_what_is_taken(given: Any) -> None:
    spec = spec_of({"workers": 2, "micro_batch": given})
    assert laid(spec, 500, largest_micro_batch=7).micro_batch == 6


def test_a_librarys_model_is_taken_whole_and_it_is_said() -> None:
    model: BackboneSpec = TimmSpec(name="x", image_px=(32, 32), num_classes=5)
    spec = spec_of({"workers": 2, "micro_batch": "auto"})
    found = lay_out(spec, model, world=2, device_bytes=GIGA)
    assert (found.zero_stage, found.micro_batch) == (1, 48)
    assert "no formula" in found.reason

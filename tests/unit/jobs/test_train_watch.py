"""What the speed of a training stage is read against."""

import pytest

from jobs.train_watch import gauge_of, known_peak
from pipeline.cost import training_flops
from schemas.backbones import TimmModel
from schemas.model import ModelSpec
from schemas.training import PretrainSpec

T = 1e12


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A10", 125, 31.2),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("Tesla T4", 65, 8.1),
    ],
)
def test_the_peak_of_a_gpu_is_that_of_its_data_sheet(name: str, bf16: float, fp32: float) -> None:
    assert known_peak(name, bf16=True) == pytest.approx(bf16 * T)
    assert known_peak(name, bf16=False) == pytest.approx(fp32 * T)


def test_a_gpu_that_is_not_listed_has_no_peak() -> None:
    assert known_peak("NVIDIA T400", bf16=True) is None


def test_a_librarys_model_is_not_counted_and_ours_is() -> None:
    model = ModelSpec(variant="Ti", patch_px=16, image_px=32)
    common = {"data": "d", "optim": {"peak_lr": 1e-3}, "batch": {"global_samples": 4}}
    spec = PretrainSpec.parse({**common, "duration": {"steps": 2}, "model": model.dump()})
    vit = model.to_vit(num_classes=3)
    gauge = gauge_of(spec, vit)
    assert gauge.flops_per_image == training_flops(vit, spec.objective)
    assert gauge.peak_flops is not None
    assert gauge.memory_bytes() > 0
    other = TimmModel(name="resnet10t", image_px=32).resolved(num_classes=3)
    assert gauge_of(spec, other).flops_per_image is None

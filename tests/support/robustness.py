"""A ViT and a ResNet that have learned three digits in seconds, for robustness tests."""

from pathlib import Path
from typing import Any

from jobs import ingest, train
from schemas.data import IngestSpec
from schemas.training import PretrainSpec
from tests.support.stages import StageRun, run_stage

DIGITS = IngestSpec.parse(
    {
        "source": {"type": "sklearn", "name": "digits"},
        "select": {"classes": ["0", "1", "2"]},
        "split": {"test_ratio": 0.2},
        "image": {"encoding": "png"},
    }
)
TRAINING: dict[str, Any] = {
    "data": "digits",
    "optim": {"peak_lr": 3e-3, "warmup_steps": 5},
    "batch": {"global_samples": 32},
    "duration": {"steps": 60},
    "resources": {"engine": "torch"},
}
VIT = {"width": 24, "depth": 2, "num_heads": 3, "mlp_dim": 48, "patch_px": 8, "image_px": 32}
RESNET = {"type": "resnet", "blocks": [1, 1], "width": 32, "image_px": 32}


def trained_models(folder: Path) -> dict[str, StageRun]:
    """`digits` with its splits, and the models `vit` and `resnet`."""
    digits = run_stage(ingest.run, DIGITS, folder / "digits")
    made = {"digits": digits}
    for name, model in (("vit", VIT), ("resnet", RESNET)):
        spec = PretrainSpec.parse({**TRAINING, "model": model})
        inputs = {"data": digits.at("train")}
        made[name] = run_stage(train.run, spec, folder / name, inputs=inputs, seed=3)
    return made

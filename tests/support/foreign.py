"""Other people's libraries, imported where they are installed, and what tests ask of them."""

import math
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
DINOV2 = Path(__file__).parents[3] / "shared/data/dinov2-vits14-focus"
"""A real ViT-S/14, beside the project where there is one."""


def transformers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, never online, or a skipped test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _give_torchvision_its_operators()
    module: ModuleType = pytest.importorskip("transformers", reason="extra `parity`")
    module.utils.logging.set_verbosity_error()
    module.utils.logging.disable_progress_bar()
    return module


def timm() -> ModuleType:
    """The module, or a skipped test."""
    _give_torchvision_its_operators()
    pytest.importorskip("torchvision", reason="extra `parity`")
    module: ModuleType = pytest.importorskip("timm", reason="extra `parity`")
    return module


def _give_torchvision_its_operators() -> None:
    """Torchvision, which both import, expects two operators that the CPU build of torch lacks."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _BOXES)


def randomise(model: nn.Module, *, seed: int) -> None:
    """Weights of the size that trained ones have, none of them zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.mul_(0.1).add_(1.0)
            elif parameter.ndim > 1 and name.endswith("weight"):
                parameter.mul_(1.0 / math.sqrt(parameter[0].numel()))
            else:
                parameter.mul_(0.1)


def noise(image_px: tuple[int, int], *, seed: int, samples: int = 2) -> Tensor:
    """Normalised images of noise, [B, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, 3, *image_px, generator=generator) * 2 - 1


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, as a share of their largest absolute value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def save_theirs(model: Any, folder: Path) -> Path:
    """A folder of `transformers`, as it writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's own insides
        model.save_pretrained(folder)
    return folder

"""The arithmetic of forward and backward; weights and what the optimizer keeps are fp32 always."""

import torch

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""`precision` of a spec -> the type of numbers that autocast computes in; fp32 has none."""


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Half-precision arithmetic over fp32 weights where `precision` says so; else nothing."""
    half = HALF.get(precision)
    return torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None)

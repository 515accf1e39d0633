"""What GPUs can do: peak arithmetic without sparsity, and memory, from the maker's data sheets."""

from typing import NamedTuple

ASSUMED_MFU = 0.35
"""Share of a GPU's peak that training gets. ViTs in bf16, compiled: 0.32 to 0.45 where published
(NVIDIA NeMo ViT-g/14: 0.45 on A100, 0.29 on H100); eager code gets a third to a half of that."""


class Device(NamedTuple):
    """One GPU."""

    name: str
    """As people say it."""
    bf16_flops: float
    """Dense multiply-adds of bf16 with fp32 sums, counted as two, in a second. Where there is no
    bf16, fp16."""
    fp32_flops: float
    """The same in fp32 proper, not TF32: what `precision: fp32` uses."""
    memory_bytes: int

    def flops(self, *, bf16: bool) -> float:
        """Peak of this precision."""
        return self.bf16_flops if bf16 else self.fp32_flops


_T, _GIB = 1e12, 2**30

DEVICES: dict[str, Device] = {
    # NVIDIA H100 data sheet (SXM): 1,979 TFLOP/s with sparsity, so half.
    "h100": Device("H100 SXM", 989 * _T, 67 * _T, 80 * _GIB),
    # The same data sheet (PCIe): 1,513 with sparsity.
    "h100-pcie": Device("H100 PCIe", 756 * _T, 51 * _T, 80 * _GIB),
    # NVIDIA H200 data sheet (SXM): arithmetic of the H100, 141 GB.
    "h200": Device("H200 SXM", 989 * _T, 67 * _T, 141 * 10**9),
    # NVIDIA DGX B200 data sheet: 36 PFLOP/s with sparsity on eight, so 2.25 each.
    "b200": Device("B200", 2250 * _T, 75 * _T, 180 * 10**9),
    # NVIDIA A100 data sheet.
    "a100": Device("A100 80 GB", 312 * _T, 19.5 * _T, 80 * _GIB),
    "a100-40": Device("A100 40 GB", 312 * _T, 19.5 * _T, 40 * _GIB),
    # NVIDIA L40S data sheet: 733 with sparsity.
    "l40s": Device("L40S", 362 * _T, 91.6 * _T, 48 * 10**9),
    # NVIDIA A10 data sheet.
    "a10": Device("A10", 125 * _T, 31.2 * _T, 24 * 10**9),
    # NVIDIA L4 data sheet: 242 with sparsity.
    "l4": Device("L4", 121 * _T, 30.3 * _T, 24 * 10**9),
    # NVIDIA Ada GPU architecture, appendix A: 165.2 with fp32 sums.
    "rtx4090": Device("RTX 4090", 165.2 * _T, 82.6 * _T, 24 * _GIB),
    # NVIDIA Ampere GA102 architecture, table 2: 71 with fp32 sums.
    "rtx3090": Device("RTX 3090", 71 * _T, 35.6 * _T, 24 * _GIB),
    # NVIDIA V100 data sheet (SXM2): fp16; it has no bf16.
    "v100": Device("V100 32 GB", 125 * _T, 15.7 * _T, 32 * _GIB),
    # NVIDIA T4 data sheet: fp16; it has no bf16.
    "t4": Device("T4", 65 * _T, 8.1 * _T, 16 * 10**9),
}
"""By the name that `--gpu` takes."""

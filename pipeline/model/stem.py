"""The convolutional stem of the hybrids: a BiT ResNet with weight standardisation and GroupNorm.

B batch, C channels, H W cells of a grid; kernels are [out, in, height, width].
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from schemas.backbones import ResNetSpec
from schemas.model import CHANNELS, GROUPS, ResNetStemSpec


class ResNetStem(nn.Module):
    """Pixels to a grid of features, `spec.stride` times smaller along each side."""

    def __init__(self, spec: ResNetStemSpec) -> None:
        super().__init__()
        self.root = StandardConv(CHANNELS, spec.width, side=7, stride=2, spec=spec)
        self.root_norm = _norm(spec.width, spec)
        widths = [spec.width * 2**stage for stage in range(len(spec.blocks))]
        inputs = [spec.width, *(4 * width for width in widths)]
        self.stages = nn.ModuleList(
            _stage(source, width, units, stride=2 if stage else 1, spec=spec)
            for stage, (source, width, units) in enumerate(
                zip(inputs, widths, spec.blocks, strict=False)
            )
        )

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> [B, C, H / stride, W / stride]."""
        grid_BCHW = F.relu(self.root_norm(self.root(pixels_BCHW)))
        grid_BCHW = F.max_pool2d(pad_same(grid_BCHW, 3, 2, fill=float("-inf")), 3, stride=2)
        for stage in self.stages:
            grid_BCHW = stage(grid_BCHW)
        return grid_BCHW


class Unit(nn.Module):
    """A bottleneck: 1 x 1, 3 x 3 with the stride, 1 x 1 to four times the width, and a residual."""

    def __init__(self, source: int, width: int, *, stride: int, spec: ResNetStemSpec) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = StandardConv(source, width, side=1, stride=1, spec=spec)
        self.norm1 = _norm(width, spec)
        self.conv2 = StandardConv(width, width, side=3, stride=stride, spec=spec)
        self.norm2 = _norm(width, spec)
        self.conv3 = StandardConv(width, out, side=1, stride=1, spec=spec)
        self.norm3 = _norm(out, spec)
        projects = source != out or stride != 1
        self.project = (
            StandardConv(source, out, side=1, stride=stride, spec=spec) if projects else None
        )
        self.project_norm = _norm(out, spec) if projects else None

    def forward(self, grid_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 4 x width, H / stride, W / stride]."""
        residual = grid_BCHW
        if self.project is not None and self.project_norm is not None:
            residual = self.project_norm(self.project(grid_BCHW))
        hidden = F.relu(self.norm1(self.conv1(grid_BCHW)))
        hidden = F.relu(self.norm2(self.conv2(hidden)))
        return F.relu(residual + self.norm3(self.conv3(hidden)))


class StandardConv(nn.Module):
    """A convolution whose kernels have zero mean and unit spread, with TensorFlow's "SAME" border.

    There is no bias: a norm follows.
    """

    def __init__(
        self, source: int, out: int, *, side: int, stride: int, spec: ResNetStemSpec
    ) -> None:
        super().__init__()
        self.side, self.stride, self.spec = side, stride, spec
        self.weight = nn.Parameter(torch.empty(out, source, side, side))

    def forward(self, grid_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out, H / stride, W / stride], rounded up."""
        padded = pad_same(grid_BCHW, self.side, self.stride, fill=0.0)
        return F.conv2d(padded, standardise(self.weight, self.spec), stride=self.stride)


def standardise(weight: Tensor, spec: ResNetStemSpec | ResNetSpec) -> Tensor:
    """Each output channel's kernel with zero mean and, but for the spec's eps, unit deviation."""
    variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
    if spec.weight_std == "jax":
        return (weight - mean) / (variance.sqrt() + spec.weight_std_eps)
    return (weight - mean) * torch.rsqrt(variance + spec.weight_std_eps)


def pad_same(grid_BCHW: Tensor, side: int, stride: int, *, fill: float) -> Tensor:
    """A border of `fill` so that every `stride`-th window counts; the odd cell is at the end."""
    borders = []
    for cells in (grid_BCHW.shape[3], grid_BCHW.shape[2]):
        missing = max(0, (-(-cells // stride) - 1) * stride + side - cells)
        borders += [missing // 2, missing - missing // 2]
    return F.pad(grid_BCHW, borders, value=fill) if any(borders) else grid_BCHW


def _norm(channels: int, spec: ResNetStemSpec) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=spec.group_norm_eps)


def _stage(
    source: int, width: int, units: int, *, stride: int, spec: ResNetStemSpec
) -> nn.Sequential:
    inputs = [source, *[4 * width] * (units - 1)]
    return nn.Sequential(
        *(
            Unit(channels, width, stride=1 if unit else stride, spec=spec)
            for unit, channels in enumerate(inputs)
        )
    )

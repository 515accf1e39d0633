"""The ResNet of Big Transfer (Kolesnikov et al. 2019), the ViT's convolutional peer.

ResNet-v2 with GroupNorm and weight standardisation.

B batch, C channels, H W cells of a grid, D features, K classes; kernels are [out, in, height,
width]. The hybrids' stem beside it normalises after each convolution, this network before.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows
from torch.utils.checkpoint import checkpoint

from pipeline.model.backbone import Backbone, refuse_noise
from pipeline.model.initial import lecun_normal
from pipeline.model.layers import number_layers
from pipeline.model.noise import ForwardNoise
from pipeline.model.stem import standardise
from schemas.backbones import ResNetSpec
from schemas.model import CHANNELS, GROUPS


def build_resnet(spec: ResNetSpec, *, seed: int) -> "ResNet":
    """A ResNet on the CPU, fixed by (spec, seed): LeCun's normal, cut; norms 1; head and biases 0.

    The global generator is left alone. The model starts in training mode.
    """
    with torch.device("meta"):
        model = ResNet(spec)  # no memory and no draw
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    with torch.no_grad():
        for name, like in model.named_parameters():
            module, _, leaf = name.rpartition(".")
            weights[name] = torch.zeros(like.shape, device="cpu")
            if "norm" in module.rpartition(".")[2] and leaf == "weight":
                weights[name].fill_(1.0)
            elif module != "head" and leaf == "weight":
                lecun_normal(weights[name], generator)
    model.load_state_dict(weights, assign=True)
    return model


_UNIT = re.compile(r"^stages\.\d+\.\d+\.")


class ResNet(Backbone):
    """The model that `spec` describes; `build_resnet` gives it its initial weights."""

    spec: ResNetSpec

    def __init__(self, spec: ResNetSpec) -> None:
        """Parts with empty weights."""
        super().__init__()
        self.spec = spec
        self.root = FixedConv(CHANNELS, spec.width, side=7, stride=2, spec=spec)
        widths = [spec.width * 2**stage for stage in range(len(spec.blocks))]
        inputs = [spec.width, *(4 * width for width in widths)]
        self.stages = nn.ModuleList(
            _stage(source, width, units, stride=2 if stage else 1, spec=spec)
            for stage, (source, width, units) in enumerate(
                zip(inputs, widths, spec.blocks, strict=False)
            )
        )
        self.norm = _norm(spec.features, spec)
        self.head = nn.Linear(spec.features, spec.num_classes) if spec.num_classes else None

    def forward_features(self, pixels_BCHW: Tensor, noise: ForwardNoise | None = None) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> means over the cells of the last stage, [B, D].

        Raises:
            ValueError: If noise is given: nothing in here is left to chance.
        """
        refuse_noise(noise)
        return self._cells(pixels_BCHW).mean(dim=(2, 3))

    def layers(self) -> dict[str, int]:
        """Parameter -> number of its layer, each unit being one; see `number_layers`."""
        return number_layers((name for name, _ in self.named_parameters()), _UNIT)

    def forward_grid(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> the cells of the last stage, [B, R, Q, D]."""
        return self._cells(pixels_BCHW).permute(0, 2, 3, 1)

    def _cells(self, pixels_BCHW: Tensor) -> Tensor:
        # The border is 0 and not minus infinity, which counts: nothing has been activated yet.
        grid_BCHW = F.max_pool2d(F.pad(self.root(pixels_BCHW), (1, 1, 1, 1)), 3, stride=2)
        for stage in self.stages:
            for unit in stage.children():
                grid_BCHW = self._through(unit, grid_BCHW)
        return F.relu(self.norm(grid_BCHW))

    def _through(self, unit: nn.Module, grid_BCHW: Tensor) -> Tensor:
        if self.recomputes and torch.is_grad_enabled():
            again: Tensor = checkpoint(unit, grid_BCHW, use_reentrant=False)
            return again
        out: Tensor = unit(grid_BCHW)
        return out


class PreActivationUnit(nn.Module):
    """A bottleneck: 1 x 1, 3 x 3 with the stride, 1 x 1 to four times the width, and a residual.

    Each convolution is of what is normalised and activated; what is added to is neither.
    """

    def __init__(self, source: int, width: int, *, stride: int, spec: ResNetSpec) -> None:
        super().__init__()
        out = 4 * width
        self.norm1 = _norm(source, spec)
        self.conv1 = FixedConv(source, width, side=1, stride=1, spec=spec)
        self.norm2 = _norm(width, spec)
        self.conv2 = FixedConv(width, width, side=3, stride=stride, spec=spec)
        self.norm3 = _norm(width, spec)
        self.conv3 = FixedConv(width, out, side=1, stride=1, spec=spec)
        projects = source != out or stride != 1
        self.project = (
            FixedConv(source, out, side=1, stride=stride, spec=spec) if projects else None
        )

    def forward(self, grid_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 4 x width, H / stride, W / stride], rounded up."""
        active = F.relu(self.norm1(grid_BCHW))
        residual = grid_BCHW if self.project is None else self.project(active)
        hidden = F.relu(self.norm2(self.conv1(active)))
        hidden = F.relu(self.norm3(self.conv2(hidden)))
        out: Tensor = residual + self.conv3(hidden)
        return out


class FixedConv(nn.Module):
    """A convolution whose kernels have zero mean and unit spread, with the same border all round.

    There is no bias: a norm follows.
    """

    def __init__(self, source: int, out: int, *, side: int, stride: int, spec: ResNetSpec) -> None:
        super().__init__()
        self.stride, self.border, self.spec = stride, side // 2, spec
        self.weight = nn.Parameter(torch.empty(out, source, side, side))

    def forward(self, grid_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out, H / stride, W / stride], rounded up."""
        kernel = standardise(self.weight, self.spec)
        return F.conv2d(grid_BCHW, kernel, stride=self.stride, padding=self.border)


def _norm(channels: int, spec: ResNetSpec) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=spec.group_norm_eps)


def _stage(source: int, width: int, units: int, *, stride: int, spec: ResNetSpec) -> nn.Sequential:
    inputs = [source, *[4 * width] * (units - 1)]
    return nn.Sequential(
        *(
            PreActivationUnit(channels, width, stride=1 if unit else stride, spec=spec)
            for unit, channels in enumerate(inputs)
        )
    )

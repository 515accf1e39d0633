"""What every model is to training and evaluation, whoever wrote it.

B batch, C channels, H W pixels, R Q rows and columns of a grid, D features, K classes.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pipeline.model.noise import ForwardNoise
from schemas.backbones import BackboneSpec


class Backbone(nn.Module, ABC):
    """Features of images, and a linear head named `head` on them.

    A class, since Python cannot say "a module that also has these methods". Of the names of its
    parameters, only `head.weight` and `head.bias` mean the same in every model.
    """

    spec: BackboneSpec
    head: nn.Linear | None
    recomputes: bool = False
    """Whether blocks keep nothing for the backward pass and run twice instead."""
    probes: bool = False
    """Whether nothing has a gradient but the head."""

    def forward(self, pixels_BCHW: Tensor, noise: ForwardNoise | None = None) -> Tensor:
        """Normalised pixels [B, C, H, W] -> logits [B, K]; features [B, D] where there is no head.

        Args:
            pixels_BCHW: Of the size that the spec says.
            noise: What chance decides, for a model that takes it from its caller.
        """
        with self.below_head():
            features_BD = self.forward_features(pixels_BCHW, noise)
        return self.forward_head(features_BD)

    def below_head(self) -> torch.set_grad_enabled:
        """Around all that comes before a head: without gradients while the head alone learns."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.probes)

    @abstractmethod
    def forward_features(self, pixels_BCHW: Tensor, noise: ForwardNoise | None = None) -> Tensor:
        """Normalised pixels [B, C, H, W] -> what the head sees of each image, [B, D]."""

    def forward_head(self, features_BD: Tensor) -> Tensor:
        """Features [B, D] -> logits [B, K] of the head; the features themselves where none is."""
        return features_BD if self.head is None else self.head(features_BD)

    @abstractmethod
    def layers(self) -> dict[str, int]:
        """Parameter -> number of its layer, in the model's order.

        0 is what the blocks stand on, 1 to L are the blocks, and the largest is that of the head.
        """

    @abstractmethod
    def forward_grid(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised pixels [B, C, H, W] -> features in their places, [B, R, Q, D].

        Raises:
            ValueError: If the model keeps no places that are known.
        """


def normalise(pixels_BHWC: Tensor, spec: BackboneSpec) -> Tensor:
    """Bytes 0..255 in [B, H, W, C] -> float32 [B, C, H, W], zero mean and unit spread by `spec`."""
    means, stds = spec.pixel_mean, spec.pixel_std
    device = pixels_BHWC.device
    scale_C11 = torch.tensor([1.0 / (255.0 * std) for std in stds], device=device)[:, None, None]
    shift_C11 = torch.tensor(
        [mean / std for mean, std in zip(means, stds, strict=True)], device=device
    )[:, None, None]
    pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).to(torch.float32)
    return pixels_BCHW.mul_(scale_C11).sub_(shift_C11).contiguous()


def refuse_noise(noise: ForwardNoise | None) -> None:
    """For a model that leaves nothing to the caller's chance.

    Raises:
        ValueError: If there is noise.
    """
    if noise is not None:
        raise ValueError("this model takes no noise from its caller")


def batch_statistics(model: nn.Module) -> list[str]:
    """Names of the layers that normalise by the statistics of a batch and keep running ones."""
    kind = torch.nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - the base of all of them
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """What a model keeps beside its parameters, by name, such as running statistics."""
    state = model.state_dict()
    learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: tensor for name, tensor in state.items() if name not in learned}

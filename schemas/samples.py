"""What a user says of the samples of a step: how many, of which sets, and how altered."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.spec import Semantic, Spec

MAX_WEIGHTS = 10_000
"""The order of a cycle of a mixture is kept in memory."""


class RandAugmentSpec(Spec):
    """Random operations on colour and shape (Cubuk et al. 2019), one after the other."""

    layers: Semantic[int] = Field(default=2, ge=1, le=8)
    """Operations on each image, each drawn from fourteen."""
    magnitude: Semantic[float] = Field(default=10.0, ge=0, le=30)
    """Strength of every operation; at 10 an image turns by 30 degrees, moves by 45 % of its side,
    or its colours change by 90 %. The ViT papers use 10, 15 and 20."""


class ColourJitterSpec(Spec):
    """Factors drawn evenly from [max(0, 1 - x), 1 + x], applied in the order of the fields."""

    brightness: Semantic[float] = Field(default=0.0, ge=0)
    contrast: Semantic[float] = Field(default=0.0, ge=0)
    saturation: Semantic[float] = Field(default=0.0, ge=0)
    hue: Semantic[float] = Field(default=0.0, ge=0, le=0.5)
    """Largest turn of the colour circle either way, as a share of the whole circle."""


class AugmentSpec(Spec):
    """What happens to a training image; evaluation resizes and centre-crops.

    In this order: crop and resize, shift, mirror, colour jitter, RandAugment, erasing; then, on the
    batch, mixup or CutMix.
    """

    crop: Semantic[Literal["none", "inception", "shift"]] = "none"
    """`none`: resized, then cut from the centre; `inception`: random area and aspect; `shift`: as
    `none`, then moved."""
    min_area_ratio: Semantic[float] = Field(default=0.05, gt=0, le=1)
    """Smallest share of the image that an `inception` crop covers."""
    shift_ratio: Semantic[float] = Field(default=0.125, ge=0, lt=0.5)
    """Largest `shift`, as a share of the side; the border is repeated."""
    flip: Semantic[bool] = False
    """Mirror every second image, on average."""
    colour_jitter: Semantic[ColourJitterSpec | None] = None
    randaugment: Semantic[RandAugmentSpec | None] = None
    erase_ratio: Semantic[float] = Field(default=0.0, ge=0, le=1)
    """Share of the images in which a random rectangle turns grey (Zhong et al. 2017)."""
    mixup_alpha: Semantic[float] = Field(default=0.0, ge=0)
    """Neighbours in the global batch are blended, by a weight from Beta(alpha, alpha) for each
    pair; 0 turns it off."""
    cutmix_alpha: Semantic[float] = Field(default=0.0, ge=0)
    """Neighbours swap a rectangle, whose area is from Beta(alpha, alpha). With both, each pair
    takes either at even odds."""
    label_smoothing: Semantic[float] = Field(default=0.0, ge=0, lt=1)

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed in pairs."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


class BatchSpec(Spec):
    """How many samples make one optimizer step, on all workers together."""

    global_samples: Semantic[int] = Field(gt=0)
    tail: Semantic[Literal["drop", "pad", "exact"]] = "drop"
    """The last batch of an epoch, where it is not full: left out; filled with images from the
    beginning of the epoch; or filled likewise, with weight 0 for what fills it, so that every image
    counts once."""


class MixturePhase(Spec):
    """How the samples of a batch are shared among the shard sets, from a step on."""

    from_step: Semantic[int] = Field(ge=0)
    """First optimizer step of the phase, from 0."""
    weights: Semantic[tuple[Annotated[int, Field(ge=0)], ...]]
    """One whole number for each shard set of `data`: in every cycle of as many samples as their
    sum, each set gives as many as its weight. Never more than one sample off its share."""

    @model_validator(mode="after")
    def _a_cycle_is_short(self) -> "MixturePhase":
        if not 1 <= sum(self.weights) <= MAX_WEIGHTS:
            raise ValueError(
                f"weights sum up to {sum(self.weights)}; write whole numbers that sum up to "
                f"1 to {MAX_WEIGHTS}, such as [3, 1]"
            )
        return self

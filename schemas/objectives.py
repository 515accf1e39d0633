"""What a user says of the objective: what a model is trained for."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.model import ViTSpec
from schemas.spec import Semantic, Spec

COLOUR_LEVELS = 8
"""Of red, green and blue each: three bits."""
Probabilities = Literal["softmax", "sigmoid"]
"""What makes probabilities of a model's logits: `softmax` over all classes, which then add up to
one, or a `sigmoid` of each, where every class is a question of its own."""
_Share = Annotated[float, Field(gt=0, lt=1)]


class SupervisedSpec(Spec):
    """Cross-entropy on the labels."""

    type: Semantic[Literal["supervised"]] = "supervised"
    loss: Semantic[Probabilities] = "softmax"
    """`sigmoid`: each class is a question of its own, and their losses are added, as in the paper's
    pre-training on JFT."""
    head_bias: Semantic[float] = 0.0
    """Bias of every class before the first step. For `sigmoid` about -log(classes), so that it
    starts from "none of them": AugReg takes -10 for 21,843 classes and -6.9 for 1,000."""

    uses_labels: ClassVar[bool] = True


class MaskedPatchSpec(Spec):
    """Name the mean colour of corrupted patches, three bits a channel (the paper, B.1.2).

    Of the corrupted, 80 % become a learned token, 10 % show another patch of the image, and 10 %
    stay as they are.
    """

    type: Semantic[Literal["masked_patch"]] = "masked_patch"
    corrupt_ratio: Semantic[_Share] = 0.5
    """Share of the patches that are corrupted; the paper also tried 0.15, which was worse."""

    uses_labels: ClassVar[bool] = False

    def corrupted(self, patches: int) -> int:
        """Corrupted patches of an image."""
        return round(patches * self.corrupt_ratio)

    def conflicts(self, model: ViTSpec) -> Iterator[str]:
        """What in the model does not go with it, one sentence each."""
        yield from _hidden_patches_conflicts(self.type, model)
        if model.patches < 2 or not self.corrupted(model.patches):
            yield (
                f"objective masked_patch corrupts {self.corrupted(model.patches)} of "
                f"{model.patches} patches; raise corrupt_ratio, or take smaller patches"
            )


class MaeSpec(Spec):
    """Draw the hidden patches of an image whose others are seen (He et al. 2021)."""

    type: Semantic[Literal["mae"]] = "mae"
    mask_ratio: Semantic[_Share] = 0.75
    """Share of the patches that the encoder does not see."""
    decoder_width: Semantic[int] = Field(default=512, ge=8)
    decoder_depth: Semantic[int] = Field(default=8, ge=1)
    decoder_heads: Semantic[int] = Field(default=16, ge=1)
    normalised_targets: Semantic[bool] = True
    """Each patch's pixels less their mean, over their deviation."""

    uses_labels: ClassVar[bool] = False

    @model_validator(mode="after")
    def _widths_divide(self) -> "MaeSpec":
        if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"objective.decoder_width {self.decoder_width} must be a multiple of 4 and of "
                f"decoder_heads {self.decoder_heads}"
            )
        return self

    def kept(self, patches: int) -> int:
        """Patches of an image that the encoder sees."""
        return int(patches * (1 - self.mask_ratio))

    def decoder(self, model: ViTSpec) -> ViTSpec:
        """The decoder as a ViT on the same grid: its blocks, and a dense layer for pixels."""
        return ViTSpec(
            width=self.decoder_width,
            depth=self.decoder_depth,
            num_heads=self.decoder_heads,
            mlp_dim=4 * self.decoder_width,
            patch_px=model.patch_px,
            image_px=model.image_px,
            num_classes=0,
            pool=model.pool,
            position="sincos_2d",
            class_position=model.class_position,
            registers=model.registers,
            distillation_token=model.distillation_token,
            gelu=model.gelu,
            layer_norm_eps=model.layer_norm_eps,
        )

    def conflicts(self, model: ViTSpec) -> Iterator[str]:
        """What in the model does not go with it, one sentence each."""
        yield from _hidden_patches_conflicts(self.type, model)
        if model.axial or model.position == "relative":
            part = "axial blocks" if model.axial else "relative positions"
            yield f"objective mae hides patches from the encoder, and {part} need the whole grid"
        if not 0 < self.kept(model.patches) < model.patches:
            yield (
                f"objective mae would show {self.kept(model.patches)} of {model.patches} patches; "
                "change mask_ratio, or take smaller patches"
            )


class DistillationSpec(Spec):
    """Learn from labels and from another model, the teacher (Touvron et al. 2020).

    The teacher's part is learned by the head of `model.distillation_token`, or by the one head of a
    model without it.
    """

    type: Semantic[Literal["distillation"]] = "distillation"
    mode: Semantic[Literal["hard", "soft"]] = "hard"
    """`hard`: cross-entropy on the class that the teacher names; `soft`: divergence from its
    probabilities."""
    teacher_ratio: Semantic[float] = Field(default=0.5, gt=0, le=1)
    """The teacher's share of the loss; the labels have the rest. DeiT: 0.5 hard, 0.1 soft."""
    temperature: Semantic[float] = Field(default=3.0, gt=0)
    """Of `soft`: both models' logits are divided by it, and the loss is multiplied by its square.
    """

    uses_labels: ClassVar[bool] = True


def _hidden_patches_conflicts(objective: str, model: ViTSpec) -> Iterator[str]:
    if model.stem is not None:
        yield f"objective {objective} hides patches, and a stem sees beyond the patch"
    if model.pool == "map" or model.hidden_head:
        part = "the query of pool map" if model.pool == "map" else "hidden_head"
        yield f"objective {objective} learns from patches alone and would not train {part}"
    if model.patch_dropout:
        yield f"objective {objective} hides patches itself; leave model.patch_dropout at 0"


LabelledObjective = Annotated[SupervisedSpec | DistillationSpec, Field(discriminator="type")]
AnyObjective = Annotated[
    SupervisedSpec | MaskedPatchSpec | MaeSpec | DistillationSpec, Field(discriminator="type")
]

"""Learning from labels and from a teacher. B batch, K classes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from pipeline.model.backbone import Backbone
from pipeline.training.objectives.common import LabelledBatch, Setting
from pipeline.training.objectives.supervised import Supervised
from pipeline.training.precision import autocast
from schemas.backbones import BackboneSpec
from schemas.checkpoint import SavedModel
from schemas.errors import SpecError
from schemas.model import ViTSpec
from schemas.objectives import DistillationSpec


@dataclass(frozen=True)
class Distilled:
    """Part the labels' loss, part the teacher's; see `DistillationSpec`."""

    setting: Setting
    spec: DistillationSpec
    labels: Supervised
    teacher: Backbone
    """In evaluation mode, on the device."""
    precision: str
    """As the engine's: `fp32`, or `bf16` or `fp16` by autocast."""

    def __call__(self, model: nn.Module, batch: LabelledBatch) -> Tensor:
        """Mean over the batch, a scalar in fp32."""
        pixels_BCHW = self.setting.pixels(batch)
        noise = self.setting.noise(batch.places, training=model.training)
        student = self.setting.model
        if isinstance(student, ViTSpec) and student.distillation_token:
            own_BK, taught_BK = model(pixels_BCHW, noise=noise, both_heads=True).unbind(1)
        else:
            own_BK = taught_BK = model(pixels_BCHW, noise=noise)
        share = self.spec.teacher_ratio
        loss_B = (1 - share) * self.labels.losses(own_BK, batch)
        loss_B = loss_B + share * self._losses(taught_BK.float(), self._teaching(batch))
        return self.setting.mean(loss_B, batch)

    @torch.no_grad()
    def _teaching(self, batch: LabelledBatch) -> Tensor:
        """The teacher's logits [B, K] of the very pictures that the student sees."""
        pixels_BCHW = self.setting.pixels(batch, self.teacher.spec)
        with autocast(self.precision, pixels_BCHW.device):
            logits_BK: Tensor = self.teacher(pixels_BCHW)
        return logits_BK.float()

    def _losses(self, logits_BK: Tensor, teacher_BK: Tensor) -> Tensor:
        if self.spec.mode == "hard":
            return F.cross_entropy(logits_BK, teacher_BK.argmax(dim=1), reduction="none")
        heat = self.spec.temperature
        said_BK = F.log_softmax(logits_BK / heat, dim=1)
        taught_BK = F.log_softmax(teacher_BK / heat, dim=1)
        each_BK = F.kl_div(said_BK, taught_BK, reduction="none", log_target=True)
        return heat**2 * each_BK.sum(dim=1)


def check_teacher(teacher: SavedModel, model: BackboneSpec, class_names: tuple[str, ...]) -> None:
    """Compare what a teacher sees and says with what the student does.

    Raises:
        SpecError: If they take pictures of different sizes, or tell different classes apart.
    """
    spec = teacher.spec
    if spec.image_px != model.image_px:
        raise SpecError(
            f"the teacher takes images of {spec.image_px[0]} x {spec.image_px[1]} px and the model "
            f"{model.image_px[0]} x {model.image_px[1]}; both see the same pixels, so set "
            "model.image_px, or fine-tune the teacher at that size"
        )
    if spec.num_classes != model.num_classes:
        raise SpecError(
            f"the teacher tells {spec.num_classes} classes apart and the data has "
            f"{model.num_classes}; fine-tune the teacher on this data first"
        )
    pairs = enumerate(zip(teacher.class_names, class_names, strict=False))
    for label, (taught, named) in pairs:
        if taught != named:
            raise SpecError(
                f"class {label} is {taught!r} to the teacher and {named!r} in the data; "
                "fine-tune the teacher on this data first"
            )

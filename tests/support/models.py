"""Small models of any shape."""

from pathlib import Path

from torch import Tensor

from pipeline.model.attention_maps import each_attention
from pipeline.model.backbone import Backbone
from pipeline.model.building import build
from pipeline.model.saved import save_model
from schemas.checkpoint import MODEL_FOLDER, SavedModel
from schemas.model import ViTSpec
from schemas.runs import InputArtifact
from tests.support.evaluation import artifact


def tiny_spec(**changes: object) -> ViTSpec:
    """Width 24, two blocks, 4-px patches on 8 x 12 px, five classes."""
    sizes = {"width": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40, "patch_px": 4}
    return ViTSpec.model_validate({**sizes, "image_px": (8, 12), "num_classes": 5, **changes})


def saved_model(
    folder: Path, classes: tuple[str, ...], *, scale: float = 1.0, seed: int = 1
) -> InputArtifact:
    """The artifact of a fine-tuned ViT of 8 x 8 px with random weights, times `scale`."""
    spec = tiny_spec(image_px=(8, 8), num_classes=len(classes))
    weights = {name: scale * it for name, it in build(spec, seed=seed).state_dict().items()}
    saved = SavedModel(
        spec=spec, class_names=classes, trained_steps=0, key="k", data_digest="d", init_digest=None
    )
    made = artifact(folder, "model", "finetune")
    save_model(Path(made.path) / MODEL_FOLDER, weights, saved)
    return made


def weights_of(model: Backbone, pixels: Tensor) -> list[Tensor]:
    """The weights of every attention, from the first."""
    found: list[Tensor] = []
    each_attention(model, pixels, lambda attended: found.append(attended.weights_SAMT))
    return found

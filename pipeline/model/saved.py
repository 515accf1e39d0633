"""A trained model on disk: `model.safetensors` and, beside it, all that a prediction needs."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.model.backbone import Backbone
from pipeline.model.building import state_of, unfilled
from pipeline.model.transfer import at_size, check_against, check_weights
from schemas.checkpoint import MODEL_FILE, WEIGHTS_FILE, SavedModel
from schemas.errors import IntegrityError
from schemas.spec import canonical_json


def save_model(folder: Path, weights: Mapping[str, Tensor], saved: SavedModel) -> None:
    """Write both files into `folder`, which is made; equal content gives equal bytes."""
    check_weights(weights, saved.spec)
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(plain, folder / WEIGHTS_FILE)
    (folder / MODEL_FILE).write_text(canonical_json(saved.dump()) + "\n")


def load_model(
    folder: Path, *, image_px: tuple[int, int] | None = None
) -> tuple[Backbone, SavedModel]:
    """The model of `folder` on the CPU, in evaluation mode, and what it says of itself.

    Args:
        folder: Of the saved model.
        image_px: Another height and width of its input: positions are resized, the head stays.
            What is returned beside the model still says what was saved.

    Raises:
        IntegrityError: If a file is missing or cannot be read.
        SpecError: If the weights are not those of the spec beside them, or cannot be used at that
            size.
    """
    weights, saved = _read(folder)
    model = unfilled(saved.spec)
    check_against(weights, state_of(model))
    if image_px is not None and image_px != saved.spec.image_px:
        weights, spec = at_size(weights, saved.spec, image_px)
        model = unfilled(spec)
    model.load_state_dict(weights, assign=True)
    return model.eval(), saved


def load_saved(folder: Path) -> SavedModel:
    """The description alone.

    Raises:
        IntegrityError: If it is missing or cannot be read.
    """
    try:
        return SavedModel.model_validate_json((folder / MODEL_FILE).read_text())
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{folder} holds no readable {MODEL_FILE} ({error})") from error


def load_weights(folder: Path) -> tuple[dict[str, Tensor], SavedModel]:
    """Parameters and buffers by name, and the description.

    Raises:
        IntegrityError: If a file is missing or cannot be read.
        SpecError: If the weights are not those of the spec beside them.
    """
    weights, saved = _read(folder)
    check_weights(weights, saved.spec)
    return weights, saved


def _read(folder: Path) -> tuple[dict[str, Tensor], SavedModel]:
    try:
        saved = SavedModel.model_validate_json((folder / MODEL_FILE).read_text())
        weights = load_file(folder / WEIGHTS_FILE)
    except Exception as error:
        raise IntegrityError(
            f"{folder} does not hold a readable saved model ({error}); "
            f"it needs {MODEL_FILE} and {WEIGHTS_FILE}"
        ) from error
    return weights, saved

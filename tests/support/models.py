"""Small models of any shape."""

from schemas.model import ViTSpec


def tiny_spec(**changes: object) -> ViTSpec:
    """Width 24, two blocks, 4-px patches on 8 x 12 px, five classes."""
    sizes = {"width": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40, "patch_px": 4}
    return ViTSpec.model_validate({**sizes, "image_px": (8, 12), "num_classes": 5, **changes})

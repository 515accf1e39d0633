"""Models in plain PyTorch: `build(spec, seed=...)` makes one of any type, a ViT above all.

The parts beside it: `saved` for models on disk, `transfer` for weights that go into another model.
"""

from pipeline.model.building import build

__all__ = ["build"]

"""The Vision Transformer, plain PyTorch: `build(spec, seed=...)` makes one.

The parts beside it: `saved` for models on disk, `transfer` for weights that go into another model.
"""

from pipeline.model.vit import build

__all__ = ["build"]

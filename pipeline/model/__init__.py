"""The Vision Transformer, plain PyTorch."""

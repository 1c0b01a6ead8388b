"""The linear layer of all models."""

from torch.nn import Linear

__all__ = ["Linear"]

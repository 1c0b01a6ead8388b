"""Hiera, MViTv2, plain ViT and their masked autoencoders, their weights, and PyTorchVideo's models
as baselines.
"""

from hiera_video.models.weights import load_weights
from hiera_video.models.zoo import (
    create_hiera,
    create_hiera_mae,
    create_model,
    list_all_models,
    list_models,
)

__all__ = [
    "create_hiera",
    "create_hiera_mae",
    "create_model",
    "list_all_models",
    "list_models",
    "load_weights",
]

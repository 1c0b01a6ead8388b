"""Hiera and its masked autoencoder, their weights, and PyTorchVideo's models as baselines."""

from hiera_video.models.weights import load_weights
from hiera_video.models.zoo import create_hiera, create_hiera_mae, list_models

__all__ = ["create_hiera", "create_hiera_mae", "list_models", "load_weights"]

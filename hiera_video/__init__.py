"""hiera_video: pretrain, fine-tune, test and use 3D Hiera video models."""

__version__ = "0.1.0"

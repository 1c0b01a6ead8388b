"""The models by `torch.hub`: every name of `hiera_video.models.list_models()`.

    model = torch.hub.load("OWNER/hiera_video", "hiera_base_16x224", weights="mae_k400_ft_k400")

weights: what published weights of the model are called after the dot (`hiera-video models`), or any
weight file; none are random ones. Other keywords are the constructor's.
"""

from functools import partial as _partial
from typing import Any as _Any

from torch.nn import Module as _Module

from hiera_video.models import list_models as _list_models
from hiera_video.models import load_weights as _load_weights
from hiera_video.models.zoo import create_model as _create_model

dependencies = ["torch", "torchvision", "pytorchvideo", "safetensors", "tqdm"]


def _build(name: str, *, weights: str | None = None, **arguments: _Any) -> _Module:
    """weights: see above; they must fit the model."""
    model = _create_model(name, **arguments)
    if weights is not None:
        named = f"{name.removeprefix('mae_')}.{weights}"
        _load_weights(model, named if weights.startswith("mae_") else weights)
    return model


globals().update({name: _partial(_build, name) for name in _list_models()})

"""The models by `torch.hub`: every name of `hiera_video.models.list_all_models(ours=True)`.

    model = torch.hub.load("OWNER/hiera_video", "hiera_base_16x224", weights="mae_k400_ft_k400")

weights: what published weights of the model are called after the dot (`hiera-video models`), or any
weight file; none are random ones. Other keywords are the constructor's.
"""

from collections.abc import Callable as _Callable
from typing import Any as _Any

from torch.nn import Module as _Module

from hiera_video.models import load_weights as _load_weights
from hiera_video.models.published import PUBLISHED as _PUBLISHED
from hiera_video.models.zoo import create_model as _create_model
from hiera_video.models.zoo import list_all_models as _list_all_models

dependencies = ["torch", "numpy", "safetensors", "tqdm"]


def _entry(name: str) -> _Callable[..., _Module]:
    def build(*, weights: str | None = None, **arguments: _Any) -> _Module:
        model = _create_model(name, **arguments)
        if weights is not None:
            known = f"{name.removeprefix('mae_')}.{weights}"
            _load_weights(model, known if known in _PUBLISHED else weights)
        return model

    build.__doc__ = f"{name}. weights: published ones by what follows the dot, or a file."
    return build


globals().update({name: _entry(name) for name in _list_all_models(ours=True)})

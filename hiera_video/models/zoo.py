"""The named models: the published ones, and tiny and small at 16x224 by the same rule.

Sizes: paper Table 2.
"""

import dataclasses
import inspect
from typing import Any

from torch import nn

from hiera_video.models.arguments import HieraArgs, MAEArgs
from hiera_video.models.baselines import PYTORCHVIDEO_MODELS, create_pytorchvideo
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import MaskedAutoencoder

SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(embed_dim=96, num_heads=1, stages=(1, 2, 7, 2)),
    "small": dict(embed_dim=96, num_heads=1, stages=(1, 2, 11, 2)),
    "base": dict(embed_dim=96, num_heads=1, stages=(2, 3, 16, 3)),
    "base_plus": dict(embed_dim=112, num_heads=2, stages=(2, 3, 16, 3)),
    "large": dict(embed_dim=144, num_heads=2, stages=(2, 6, 36, 4)),
    "huge": dict(embed_dim=256, num_heads=4, stages=(2, 6, 36, 4)),
}
INPUTS: dict[str, dict[str, Any]] = {
    "224": dict(input_size=(224, 224)),
    "16x224": dict(
        input_size=(16, 224, 224),
        num_classes=400,
        q_stride=(1, 2, 2),
        mask_unit_size=(1, 8, 8),
        patch_kernel=(3, 7, 7),
        patch_stride=(2, 4, 4),
        patch_padding=(1, 3, 3),
        sep_pos_embed=True,
    ),
}


def list_models() -> list[str]:
    """All names that `create_hiera` and `create_hiera_mae` take."""
    names = [f"hiera_{size}_{clip}" for size in SIZES for clip in INPUTS]
    return names + [f"mae_{name}" for name in names]


def hiera_arguments(name: str, **overrides: Any) -> dict[str, Any]:
    """Every constructor argument of the named model, with the overrides. Raises ValueError."""
    if name not in list_models():
        known = ", ".join([*list_models(), *PYTORCHVIDEO_MODELS])
        raise ValueError(f"there is no model {name!r}; there are {known}")
    size, clip = name.removeprefix("mae_").removeprefix("hiera_").rsplit("_", 1)
    family = MAEArgs if name.startswith("mae_") else HieraArgs
    defaults = {field.name: field.default for field in dataclasses.fields(family)}
    _check_names(name, overrides, list(defaults))
    return {**defaults, **SIZES[size], **INPUTS[clip], **overrides}


def create_hiera(name: str, **overrides: Any) -> Hiera:
    """A classifier by its official name, such as `hiera_base_16x224`, with random weights.

    overrides: constructor arguments under their official names (HieraArgs). Raises ValueError.
    """
    if name.startswith("mae_"):
        raise ValueError(f"{name!r} is a masked autoencoder: use create_hiera_mae")
    return Hiera(**hiera_arguments(name, **overrides))


def create_hiera_mae(name: str, **overrides: Any) -> MaskedAutoencoder:
    """A masked autoencoder by its official name, such as `mae_hiera_base_16x224`.

    `hiera_base_16x224` will do. overrides: as in `create_hiera` (MAEArgs). Raises ValueError.
    """
    name = name if name.startswith("mae_") else f"mae_{name}"
    return MaskedAutoencoder(**hiera_arguments(name, **overrides))


def create_model(name: str, **arguments: Any) -> nn.Module:
    """A Hiera, a masked autoencoder or one of PyTorchVideo's models. Raises ValueError."""
    if name in PYTORCHVIDEO_MODELS:
        _, *known = inspect.signature(create_pytorchvideo).parameters
        _check_names(name, arguments, known)
        return create_pytorchvideo(name, **arguments)
    create = create_hiera_mae if name.startswith("mae_") else create_hiera
    return create(name, **arguments)


def _check_names(model: str, arguments: dict[str, Any], known: list[str]) -> None:
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ValueError(f"{model} takes no argument {unknown[0]!r}; it takes {', '.join(known)}")

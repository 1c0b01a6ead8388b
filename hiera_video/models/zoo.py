"""The named models: the published ones, and tiny and small at 16x224 by the same rule. Sizes: paper Table 2."""

import inspect
from typing import Any

from torch import nn

from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.models.pytorchvideo_models import PYTORCHVIDEO_MODELS, create_pytorchvideo

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
    return [f"{prefix}hiera_{size}_{clip}" for prefix in ("", "mae_") for size in SIZES for clip in INPUTS]


def hiera_arguments(name: str, **overrides: Any) -> dict[str, Any]:
    """Every constructor argument of the named model, overrides applied; ValueError for an unknown name or argument."""
    if name not in list_models():
        raise ValueError(f"there is no model {name!r}; there are {', '.join([*list_models(), *PYTORCHVIDEO_MODELS])}")
    size, clip = name.removeprefix("mae_").removeprefix("hiera_").rsplit("_", 1)
    constructor = MaskedAutoencoder if name.startswith("mae_") else Hiera
    defaults = {k: p.default for k, p in inspect.signature(constructor).parameters.items()}
    unknown = sorted(set(overrides) - set(defaults))
    if unknown:
        raise ValueError(f"{name} takes no argument {unknown[0]!r}; it takes {', '.join(defaults)}")
    return {**defaults, **SIZES[size], **INPUTS[clip], **overrides}


def create_hiera(name: str, **overrides: Any) -> Hiera:
    """A classifier by its official name, for example `hiera_base_16x224`, with random weights.

    `overrides` are constructor arguments of `Hiera` under their official names. Raises ValueError.
    """
    if name.startswith("mae_"):
        raise ValueError(f"{name!r} is a masked autoencoder: use create_hiera_mae")
    return Hiera(**hiera_arguments(name, **overrides))


def create_hiera_mae(name: str, **overrides: Any) -> MaskedAutoencoder:
    """A masked autoencoder by its official name, for example `mae_hiera_base_16x224` (`hiera_base_16x224` will do)."""
    name = name if name.startswith("mae_") else f"mae_{name}"
    return MaskedAutoencoder(**hiera_arguments(name, **overrides))


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Any model that has a name here: a Hiera, its masked autoencoder, or one of PyTorchVideo's. Raises ValueError."""
    if name in PYTORCHVIDEO_MODELS:
        known = inspect.signature(create_pytorchvideo).parameters
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            raise ValueError(f"{name} takes no argument {unknown[0]!r}; it takes {', '.join(list(known)[1:])}")
        return create_pytorchvideo(name, **arguments)
    return create_hiera_mae(name, **arguments) if name.startswith("mae_") else create_hiera(name, **arguments)

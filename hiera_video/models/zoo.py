"""The named models: Hiera, MViTv2 and the plain ViT, and their masked autoencoders.

Sizes: Hiera, paper Table 2 (tiny and small at 16x224 are ours, by the same rule); MViTv2, Table 1
of Li et al.; ViT, Table 1 of Dosovitskiy et al.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hiera_video.models.arguments import HieraArgs, MAEArgs, TrunkArgs, ViTArgs, ViTMAEArgs
from hiera_video.models.baselines import PYTORCHVIDEO_MODELS, create_pytorchvideo
from hiera_video.models.classifier import Classifier
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.models.mvit import MViT, MViTAutoencoder
from hiera_video.models.mvit_arguments import MViTArgs, MViTMAEArgs
from hiera_video.models.vit import ViT, ViTAutoencoder

SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(embed_dim=96, num_heads=1, stages=(1, 2, 7, 2)),
    "small": dict(embed_dim=96, num_heads=1, stages=(1, 2, 11, 2)),
    "base": dict(embed_dim=96, num_heads=1, stages=(2, 3, 16, 3)),
    "base_plus": dict(embed_dim=112, num_heads=2, stages=(2, 3, 16, 3)),
    "large": dict(embed_dim=144, num_heads=2, stages=(2, 6, 36, 4)),
    "huge": dict(embed_dim=256, num_heads=4, stages=(2, 6, 36, 4)),
}
MVIT_SIZES = {name: SIZES[name] for name in ("small", "base", "large")}
VIT_SIZES: dict[str, dict[str, Any]] = {
    "base": dict(embed_dim=768, num_heads=12, stages=(12,)),
    "large": dict(embed_dim=1024, num_heads=16, stages=(24,)),
    "huge": dict(embed_dim=1280, num_heads=16, stages=(32,)),
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
VIT_INPUTS: dict[str, dict[str, Any]] = {
    "224": dict(input_size=(224, 224), cls_token=True),
    # VideoMAE's; MAE-ST's is cls_token and sep_pos_embed in place of sincos_pos_embed.
    "16x224": dict(
        input_size=(16, 224, 224),
        num_classes=400,
        q_stride=(1, 1, 1),
        mask_unit_size=(1, 1, 1),
        patch_kernel=(2, 16, 16),
        patch_stride=(2, 16, 16),
        patch_padding=(0, 0, 0),
        sincos_pos_embed=True,
    ),
}


@dataclass(frozen=True)
class Family:
    classifier: type[Classifier]
    autoencoder: type[MaskedAutoencoder]
    classifier_args: type[TrunkArgs]
    autoencoder_args: type[TrunkArgs]
    sizes: dict[str, dict[str, Any]]
    inputs: dict[str, dict[str, Any]]


FAMILIES = {
    "hiera": Family(Hiera, MaskedAutoencoder, HieraArgs, MAEArgs, SIZES, INPUTS),
    "mvit_v2": Family(MViT, MViTAutoencoder, MViTArgs, MViTMAEArgs, MVIT_SIZES, INPUTS),
    "vit": Family(ViT, ViTAutoencoder, ViTArgs, ViTMAEArgs, VIT_SIZES, VIT_INPUTS),
}


def list_models() -> list[str]:
    """All names that `create_hiera` and `create_hiera_mae` take."""
    return _names("hiera")


def list_all_models(*, ours: bool = False) -> list[str]:
    """All names that `create_model` takes; without PyTorchVideo's models, if those are `ours`."""
    names = [name for family in FAMILIES for name in _names(family)]
    return names if ours else [*names, *PYTORCHVIDEO_MODELS]


def family_of(name: str) -> Family:
    """Raises ValueError."""
    return FAMILIES[_parts(name)[0]]


def argument_names(name: str) -> list[str]:
    """What the constructor of the named model takes. Raises ValueError."""
    return list(_defaults(name))


def model_arguments(name: str, **overrides: Any) -> dict[str, Any]:
    """Every constructor argument of the named model, with the overrides. Raises ValueError."""
    defaults = _defaults(name)
    _check_names(name, overrides, list(defaults))
    family, size, clip = _parts(name)
    known = FAMILIES[family]
    arguments = {**defaults, **known.sizes[size], **known.inputs[clip]}
    if (family, size) == ("mvit_v2", "large") and overrides.get("step", "mvitv2") == "mvitv2":
        # As published (Wei et al., CVPR 2022). The way to Hiera begins with what Hiera has.
        arguments["dim_mul_in_att"] = False
    return {**arguments, **overrides}


def encoder_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the classifier whose encoder is the named autoencoder's with these arguments."""
    known = argument_names(name.removeprefix("mae_"))
    kept = {key: value for key, value in arguments.items() if key in known}
    if "separate" in known and arguments.get("masking") == "tokens":
        kept.setdefault("separate", False)  # it saw the whole grid
    return kept


def create_hiera(name: str, **overrides: Any) -> Hiera:
    """A classifier by its official name, such as `hiera_base_16x224`, with random weights.

    overrides: constructor arguments under their official names (HieraArgs). Raises ValueError.
    """
    if name.startswith("mae_"):
        raise ValueError(f"{name!r} is a masked autoencoder: use create_hiera_mae")
    _check_hiera(name)
    return Hiera(**model_arguments(name, **overrides))


def create_hiera_mae(name: str, **overrides: Any) -> MaskedAutoencoder:
    """A masked autoencoder by its official name, such as `mae_hiera_base_16x224`.

    `hiera_base_16x224` will do. overrides: as in `create_hiera` (MAEArgs). Raises ValueError.
    """
    name = name if name.startswith("mae_") else f"mae_{name}"
    _check_hiera(name)
    return MaskedAutoencoder(**model_arguments(name, **overrides))


def create_model(name: str, **arguments: Any) -> nn.Module:
    """A model of ours by its name, or one of PyTorchVideo's. Raises ValueError."""
    if name in PYTORCHVIDEO_MODELS:
        _, *known = inspect.signature(create_pytorchvideo).parameters
        _check_names(name, arguments, known)
        return create_pytorchvideo(name, **arguments)
    family = family_of(name)
    constructor: Any = family.autoencoder if name.startswith("mae_") else family.classifier
    return constructor(**model_arguments(name, **arguments))


def _names(family: str) -> list[str]:
    known = FAMILIES[family]
    names = [f"{family}_{size}_{clip}" for size in known.sizes for clip in known.inputs]
    return names + [f"mae_{name}" for name in names]


def _parts(name: str) -> tuple[str, str, str]:
    """`mae_hiera_base_plus_16x224` -> (hiera, base_plus, 16x224). Raises ValueError."""
    for family in FAMILIES:
        if name in _names(family):
            rest = name.removeprefix("mae_").removeprefix(f"{family}_")
            size, _, clip = rest.rpartition("_")
            return family, size, clip
    raise ValueError(f"there is no model {name!r}{_nearest(name, list_all_models())}")


def _defaults(name: str) -> dict[str, Any]:
    family = family_of(name)
    kind = family.autoencoder_args if name.startswith("mae_") else family.classifier_args
    return {field.name: field.default for field in dataclasses.fields(kind)}


def _check_hiera(name: str) -> None:
    if name not in list_models():
        known = ", ".join([*list_models(), *PYTORCHVIDEO_MODELS])
        raise ValueError(f"there is no model {name!r}; there are {known}")


def _check_names(model: str, arguments: dict[str, Any], known: list[str]) -> None:
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        near = _nearest(unknown[0], known)
        raise ValueError(f"{model} takes no argument {unknown[0]!r}{near}")


def _nearest(name: str, known: list[str]) -> str:
    """For a message: what looks meant, or else all that there is."""
    near = difflib.get_close_matches(name, known, n=3)
    return f"; the nearest: {', '.join(near)}" if near else f"; there are {', '.join(known)}"

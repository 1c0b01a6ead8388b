"""Weights in the folders of others: `config.json` beside `model.safetensors`.

The official package writes one (PyTorchModelHubMixin: its constructor's arguments, its names), and
transformers does (HieraModel, HieraForImageClassification, HieraForPreTraining: images; VideoMAE;
names of its own). Read by weights.py; `hub_folder` also gets one from the hub.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hiera_video.models.arguments import HieraArgs, MAEArgs
from hiera_video.models.blocks import NORM_EPS
from hiera_video.models.published import pixel_statistics
from hiera_video.models.zoo import SIZES, VIT_SIZES

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
HUB = "hf://"
MODEL_TYPE = "hiera_video"  # of what export/huggingface.py writes
# transformers' names -> official ones; `stages.S.layers.L` counts blocks stage by stage.
RENAMED = {
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "embeddings.position_embeddings": "pos_embed",
    "pooler.layernorm.": "norm.",
    "classifier.": "head.projection.",
    "multiscale_fusion.": "",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_embeddings.": "decoder_embed.",
    "decoder.decoder_position_embeddings": "decoder_pos_embed",
    "decoder.decoder_block.layers.": "decoder_blocks.",
    "decoder.decoder_norm.": "decoder_norm.",
    "decoder.decoder_pred.": "decoder_pred.",
}
IN_BLOCK = {".layernorm_before.": ".norm1.", ".layernorm_after.": ".norm2."}
BLOCK = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.")
# transformers' config -> our arguments, where the names differ.
ARGUMENTS = {
    "image_size": "input_size",
    "num_channels": "in_chans",
    "depths": "stages",
    "num_query_pool": "q_pool",
    "query_stride": "q_stride",
    "masked_unit_size": "mask_unit_size",
    "masked_unit_attention": "mask_unit_attn",
    "embed_dim_multiplier": "dim_mul",
    "patch_size": "patch_kernel",
    "decoder_hidden_size": "decoder_embed_dim",
}


def hub_folder(name: str | Path) -> Path | None:
    """The folder of a model on the hub, `hf://facebook/hiera_base_16x224`; fetched once.

    None for another form of `name`. Raises ValueError.
    """
    text = str(name)
    if not text.startswith(HUB):
        return None
    try:
        from huggingface_hub import snapshot_download
    except ImportError as e:
        raise ValueError(f"{text} needs huggingface_hub: pip install 'hiera_video[hf]'") from e
    wanted: dict[str, Any] = {"allow_patterns": [CONFIG, WEIGHTS]}
    repository = text.removeprefix(HUB)
    try:
        try:  # what is here is used as it is, and nobody is asked
            return Path(snapshot_download(repository, local_files_only=True, **wanted))
        except FileNotFoundError:
            return Path(snapshot_download(repository, **wanted))
    except Exception as e:  # of names, of the network, of the hub: they have no common base
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{text} cannot be had: {reason}") from e


def described(folder: Path) -> tuple[dict[str, Any], bool]:
    """(metadata as of a weight file of ours, whether names are transformers'); ({}, False) if none.

    Raises ValueError for a Hiera that is not ours to compute.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return {}, False
    if not isinstance(config, dict):
        return {}, False
    try:
        if config.get("model_type") == "hiera":
            return _of_transformers(config), True
        if config.get("model_type") == "videomae":
            return _of_videomae(config), False
        if config.get("model_type") == MODEL_TYPE:
            return _of_our_export(config), False
        if "input_size" in config and "model_type" not in config:
            return _of_official(config), False
    except (KeyError, TypeError, IndexError, AttributeError) as e:
        raise ValueError(f"{folder / CONFIG} lacks something, or it is odd: {e}") from e
    except ValueError as e:
        raise ValueError(f"{folder / CONFIG}: {e}") from e
    return {}, False


def official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under transformers' names -> under official ones."""
    names = [name.removeprefix("hiera.") for name in state]
    places = sorted({(int(m[1]), int(m[2])) for name in names if (m := BLOCK.match(name))})
    number = {place: k for k, place in enumerate(places)}
    renamed = {}
    for name, tensor in zip(names, state.values()):
        for theirs, ours in RENAMED.items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        name = BLOCK.sub(lambda m: f"blocks.{number[int(m[1]), int(m[2])]}.", name)
        for theirs, ours in IN_BLOCK.items():
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    return renamed


def _of_official(config: Mapping[str, Any]) -> dict[str, Any]:
    # The constructor's own default, which the named autoencoders override.
    model = _model({"q_pool": 3, **config}, is_mae="decoder_embed_dim" in config)
    size = model["arguments"]["input_size"]
    clips = {"num_frames": size[0], "crop_size": size[1]} if len(size) == 3 else {}
    return {"model": model, "classes": [], "clips": clips}


def _of_our_export(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of export/huggingface.py, also after transformers has saved it again."""
    names = config["id2label"]
    clips = dict(config["clip_format"])
    clips["clip_sampler"] = "segments" if clips.pop("segments") else "random"
    return {
        "model": {
            "name": config["model_name"],
            "arguments": {**config["arguments"], "num_classes": len(names)},
        },
        "classes": [names[str(k)] for k in range(len(names))],
        "mean": clips.pop("mean"),
        "std": clips.pop("std"),
        "clips": clips,
    }


def _of_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError for what this package computes otherwise."""
    is_mae = "HieraForPreTraining" in config.get("architectures", [])
    heads = list(config["num_heads"])
    head_mul = heads[1] / heads[0] if len(heads) > 1 else 2.0
    wanted = {
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "num_heads": [heads[0] * head_mul**k for k in range(len(heads))],
        **({"normalize_pixel_loss": True} if is_mae else {}),
    }
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ValueError(_not_ours(key, config[key], value))
    names = config.get("id2label", {})
    classes = [names[str(k)] for k in range(len(names))]
    arguments = {ARGUMENTS.get(key, key): value for key, value in config.items()}
    arguments |= {"num_heads": heads[0], "head_mul": head_mul}
    model = _model(arguments, is_mae=is_mae)
    if not is_mae:
        del model["arguments"]["num_classes"]  # the head tells
    known = [] if is_mae or "LABEL_0" in classes else classes
    return {"model": model, "classes": known}


def _not_ours(key: str, value: Any, ours: Any) -> str:
    return f"a model with {key}={value} is not computed here, only one with {key}={ours}"


def _of_videomae(config: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError for what this package computes otherwise. Names: layouts.py."""
    is_mae = "VideoMAEForPreTraining" in config.get("architectures", [])
    width = config["hidden_size"]
    ratio = config["intermediate_size"] / width
    wanted: dict[str, Any] = {"hidden_act": "gelu", "use_mean_pooling": not is_mae}
    if is_mae:
        wanted |= {
            "norm_pix_loss": True,
            "decoder_intermediate_size": ratio * config["decoder_hidden_size"],
        }
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ValueError(_not_ours(key, config[key], value))
    side, frames = config["image_size"], config["num_frames"]
    patch = (config["tubelet_size"], config["patch_size"], config["patch_size"])
    arguments = {
        "input_size": (frames, side, side),
        "embed_dim": width,
        "num_heads": config["num_attention_heads"],
        "stages": (config["num_hidden_layers"],),
        "mlp_ratio": ratio,
        "patch_kernel": patch,
        "patch_stride": patch,
    }
    if is_mae:
        arguments |= {
            "decoder_embed_dim": config["decoder_hidden_size"],
            "decoder_depth": config["decoder_num_hidden_layers"],
            "decoder_num_heads": config["decoder_num_attention_heads"],
            "target": "pixel_videomae",
        }
    sizes = [size for size, known in VIT_SIZES.items() if known["embed_dim"] == width]
    name = f"{'mae_' if is_mae else ''}vit_{(sizes or ['base'])[0]}_16x224"
    names = config.get("id2label", {})
    classes = [names[str(k)] for k in range(len(names))]
    model = {"name": name, "arguments": arguments}
    return {
        "model": model,
        "classes": [] if is_mae or "LABEL_0" in classes else classes,
        **pixel_statistics({**arguments, "sincos_pos_embed": True}),
        "clips": {"num_frames": frames, "crop_size": side},
    }


def _model(arguments: Mapping[str, Any], *, is_mae: bool) -> dict[str, Any]:
    """The model of our zoo that comes nearest, and all arguments that make it theirs."""
    family = MAEArgs if is_mae else HieraArgs
    own: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(family)}
    own |= {key: value for key, value in arguments.items() if key in own and value is not None}
    sizes = [
        size
        for size, known in SIZES.items()
        if known["embed_dim"] == own["embed_dim"] and list(known["stages"]) == list(own["stages"])
    ]
    clip = "16x224" if len(own["input_size"]) == 3 else "224"
    name = f"{'mae_' if is_mae else ''}hiera_{(sizes or ['base'])[0]}_{clip}"
    return {"name": name, "arguments": own}

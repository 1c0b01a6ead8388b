"""What tensors do not tell: arguments of a model that have none, and change what it computes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from hiera_video.models.arguments import DecoderArgs
from hiera_video.models.mvit_arguments import MVITV2, MViTTrunkArgs
from hiera_video.models.trunk import Trunk
from hiera_video.models.zoo import encoder_arguments, family_of, model_arguments

UNTOLD = {
    "num_heads",
    "head_mul",
    "q_stride",
    "mask_unit_size",
    "mask_unit_attn",
    "head_pool",
    "kv_stride",
    *MVITV2,
}


def computed_otherwise(
    model: nn.Module, described: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Argument -> its value where the weights were trained, and the model's, which is another one.

    described: what metadata of the weights says of their model. Where that is not enough, or of
    another family, nothing is known. Of a masked autoencoder in a classifier, its encoder counts.
    """
    name = described.get("name")
    if name is None or "arguments" not in described or not isinstance(model, Trunk):
        return {}
    args: Any = model.args
    is_mae = isinstance(args, DecoderArgs)
    from_mae = name.startswith("mae_") and not is_mae
    try:
        arguments = described["arguments"]
        if from_mae:
            arguments = encoder_arguments(name, arguments)
            name = name.removeprefix("mae_")
        family = family_of(name)
        kind: Any = family.autoencoder_args if is_mae else family.classifier_args
        trained = kind(**model_arguments(name, **arguments))
    except (TypeError, ValueError):  # of another version
        return {}
    if type(args) is not kind:
        return {}
    asked = {field.name for field in dataclasses.fields(kind)} & UNTOLD
    if from_mae:
        asked.remove("head_pool")
    if isinstance(args, MViTTrunkArgs):
        asked.remove("mask_unit_attn" if args.kv_pool else "kv_stride")  # not in use
    pairs = {key: (getattr(trained, key), getattr(args, key)) for key in sorted(asked)}
    found = {key: pair for key, pair in pairs.items() if not _is_same(*pair)}
    switched = found.keys() & MVITV2
    if switched and trained.step != args.step:
        rest = {key: pair for key, pair in found.items() if key not in switched}
        return {"step": (trained.step, args.step), **rest}
    return found


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) != len(b):
        return a[-2:] == b[-2:]  # of images, in a model of video
    return bool(a == b)

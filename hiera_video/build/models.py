"""From config to models, tasks and their weights."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hiera_video.config import Config
from hiera_video.data.lists import VideoList
from hiera_video.models.baselines import PYTORCHVIDEO_MODELS
from hiera_video.models.hiera import Trunk
from hiera_video.models.mae import DECODER_STAGE
from hiera_video.models.weights import LoadReport, load_weights, read_weights, weights_file
from hiera_video.models.zoo import create_model
from hiera_video.system.errors import UserError
from hiera_video.system.files import exists, join, local
from hiera_video.training.tasks import Classify, MaskedAutoencode


@dataclass(frozen=True)
class Classes:
    """What a classifier tells apart. Names of another number than the classes are left out."""

    names: list[str]
    count: int | None  # None where there are no classes: pretraining


@dataclass(frozen=True)
class ModelSpec:
    """A model that is not built yet."""

    name: str
    arguments: dict[str, Any]


def class_names(config: Config, videos: VideoList | None) -> list[str]:
    """Of data.classes, or of the class folders; empty if nothing names them."""
    if config.data.classes is None:
        return list(videos.classes) if videos is not None else []
    for name in (join(config.data.root or "", config.data.classes), config.data.classes):
        try:
            if exists(name):
                return Path(local(name)).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"data.classes: {name}: {e}") from e
    raise UserError(
        f"data.classes: there is no file {config.data.classes}, here or under data.root"
    )


def build_classes(config: Config, videos: VideoList) -> Classes:
    """Of the model that the config means. Raises UserError."""
    if config.task == "pretrain":
        return Classes([], None)
    names = class_names(config, videos)
    count = number_of_classes(config, names)
    return Classes(names if len(names) == count else [], count)


def number_of_classes(config: Config, names: list[str]) -> int:
    if config.model.num_classes is not None:
        return config.model.num_classes
    if not names:
        raise UserError(
            "model.num_classes: set it, or data.classes to a file with one class name a line"
        )
    return len(names)


def model_spec(config: Config, num_classes: int | None) -> ModelSpec:
    """The model that the config means. Raises UserError."""
    arguments = {k: v for k, v in dataclasses.asdict(config.model).items() if v is not None}
    name = arguments.pop("name")
    is_baseline = name in PYTORCHVIDEO_MODELS
    if config.task == "pretrain":
        if is_baseline:
            raise UserError(f"model.name={name}: task=pretrain needs a Hiera")
        name = name if name.startswith("mae_") else f"mae_{name}"
    elif name.startswith("mae_"):
        raise UserError(
            f"model.name={name}: a masked autoencoder is for task=pretrain; "
            f"use {name.removeprefix('mae_')}"
        )
    if name.endswith("_224") and not name.endswith("x224"):
        video = f"{name.removesuffix('224')}16x224"
        raise UserError(f"model.name={name} takes images; use {video} for video")
    clip = [config.data.num_frames, config.data.crop_size, config.data.crop_size]
    if arguments.setdefault("input_size", clip) != clip:
        raise UserError(
            f"model.input_size={arguments['input_size']} differs from the clips, {clip} "
            "(data.num_frames x data.crop_size x data.crop_size)"
        )
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    for key, value in arguments.items():
        if isinstance(value, list):
            arguments[key] = tuple(value)
    return ModelSpec(name, arguments)


def build_model(spec: ModelSpec, *, seed: int) -> nn.Module:
    """With random weights of the seed. Raises UserError."""
    torch.manual_seed(seed)
    try:
        return create_model(spec.name, **spec.arguments)
    except ValueError as e:
        raise UserError(f"model: {e}") from e


def build_encoder(config: Config) -> nn.Module:
    """The classifier whose encoder is the masked autoencoder's; its head is of no use."""
    spec = model_spec(config, 1)
    kept = {k: v for k, v in spec.arguments.items() if not k.startswith("decoder_")}
    return build_model(ModelSpec(spec.name.removeprefix("mae_"), kept), seed=config.seed)


def build_metadata(config: Config, spec: ModelSpec, names: list[str]) -> dict[str, Any]:
    """What a weight file says of itself: enough to build the model and to prepare its clips."""
    data = config.data
    return {
        "model": {"name": spec.name, "arguments": spec.arguments},
        "classes": names,
        "mean": data.mean,
        "std": data.std,
        "clips": {
            "num_frames": data.num_frames,
            "sampling_rate": data.sampling_rate,
            "target_fps": data.target_fps,
            "crop_size": data.crop_size,
            "clip_sampler": data.clip_sampler,
            "short_side": config.test.short_side or data.crop_size,
        },
    }


def build_task(config: Config, model: Any, num_classes: int | None) -> nn.Module:
    mean = config.data.mean
    std = config.data.std
    if config.task == "pretrain":
        try:
            return MaskedAutoencode(model, config.mae, mean=mean, std=std)
        except ValueError as e:
            raise UserError(f"mae.{e}") from e
    assert num_classes is not None  # task=classify has classes
    return Classify(model, config.classify, num_classes=num_classes, mean=mean, std=std)


def choose_execution(config: Config, model: nn.Module) -> None:
    """train.recompute_stages and train.compile: neither changes parameters or their names."""
    stages = config.train.recompute_stages
    if stages:
        if not isinstance(model, Trunk):
            raise UserError(f"train.recompute_stages={list(stages)}: only a Hiera has stages")
        last = DECODER_STAGE if config.task == "pretrain" else len(model.stage_ends)
        if not set(stages) <= set(range(1, last + 1)):
            raise UserError(f"train.recompute_stages={list(stages)} must be among 1 to {last}")
        model.recompute_stages = tuple(stages)
    if config.train.compile:
        model.compile()


def sharded_units(model: nn.Module) -> list[nn.Module]:
    """What is put together at a time where ranks hold shards: the blocks, if there are any."""
    return [block for name in ("blocks", "decoder_blocks") for block in getattr(model, name, [])]


# -- weights


def weights_to_use(config: Config) -> Path:
    """Weights for test and features: test.weights, or the run's last. Raises UserError."""
    try:
        return weights_file(config.test.weights or config.output)
    except ValueError as e:
        raise UserError(f"test.weights: {e}; train first, or set test.weights") from e


def load_for_use(
    model: nn.Module, weights: str | Path, *, key: str, from_mae: bool = False
) -> LoadReport:
    """Loads weights that must fit. from_mae: a masked autoencoder's encoder will do.

    key: what named the weights, for the message. Raises UserError.
    """
    try:
        is_mae = from_mae and "decoder_pos_embed" in read_weights(weights)[0]
        return load_weights(model, weights, strict=not is_mae)
    except ValueError as e:
        raise UserError(f"{key}: {e}") from e

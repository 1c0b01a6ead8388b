"""From config to objects: models, tasks, loaders. Everything below takes plain arguments."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hiera_video.config import Config
from hiera_video.data.dataset import Batch, ClipDataset
from hiera_video.data.decode.frame_cache import FrameCache
from hiera_video.data.decode.packets import local_manifest
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.format import SEGMENTS, ClipFormat
from hiera_video.data.lists import VideoList
from hiera_video.data.loading import (
    ChunkStream,
    Prefetch,
    make_chunk_loader,
    make_loader,
    test_batches,
)
from hiera_video.data.sampling import (
    ClipSampler,
    ClipShape,
    ConsecutiveWindows,
    PyTorchVideoClips,
)
from hiera_video.evaluation.loop import Forward
from hiera_video.models.baselines import PYTORCHVIDEO_MODELS
from hiera_video.models.token_dial import TokenDial, has_dial
from hiera_video.models.weights import (
    LoadReport,
    is_autoencoder,
    load_weights,
    read_weights,
)
from hiera_video.models.zoo import create_model, encoder_arguments, family_of
from hiera_video.system.distributed import World
from hiera_video.system.errors import UserError
from hiera_video.system.remote import RemoteFiles

PYTORCHVIDEO = "pytorchvideo."


@dataclass(frozen=True)
class ModelSpec:
    """A model that is not built yet."""

    name: str
    arguments: dict[str, Any]


def model_spec(config: Config, num_classes: int | None) -> ModelSpec:
    """The model that the config means. Raises UserError."""
    arguments = {k: v for k, v in dataclasses.asdict(config.model).items() if v is not None}
    name = arguments.pop("name")
    is_baseline = name in PYTORCHVIDEO_MODELS
    if arguments.get("in_chans", 3) != 3:
        raise UserError(f"model.in_chans={arguments['in_chans']}: videos are decoded to 3 channels")
    if not is_baseline:
        try:
            family_of(name)
        except ValueError as e:
            raise UserError(f"model.name: {e}") from e
    if config.task == "pretrain":
        if is_baseline:
            raise UserError(
                f"model.name={name}: task=pretrain needs a Hiera, an MViTv2 or a plain ViT"
            )
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
    kept = encoder_arguments(spec.name, spec.arguments)
    return build_model(ModelSpec(spec.name.removeprefix("mae_"), kept), seed=config.seed)


def build_metadata(config: Config, spec: ModelSpec, names: list[str]) -> dict[str, Any]:
    """What a weight file says of itself: enough to build the model and to prepare its clips."""
    data = config.data
    return {
        "model": {"name": spec.name, "arguments": spec.arguments},
        "classes": names,
        "mean": data.mean,
        "std": data.std,
        **({"multilabel": True} if is_multilabel(config) else {}),
        "clips": {
            "num_frames": data.num_frames,
            "sampling_rate": data.sampling_rate,
            "target_fps": data.target_fps,
            "crop_size": data.crop_size,
            "clip_sampler": data.clip_sampler,
            **({"squash": True} if data.squash else {}),
            **({"levels": data.levels} if data.levels else {}),
            "short_side": config.test.short_side or data.crop_size,
        },
    }


def load_for_use(
    model: nn.Module, weights: str | Path, *, key: str, from_mae: bool = False
) -> LoadReport:
    """Loads weights that must fit. from_mae: a masked autoencoder's encoder will do.

    key: what named the weights, for the message. Raises UserError.
    """
    try:
        is_mae = from_mae and is_autoencoder(read_weights(weights)[0])
        return load_weights(model, weights, strict=not is_mae)
    except ValueError as e:
        raise UserError(f"{key}: {e}") from e


def is_multilabel(config: Config) -> bool:
    return config.task == "classify" and config.classify.multilabel


# -- clips


def clip_shape(config: Config) -> ClipShape:
    data = config.data
    return ClipShape(data.num_frames, data.sampling_rate, data.target_fps)


def clip_format(config: Config) -> ClipFormat:
    """Of testing."""
    data = config.data
    return ClipFormat(
        clip_shape(config),
        crop_size=data.crop_size,
        short_side=config.test.short_side or data.crop_size,
        squash=data.squash,
        levels=data.levels,
        segments=data.clip_sampler == SEGMENTS,
        mean=data.mean,
        std=data.std,
    )


def video_source(config: Config, *, quarantine: bool = True) -> VideoSource:
    """quarantine: whether videos that failed before are left alone."""
    data = config.data
    held = data.quarantine or Path(config.output) / "quarantine.csv"
    cache = None
    if data.frame_cache is not None:
        cache = FrameCache(data.frame_cache, limit_gib=data.frame_cache_gib)
    return VideoSource(
        data.decoder,
        timeout_s=data.decode_timeout_s,
        quarantine=held if quarantine else None,
        manifest=data.manifest or local_manifest(),
        cache=cache,
        remote=RemoteFiles(data.remote_cache, limit_gib=data.remote_cache_gib),
        path_handlers=data.path_handlers,
    )


def check_dial(config: Config) -> None:
    """Raises UserError where a share of the mask units is asked of a model that has none."""
    shares = {
        "classify.keep_units": [config.classify.keep_units],
        "test.keep_units": [config.test.keep_units],
        "test.keep_units_too": config.test.keep_units_too,
    }
    for key, asked in shares.items():
        name = config.model.name
        if not has_dial(name) and min(asked, default=1) < 1:
            raise UserError(f"{key}: only a Hiera or a ViT leaves units out, not model.name={name}")


def token_dial(config: Config) -> TokenDial:
    """Of validation, testing and features."""
    return TokenDial(config.test.keep_units, config.test.keep_units_by)


def forward(config: Config, world: World, *, compile: bool | None = None) -> Forward:
    """compile: in place of test.compile."""
    return Forward(
        world.device,
        config.data.mean,
        config.data.std,
        precision=config.test.precision,
        views_per_forward=config.test.views_per_forward,
        compile=config.test.compile if compile is None else compile,
    )


def test_loader(
    config: Config,
    videos: VideoList,
    rows: list[int],
    *,
    sample: ClipSampler,
    crops: int,
    world: World,
    quarantine: bool = True,
) -> Iterable[Batch]:
    """The views of those rows of the list that are this rank's.

    quarantine: whether videos that failed before are left alone.
    """
    dataset = _eval_set(config, videos, sample, crops=crops, quarantine=quarantine)
    size = config.test.batch_size
    batches = test_batches(rows, batch_size=size, rank=world.rank, world=world.size)
    ready = prefetch(config, size, (config.test.clips or 1) * crops, cut=False)
    return make_loader(dataset, batches, ahead=ready.ahead, **loading(config, world))


def features_loader(
    config: Config, videos: VideoList, rows: list[int], first: Callable[[int], int], *, world: World
) -> Iterable[Batch]:
    """Windows (or some clips) of this rank's share of `rows`, in chunks.

    Without the `first(row)` first ones.
    """
    format = clip_format(config)
    options = config.features
    sample: ClipSampler = format.windows(options.hop_s)
    if options.clips is not None:
        sample = format.uniform(options.clips)
    elif options.stride_frames is not None:
        sample = ConsecutiveWindows(config.data.num_frames, options.stride_frames)
    # A video that failed in an earlier run may be whole again.
    dataset = _eval_set(config, videos, sample, crops=1, quarantine=False)
    stream = ChunkStream(dataset, rows[world.rank :: world.size], first)
    return make_chunk_loader(stream, **loading(config, world))


def test_sampler(config: Config) -> ClipSampler:
    """Of the stage "test". Raises UserError."""
    test = config.test
    if test.clip_sampler is None:
        return clip_format(config).uniform(test.clips)
    name = test.clip_sampler.removeprefix(PYTORCHVIDEO)
    try:
        return PyTorchVideoClips.make(name, clip_shape(config), *test.clip_sampler_args)
    except ValueError as e:
        raise UserError(f"test.clip_sampler_args={e}") from e


def _eval_set(
    config: Config, videos: VideoList, sample: ClipSampler, *, crops: int, quarantine: bool
) -> ClipDataset:
    return ClipDataset(
        videos,
        sample=sample,
        transform=clip_format(config).crops(crops),
        source=video_source(config, quarantine=quarantine),
        seed=config.seed,
        shuffle_frames=config.data.shuffle_frames,
    )


def prefetch(config: Config, samples: int, views: int, *, cut: bool) -> Prefetch:
    data = config.data
    return Prefetch.make(
        samples,
        views * 3 * data.num_frames * data.crop_size**2,
        num_workers=data.num_workers,
        limit_gib=data.prefetch_gib,
        cut=cut,
    )


def loading(config: Config, world: World) -> dict[str, Any]:
    is_cuda = world.device.type == "cuda"
    return {"num_workers": config.data.num_workers, "pin_memory": is_cuda}

"""The only place where config meets objects. Everything below this file takes plain arguments."""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hiera_video.config import Config
from hiera_video.data.annotations import VideoList, check_labels, read_videos
from hiera_video.data.dataset import (
    Batch,
    ChunkStream,
    ClipDataset,
    TrainingOrder,
    make_chunk_loader,
    make_loader,
    test_batches,
)
from hiera_video.data.sampling import (
    ClipSampler,
    pytorchvideo_clips,
    random_clip,
    segment_clips,
    sliding_windows,
    uniform_clips,
)
from hiera_video.data.transforms import EvalCrops, TrainCrop
from hiera_video.distributed import World
from hiera_video.errors import UserError
from hiera_video.files import exists, join, local, register_handlers
from hiera_video.models.hiera import Trunk
from hiera_video.models.mae import DECODER_STAGE
from hiera_video.models.pytorchvideo_models import PYTORCHVIDEO_MODELS
from hiera_video.models.weights import LoadReport, load_weights, read_weights
from hiera_video.models.zoo import create_model
from hiera_video.tasks import Classify, MaskedAutoencode

PROBED = 20  # rows looked up before a run starts, to tell a wrong data.root from a few missing files


# -- lists


def build_videos(config: Config, key: str) -> VideoList:
    """The list under `data.train`, `data.val`, `data.test` or `features.videos`. Raises UserError."""
    try:
        register_handlers(config.data.path_handlers)
    except ImportError as e:
        raise UserError(f"data.path_handlers: {e}") from e
    source = {
        "data.train": config.data.train,
        "data.val": config.data.val,
        "data.test": config.data.test or config.data.val,
        "features.videos": config.features.videos or config.data.test or config.data.val,
    }[key]
    videos = read_videos(source, root=config.data.root or "", key=key)
    if len(videos) and not any(exists(videos.path(i)) for i in range(min(len(videos), PROBED))):
        raise UserError(
            f"{key}: none of the first videos of {videos.source} exists ({videos.path(0)}); "
            "set data.root to the folder that the list's paths are relative to"
        )
    return videos


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
    raise UserError(f"data.classes: there is no file {config.data.classes}, here or under data.root")


def number_of_classes(config: Config, names: list[str]) -> int:
    if config.model.num_classes is not None:
        return config.model.num_classes
    if not names:
        raise UserError("model.num_classes: set it, or data.classes to a file with one class name a line")
    return len(names)


# -- model and task


def model_arguments(config: Config, num_classes: int | None) -> tuple[str, dict[str, Any]]:
    """Name and constructor arguments of the model that the config means."""
    arguments = {k: v for k, v in dataclasses.asdict(config.model).items() if v is not None}
    name = arguments.pop("name")
    if config.task == "pretrain":
        name = name if name.startswith("mae_") or name in PYTORCHVIDEO_MODELS else f"mae_{name}"
    elif name.startswith("mae_"):
        raise UserError(
            f"model.name={name}: a masked autoencoder is for task=pretrain; use {name.removeprefix('mae_')}"
        )
    if name in PYTORCHVIDEO_MODELS and config.task == "pretrain":
        raise UserError(f"model.name={name}: task=pretrain needs a Hiera")
    if name.endswith("_224") and not name.endswith("x224"):
        raise UserError(f"model.name={name} takes images; use {name.removesuffix('224')}16x224 for video")
    clip = [config.data.num_frames, config.data.crop_size, config.data.crop_size]
    if arguments.setdefault("input_size", clip) != clip:
        raise UserError(
            f"model.input_size={arguments['input_size']} differs from the clips, {clip} "
            "(data.num_frames x data.crop_size x data.crop_size)"
        )
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    return name, {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}


def build_model(name: str, arguments: dict[str, Any], *, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    try:
        return create_model(name, **arguments)
    except ValueError as e:
        raise UserError(f"model: {e}") from e


def build_encoder(config: Config) -> nn.Module:
    """The classifier that shares its encoder with the masked autoencoder of the config; its head is of no use."""
    name, arguments = model_arguments(config, 1)
    kept = {k: v for k, v in arguments.items() if not k.startswith("decoder_")}
    return build_model(name.removeprefix("mae_"), kept, seed=config.seed)


def build_metadata(config: Config, name: str, arguments: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """What a weight file says of itself: enough to build the model and to prepare clips for it."""
    data = config.data
    clips = {k: getattr(data, k) for k in ("num_frames", "sampling_rate", "target_fps", "crop_size", "clip_sampler")}
    return {
        "model": {"name": name, "arguments": arguments},
        "classes": names,
        "mean": data.mean,
        "std": data.std,
        "clips": clips | {"short_side": config.test.short_side or data.crop_size},
    }


def build_task(config: Config, model: nn.Module, num_classes: int | None) -> nn.Module:
    mean, std = config.data.mean, config.data.std
    if config.task == "pretrain":
        try:
            return MaskedAutoencode(model, config.mae, mean=mean, std=std)
        except ValueError as e:
            raise UserError(f"mae.{e}") from e
    return Classify(model, config.classify, num_classes=num_classes, mean=mean, std=std)


def choose_execution(config: Config, model: nn.Module) -> None:
    """train.recompute_stages and train.compile. Neither changes parameters or their names."""
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
    """What is put together at a time where ranks hold shards: the blocks, where the model has any."""
    return [block for name in ("blocks", "decoder_blocks") for block in getattr(model, name, [])]


def load_for_use(model: nn.Module, weights: str | Path, *, key: str, from_mae: bool = False) -> LoadReport:
    """Weights for testing or features: all of them must fit. from_mae: a masked autoencoder's encoder will do."""
    try:
        if from_mae and "decoder_pos_embed" in read_weights(weights)[0]:
            return load_weights(model, weights, strict=False)
        return load_weights(model, weights, strict=True)
    except ValueError as e:
        raise UserError(f"{key}: {e}") from e


# -- clips


def train_batches(
    config: Config, videos: VideoList, *, steps: int, first_step: int, world: World, num_classes: int | None
) -> Iterable[Batch]:
    if config.train.batch_size % world.size:
        raise UserError(f"train.batch_size={config.train.batch_size} does not divide by the {world.size} ranks")
    if num_classes is not None:
        check_labels(videos, num_classes, key="data.train")
    dataset = training_set(config, videos)
    order = TrainingOrder(
        len(videos),
        batch_size=config.train.batch_size,
        steps=steps,
        seed=config.seed,
        first_step=first_step,
        rank=world.rank,
        world=world.size,
    )
    return make_loader(dataset, order, num_workers=config.data.num_workers, pin_memory=world.device.type == "cuda")


def training_set(config: Config, videos: VideoList) -> ClipDataset:
    data = config.data
    flip = (0.0 if data.directional else 0.5) if data.flip is None else data.flip
    transform = TrainCrop(
        size=data.crop_size,
        scale=tuple(data.crop_scale),
        aspect=tuple(data.crop_aspect),
        flip=flip,
        magnitude=data.rand_augment,
        num_ops=data.rand_augment_ops,
        magnitude_std=data.rand_augment_std,
        erase=data.erase,
    )
    return ClipDataset(
        videos,
        sample=_train_sampler(config),
        transform=transform,
        repeats=config.train.repeats,
        **_decoding(config),
        seed=config.seed,
        substitute=True,
    )


def test_loader(
    config: Config, videos: VideoList, rows: list[int], *, sample: ClipSampler, crops: int, world: World
) -> Iterable[Batch]:
    """The views of those rows of the list that are this rank's."""
    dataset = _eval_set(config, videos, sample, crops=crops)
    batches = test_batches(rows, batch_size=config.test.batch_size, rank=world.rank, world=world.size)
    return make_loader(dataset, batches, num_workers=config.data.num_workers, pin_memory=world.device.type == "cuda")


def features_loader(
    config: Config, videos: VideoList, rows: list[int], first: Callable[[int], int], *, world: World
) -> Iterable[Batch]:
    """The windows of those rows that are this rank's, in chunks; `first(row)` windows are left out."""
    dataset = _eval_set(config, videos, window_sampler(config), crops=1)
    stream = ChunkStream(dataset, rows[world.rank :: world.size], first)
    return make_chunk_loader(stream, num_workers=config.data.num_workers, pin_memory=world.device.type == "cuda")


def predict_logits(model: nn.Module, clips: Tensor) -> dict[str, Tensor]:
    return {"logits": model(clips)}


def predict_features(model: nn.Module, stages: tuple[int, ...], pool: bool, clips: Tensor) -> dict[str, Tensor]:
    """The pooled vector and, where asked for, maps of stages 1 to 4 in spatial order, or their means."""
    if not stages:
        return {"features": model.features(clips)}
    pooled, maps = model.features_and_maps(clips)
    return {"features": pooled} | {
        f"stage{s}": maps[s - 1].flatten(1, -2).mean(1) if pool else maps[s - 1] for s in stages
    }


def _decoding(config: Config) -> dict[str, Any]:
    data = config.data
    return {
        "decoder": data.decoder,
        "timeout_s": data.decode_timeout_s,
        "quarantine": data.quarantine or Path(config.output) / "quarantine.csv",
        "manifest": data.manifest or Path(config.output) / "manifest.sqlite",
    }


def _eval_set(config: Config, videos: VideoList, sample: ClipSampler, *, crops: int) -> ClipDataset:
    size = config.data.crop_size
    transform = EvalCrops(short_side=config.test.short_side or size, size=size, num_crops=crops)
    return ClipDataset(videos, sample=sample, transform=transform, **_decoding(config), seed=config.seed)


# Samplers are small picklable objects, since workers may be started afresh.


@dataclasses.dataclass(frozen=True)
class _Frames:
    """A sampler of sampling.py that works in frames of the video, without randomness."""

    function: Any
    num_frames: int
    sampling_rate: int
    target_fps: float

    def __call__(self, count: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        return self.function(count, fps, self.num_frames, self.sampling_rate, target_fps=self.target_fps)


@dataclasses.dataclass(frozen=True)
class _RandomFrames(_Frames):
    def __call__(self, count: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        return self.function(count, fps, self.num_frames, self.sampling_rate, target_fps=self.target_fps, rng=rng)


@dataclasses.dataclass(frozen=True)
class _Segments:
    num_frames: int
    num_clips: int
    training: bool

    def __call__(self, count: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        return segment_clips(count, self.num_frames, self.num_clips, rng=rng if self.training else None)


@dataclasses.dataclass(frozen=True)
class _PyTorchVideo:
    sampler: Any
    num_frames: int

    def __call__(self, count: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        return pytorchvideo_clips(self.sampler, count, fps, self.num_frames, rng=rng)


def _clip_shape(config: Config) -> tuple[int, int, float]:
    return config.data.num_frames, config.data.sampling_rate, config.data.target_fps


def _train_sampler(config: Config) -> ClipSampler:
    name = config.data.clip_sampler
    if name == "segments":
        return _Segments(config.data.num_frames, 1, training=True)
    if name.startswith("pytorchvideo."):
        return _pytorchvideo_sampler(config, name, ())
    return _RandomFrames(random_clip, *_clip_shape(config))


def test_sampler(config: Config) -> ClipSampler:
    """Of the stage "test". Raises UserError."""
    if config.test.clip_sampler is not None:
        return _pytorchvideo_sampler(config, config.test.clip_sampler, config.test.clip_sampler_args)
    return uniform_sampler(config, config.test.clips)


def uniform_sampler(config: Config, clips: int) -> ClipSampler:
    """`clips` clips, evenly over the video."""
    if config.data.clip_sampler == "segments":
        return _Segments(config.data.num_frames, clips, training=False)
    return _Frames(partial(uniform_clips, num_clips=clips), *_clip_shape(config))


def describe_test_clips(config: Config) -> str:
    """What test_sampler chooses, in words."""
    data, test = config.data, config.test
    if test.clip_sampler is not None:
        seconds = data.num_frames * data.sampling_rate / data.target_fps
        arguments = "".join(f", {a:g}" for a in test.clip_sampler_args)
        return f"{data.num_frames} frames evenly over {seconds:g} s, {test.clip_sampler}{arguments}"
    if data.clip_sampler == "segments":
        return f"{data.num_frames} frames, one from each of as many segments of the video"
    return f"{data.num_frames} frames, one every {data.sampling_rate} at {data.target_fps:g} frames/s"


def window_sampler(config: Config) -> ClipSampler:
    """Windows over the whole video."""
    return _Frames(partial(sliding_windows, hop_s=config.features.hop_s), *_clip_shape(config))


def _pytorchvideo_sampler(config: Config, name: str, arguments: tuple[float, ...]) -> ClipSampler:
    from pytorchvideo.data import make_clip_sampler  # here, because importing it takes seconds

    num_frames, sampling_rate, target_fps = _clip_shape(config)
    arguments = tuple(int(a) if a == int(a) else a for a in arguments)
    try:
        sampler = make_clip_sampler(
            name.removeprefix("pytorchvideo."), num_frames * sampling_rate / target_fps, *arguments
        )
    except (TypeError, AssertionError) as e:
        raise UserError(f"test.clip_sampler_args={list(arguments)} does not fit {name}: {e}") from e
    return _PyTorchVideo(sampler, num_frames)

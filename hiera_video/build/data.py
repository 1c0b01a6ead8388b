"""From config to lists of videos, to how clips are made of them, and to loaders."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hiera_video.config import Config
from hiera_video.data.dataset import Batch, ClipDataset
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.format import SEGMENTS, ClipFormat
from hiera_video.data.lists import VideoList, read_videos
from hiera_video.data.loading import (
    ChunkStream,
    TrainingOrder,
    make_chunk_loader,
    make_loader,
    test_batches,
)
from hiera_video.data.sampling import (
    ClipSampler,
    ClipShape,
    PyTorchVideoClips,
    RandomClip,
    RandomSegments,
)
from hiera_video.data.transforms import TrainCrop
from hiera_video.evaluation.loop import Forward
from hiera_video.system.distributed import World
from hiera_video.system.errors import UserError
from hiera_video.system.files import exists, register_handlers

# Rows looked up before a run starts, to tell a wrong data.root from a few missing files.
LOOKED_UP = 20
PYTORCHVIDEO = "pytorchvideo."


def build_videos(config: Config, key: str) -> VideoList:
    """The list under `data.train`, `data.val`, `data.test` or `features.videos`.

    Raises UserError.
    """
    try:
        register_handlers(config.data.path_handlers)
    except ImportError as e:
        raise UserError(f"data.path_handlers: {e}") from e
    data = config.data
    source = {
        "data.train": data.train,
        "data.val": data.val,
        "data.test": data.test or data.val,
        "features.videos": config.features.videos or data.test or data.val,
    }[key]
    videos = read_videos(source, root=data.root or "", key=key)
    first = range(min(len(videos), LOOKED_UP))
    if first and not any(exists(videos.path(i)) for i in first):
        raise UserError(
            f"{key}: none of the first videos of {videos.source} exists ({videos.path(0)}); "
            "set data.root to the folder that the list's paths are relative to"
        )
    return videos


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
        segments=data.clip_sampler == SEGMENTS,
        mean=data.mean,
        std=data.std,
    )


def video_source(config: Config) -> VideoSource:
    data = config.data
    return VideoSource(
        data.decoder,
        timeout_s=data.decode_timeout_s,
        quarantine=data.quarantine or Path(config.output) / "quarantine.csv",
        manifest=data.manifest or Path(config.output) / "manifest.sqlite",
    )


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


def train_batches(
    config: Config, videos: VideoList, *, steps: int, first_step: int, world: World
) -> Iterable[Batch]:
    """This rank's batches of the steps after the first `first_step` ones. Raises UserError."""
    batch_size = config.train.batch_size
    if batch_size % world.size:
        raise UserError(f"train.batch_size={batch_size} does not divide by the {world.size} ranks")
    order = TrainingOrder(
        len(videos),
        batch_size=batch_size,
        steps=steps,
        seed=config.seed,
        first_step=first_step,
        rank=world.rank,
        world=world.size,
    )
    return make_loader(training_set(config, videos), order, **_loading(config, world))


def training_set(config: Config, videos: VideoList) -> ClipDataset:
    data = config.data
    flip = data.flip
    if flip is None:
        flip = 0.0 if data.directional else 0.5
    transform = TrainCrop(
        size=data.crop_size,
        scale=data.crop_scale,
        aspect=data.crop_aspect,
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
        source=video_source(config),
        repeats=config.train.repeats,
        seed=config.seed,
        substitute=True,
    )


def test_loader(
    config: Config,
    videos: VideoList,
    rows: list[int],
    *,
    sample: ClipSampler,
    crops: int,
    world: World,
) -> Iterable[Batch]:
    """The views of those rows of the list that are this rank's."""
    dataset = _eval_set(config, videos, sample, crops=crops)
    size = config.test.batch_size
    batches = test_batches(rows, batch_size=size, rank=world.rank, world=world.size)
    return make_loader(dataset, batches, **_loading(config, world))


def features_loader(
    config: Config, videos: VideoList, rows: list[int], first: Callable[[int], int], *, world: World
) -> Iterable[Batch]:
    """Windows of this rank's share of `rows`, in chunks, without the `first(row)` first ones."""
    windows = clip_format(config).windows(config.features.hop_s)
    dataset = _eval_set(config, videos, windows, crops=1)
    stream = ChunkStream(dataset, rows[world.rank :: world.size], first)
    return make_chunk_loader(stream, **_loading(config, world))


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


def _train_sampler(config: Config) -> ClipSampler:
    name = config.data.clip_sampler
    shape = clip_shape(config)
    if name == SEGMENTS:
        return RandomSegments(shape.num_frames)
    if name.startswith(PYTORCHVIDEO):
        return PyTorchVideoClips.make(name.removeprefix(PYTORCHVIDEO), shape)
    return RandomClip(shape)


def _eval_set(config: Config, videos: VideoList, sample: ClipSampler, *, crops: int) -> ClipDataset:
    return ClipDataset(
        videos,
        sample=sample,
        transform=clip_format(config).crops(crops),
        source=video_source(config),
        seed=config.seed,
    )


def _loading(config: Config, world: World) -> dict[str, Any]:
    is_cuda = world.device.type == "cuda"
    return {"num_workers": config.data.num_workers, "pin_memory": is_cuda}

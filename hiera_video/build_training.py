"""From config to what training alone needs: the task, the batches of every step.

build.py makes what every stage needs.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from hiera_video.build import (
    ModelSpec,
    build_model,
    check_dial,
    clip_shape,
    loading,
    model_spec,
    prefetch,
    video_source,
)
from hiera_video.config import Config
from hiera_video.data.dataset import Batch, ClipDataset
from hiera_video.data.format import SEGMENTS
from hiera_video.data.lists import VideoList
from hiera_video.data.loading import (
    Balanced,
    Order,
    Parts,
    Prefetch,
    Shuffled,
    StepBatches,
    TrainingOrder,
    make_loader,
)
from hiera_video.data.sampling import (
    ClipSampler,
    PyTorchVideoClips,
    RandomClip,
    RandomSegments,
)
from hiera_video.data.transforms import TrainCrop
from hiera_video.models.lora import Lora
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.models.trunk import Trunk
from hiera_video.system.distributed import World
from hiera_video.system.errors import UserError
from hiera_video.training.losses import class_weights
from hiera_video.training.tasks import Classify, MaskedAutoencode

PYTORCHVIDEO = "pytorchvideo."


@dataclass(frozen=True)
class Training:
    """A model with random weights, and the task that it is trained for."""

    spec: ModelSpec
    model: nn.Module
    task: nn.Module


def make_training(
    config: Config, num_classes: int | None, videos: VideoList | None = None
) -> Training:
    """videos: what is trained on, whose classes are counted. Raises UserError."""
    check_dial(config)
    spec = model_spec(config, num_classes)
    model = build_model(spec, seed=config.seed)
    # None of what follows changes parameters or their names.
    if isinstance(model, Trunk):
        try:
            model.recompute(config.train.recompute_stages)
        except ValueError as e:
            raise UserError(f"train.recompute_{e}") from e
        try:
            model.freeze(config.train.freeze_stages)
        except ValueError as e:
            raise UserError(f"train.freeze_{e}") from e
    else:
        for key in ("recompute_stages", "freeze_stages", "lora_rank"):
            if getattr(config.train, key):
                raise UserError(f"train.{key}: only a Hiera has stages and blocks")
    if config.train.compile:
        model.compile()
    mean = config.data.mean
    std = config.data.std
    if config.task == "pretrain":
        assert isinstance(model, MaskedAutoencoder)  # by its spec
        try:
            task: nn.Module = MaskedAutoencode(model, config.mae, mean=mean, std=std)
        except ValueError as e:
            raise UserError(f"mae.{e}") from e
    else:
        assert num_classes is not None  # task=classify has classes
        weights = None
        if videos is not None and config.classify.class_weights != "none":
            weights = class_weights(videos.examples(num_classes), config.classify)
        task = Classify(
            model,
            config.classify,
            num_classes=num_classes,
            mean=mean,
            std=std,
            class_weights=weights,
        )
    return Training(spec, model, task)


def train_batches(
    config: Config, videos: VideoList, *, steps: int, first_step: int, world: World
) -> Iterable[Batch]:
    """This rank's batches of the steps after the first `first_step` ones. Raises UserError."""
    batch_size = config.train.batch_size
    if batch_size % world.size:
        raise UserError(f"train.batch_size={batch_size} does not divide by the {world.size} ranks")
    order = TrainingOrder(
        train_order(config, videos),
        batch_size=batch_size,
        steps=steps,
        first_step=first_step,
        rank=world.rank,
        world=world.size,
    )
    prefetch = training_prefetch(config, world.size)
    parts = Parts(order, prefetch.part)
    loader = make_loader(
        training_set(config, videos), parts, ahead=prefetch.ahead, **loading(config, world)
    )
    return StepBatches(loader, parts, world.device)


def train_order(config: Config, videos: VideoList) -> Order:
    """Raises UserError."""
    if config.train.sampler == "shuffle":
        return Shuffled(len(videos), seed=config.seed)
    rows = videos.rows_by_class()
    if config.task == "pretrain" or not rows:
        raise UserError("train.sampler=balanced: the training videos have no labels")
    return Balanced(rows, seed=config.seed)


def training_prefetch(config: Config, ranks: int) -> Prefetch:
    return prefetch(config, config.train.batch_size // ranks, config.train.repeats, cut=True)


def training_set(config: Config, videos: VideoList) -> ClipDataset:
    data = config.data
    flip = data.flip
    if flip is None:
        flip = 0.0 if data.directional else 0.5
    transform = TrainCrop(
        size=data.crop_size,
        scale=data.crop_scale,
        aspect=data.crop_aspect,
        squash=data.squash,
        levels=data.levels,
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
        same_frames=config.train.same_frames,
        seed=config.seed,
        substitute=True,
        shuffle_frames=data.shuffle_frames,
        segment_share=data.segment_share,
    )


def _train_sampler(config: Config) -> ClipSampler:
    name = config.data.clip_sampler
    shape = clip_shape(config)
    if name == SEGMENTS:
        return RandomSegments(shape.num_frames)
    if name.startswith(PYTORCHVIDEO):
        return PyTorchVideoClips.make(name.removeprefix(PYTORCHVIDEO), shape)
    return RandomClip(shape)


def lora_of(config: Config) -> Lora | None:
    """None: all weights are trained as they are."""
    train = config.train
    return Lora(train.lora_rank, train.lora_alpha) if train.lora_rank else None

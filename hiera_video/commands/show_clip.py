"""A batch as a picture: what the model is fed, after sampling, crop, augmentation and erasing.

    hiera-video show-clip --cfg configs/K400/hiera_b_16x4.yaml --output batch.png data.root=/k400

One row a view, frames from left to right; above each its video, label and time in seconds.
--split test shows the views of testing. The same seed and step give the same picture as the run is
fed, whatever the number of workers.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from hiera_video import build, build_training
from hiera_video.commands.arguments import add_config, make_parser
from hiera_video.config import Config, load_config
from hiera_video.data.dataset import Batch
from hiera_video.data.transforms import normalise
from hiera_video.stages.inputs import class_names, read_list
from hiera_video.system.distributed import join_world
from hiera_video.system.errors import Unavailable, UserError

LINE = 14  # pixels of a line of text
GAP = 2


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_config(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("batch.png"), help="the picture (PNG or JPEG)"
    )
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--step", type=int, default=0, help="of the training run")
    parser.add_argument("--frames", type=int, default=8, help="of each clip that are shown")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.videos < 1 or args.frames < 1 or args.step < 0:
        raise UserError("--videos and --frames must be > 0, and --step >= 0")
    with tempfile.TemporaryDirectory() as folder:  # for what a run would leave
        overrides = [
            *args.overrides,
            f"{args.split}.batch_size={args.videos}",
            "data.num_workers=0",
            f"stages=[{args.split}]",
            f"output={folder}",
        ]
        show(load_config(args.cfg, overrides), args)


def show(config: Config, args: argparse.Namespace) -> None:
    key = f"data.{args.split}"
    videos = read_list(config, key)
    with join_world("cpu") as world:
        if args.split == "train":
            batches = build_training.train_batches(
                config, videos, steps=args.step + 1, first_step=args.step, world=world
            )
        else:
            batches = build.test_loader(
                config,
                videos,
                list(range(len(videos))),
                sample=build.test_sampler(config),
                crops=config.test.crops,
                world=world,
            )
        batch = next(iter(batches))
    if batch["unavailable"]:
        raise Unavailable(batch["unavailable"])
    for row, reason in batch["bad"]:
        print(f"bad video: {videos.written(row)}: {reason}")
    if batch["clip"] is None:
        raise UserError(f"{key}: none of the videos of this batch can be read")
    names = class_names(config, videos)
    page = draw(batch, fed_pixels(batch, config), names, videos.written, frames=args.frames)
    try:
        page.save(args.output)
    except (OSError, ValueError) as e:
        raise UserError(f"--output {args.output}: {e}") from e
    print(f"{args.output}: {len(batch['clip'])} videos x {batch['clip'].shape[1]} views")


def fed_pixels(batch: Batch, config: Config) -> np.ndarray:
    """uint8 [views of the batch, T, S, S, 3]: what the model sees, not normalised any more."""
    clips = batch["clip"].flatten(0, 1)
    mean = config.data.mean
    std = config.data.std
    if config.stages == ("test",):
        fed = normalise(clips, mean, std)
    else:
        boxes = batch["erase"].flatten(0, 1)
        fed = normalise(clips, mean, std, erase=boxes, seeds=batch["seed"].flatten())
    pixels = (fed * _channels(std) + _channels(mean)).clamp(0, 1) * 255
    return pixels.round().byte().permute(0, 2, 3, 4, 1).numpy()


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1, 1)


def draw(
    batch: Batch,
    images: np.ndarray,
    names: list[str],
    path_of: Callable[[int], str],
    *,
    frames: int,
) -> Image.Image:
    """images: of fed_pixels. path_of: a row of the list -> its path. frames: shown of each clip."""
    columns = np.unique(np.linspace(0, images.shape[1] - 1, frames).astype(int))
    side = images.shape[2]
    views = batch["clip"].shape[1]
    height = side + LINE + GAP
    page = Image.new("RGB", (len(columns) * (side + GAP), len(images) * height), "white")
    pen = ImageDraw.Draw(page)
    for n, clip in enumerate(images):
        b = n // views
        top = n * height
        label = int(batch["label"][b])
        name = f"{label} {names[label]}" if 0 <= label < len(names) else str(label)
        crops = views // len(batch["times"][b])
        start, end = batch["times"][b][n % views // crops]
        path = path_of(int(batch["row"][b]))
        pen.text((2, top), f"{path}   label {name}   {start:.2f} to {end:.2f} s", "black")
        for k, t in enumerate(columns):
            page.paste(Image.fromarray(clip[t]), (k * (side + GAP), top + LINE))
    return page

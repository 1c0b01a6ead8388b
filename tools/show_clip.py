"""A training batch as a picture: what the model is fed, after sampling, crop, flip, RandAugment, normalisation and erasing.

    python tools/show_clip.py --cfg configs/K400/hiera_b_16x4.yaml --output batch.png data.root=/k400

One row a view, frames from left to right; above each its video, label and time in seconds. --split test shows the views of
testing. The same seed and step give the same picture as the run is fed, whatever the number of workers.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

import numpy as np
import torch
from PIL import Image, ImageDraw

from hiera_video import build
from hiera_video.config import Config, load_config
from hiera_video.data.dataset import Batch
from hiera_video.data.transforms import normalise
from hiera_video.distributed import join_world
from hiera_video.errors import UserError, run_command

LINE = 14  # pixels of a line of text
GAP = 2


def draw(batch: Batch, config: Config, names: list[str], title, *, frames: int) -> Image.Image:
    """title: row of the list -> its path."""
    clips = batch["clip"].flatten(0, 1)
    if config.stages == ("test",):
        shown = normalise(clips, config.data.mean, config.data.std)
    else:
        boxes, seeds = batch["erase"].flatten(0, 1), batch["seed"].flatten()
        shown = normalise(clips, config.data.mean, config.data.std, erase=boxes, seeds=seeds)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (config.data.mean, config.data.std))
    images = ((shown * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 4, 1).numpy()  # [N, T, S, S, 3]
    columns = np.unique(np.linspace(0, images.shape[1] - 1, frames).astype(int))
    side, views = images.shape[2], batch["clip"].shape[1]
    sheet = Image.new("RGB", (len(columns) * (side + GAP), len(images) * (side + LINE + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for n, clip in enumerate(images):
        b, top = n // views, n * (side + LINE + GAP)
        label = int(batch["label"][b])
        name = f"{label} {names[label]}" if 0 <= label < len(names) else str(label)
        crops = views // len(batch["times"][b])
        start, end = batch["times"][b][n % views // crops]
        pen.text((2, top), f"{title(int(batch['row'][b]))}   label {name}   {start:.2f} to {end:.2f} s", "black")
        for k, t in enumerate(columns):
            sheet.paste(Image.fromarray(clip[t]), (k * (side + GAP), top + LINE))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="config file (YAML)")
    parser.add_argument("--output", type=Path, default=Path("batch.png"), help="the picture (PNG or JPEG)")
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--step", type=int, default=0, help="of the training run")
    parser.add_argument("--frames", type=int, default=8, help="of each clip that are shown")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the config")
    args = parser.parse_intermixed_args()
    if args.videos < 1 or args.frames < 1 or args.step < 0:
        raise UserError("--videos and --frames must be > 0, and --step >= 0")
    with tempfile.TemporaryDirectory() as folder:  # what a run would leave
        size = [f"{args.split}.batch_size={args.videos}", "data.num_workers=0"]
        show(load_config(args.cfg, [*args.overrides, *size, f"stages=[{args.split}]", f"output={folder}"]), args)


def show(config: Config, args: argparse.Namespace) -> None:
    key = f"data.{args.split}"
    videos = build.build_videos(config, key)
    with join_world("cpu") as world:
        if args.split == "train":
            batches = build.train_batches(
                config, videos, steps=args.step + 1, first_step=args.step, world=world, num_classes=None
            )
        else:
            rows, sample = list(range(len(videos))), build.test_sampler(config)
            batches = build.test_loader(config, videos, rows, sample=sample, crops=config.test.crops, world=world)
        batch = next(iter(batches))
    for row, reason in batch["bad"]:
        print(f"bad video: {videos.written(row)}: {reason}")
    if batch["clip"] is None:
        raise UserError(f"{key}: none of the videos of this batch can be read")
    names = build.class_names(config, videos)
    try:
        draw(batch, config, names, videos.written, frames=args.frames).save(args.output)
    except (OSError, ValueError) as e:
        raise UserError(f"--output {args.output}: {e}") from e
    print(f"{args.output}: {len(batch['clip'])} videos x {batch['clip'].shape[1]} views")


if __name__ == "__main__":
    run_command(main)

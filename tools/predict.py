"""Top-5 classes of one's own videos.

    python tools/predict.py my_video.mp4 --weights runs/hiera_b_16x4
    python tools/predict.py folder/ --weights hiera_base_16x224.pth --model hiera_base_16x224 --classes datasets/labels/k400.txt

Model, class names and clip format come from what the weight file says of itself; published .pth files say nothing, so name the
model and a file with one class a line. Softmax scores are averaged over --clips clips x --crops crops (5 x 3 is the published
protocol). Folders are searched for videos. A video that cannot be read is named on stderr; then the exit status is 2.

What happens when, in videos of any length: --timeline DIR writes the top-5 of every window as <video>.timeline.csv and a
picture of it, <video>.timeline.png; --draw DIR writes the video with the classes drawn on it, <video>.drawn.mp4. Windows follow
each other, or begin every --hop-s seconds.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

import numpy as np
import torch
from torch import nn

from hiera_video import build, timeline
from hiera_video.config import Config, DataConfig
from hiera_video.data.annotations import VIDEO_SUFFIXES, VideoList
from hiera_video.data.dataset import ClipDataset, Key
from hiera_video.data.packets import VideoError
from hiera_video.data.transforms import EvalCrops, normalise
from hiera_video.errors import UserError, run_command
from hiera_video.models.weights import classes_of, read_weights
from hiera_video.models.zoo import create_model
from hiera_video.scores import ranked

TIMELINE, DREW = (".timeline.csv", ".timeline.png"), ".drawn.mp4"  # ends of names


def find_videos(given: list[str]) -> list[str]:
    """The files, and all videos below the folders. Raises UserError."""
    found = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            inside = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
            if not inside:
                raise UserError(f"the folder {path} holds no video ({', '.join(VIDEO_SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(name)
        else:
            raise UserError(f"there is no video {name}")
    return found


def load_classifier(args: argparse.Namespace) -> tuple[nn.Module, list[str], Config, int]:
    """(model, class names or none, how clips are made, short side). Raises UserError."""
    try:
        state, metadata = read_weights(args.weights)
    except ValueError as e:
        raise UserError(f"--weights: {e}") from e
    if "decoder_pos_embed" in state:
        raise UserError(f"--weights {args.weights}: a masked autoencoder knows no classes; fine-tune it first")
    known = metadata.get("model", {})
    name = args.model or known.get("name")
    if name is None:
        raise UserError(
            f"--weights {args.weights} does not say what model it belongs to; give --model, such as hiera_base_16x224"
        )
    arguments = dict(known.get("arguments", {})) if name == known.get("name") else {}
    if "num_classes" not in arguments and classes_of(state) is not None:
        arguments["num_classes"] = classes_of(state)
    try:
        model = create_model(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
    except ValueError as e:
        raise UserError(f"--model: {e}") from e
    if len(getattr(model, "input_size", (1, 1, 1))) != 3:
        raise UserError(f"--model {name} takes images, not video")
    build.load_for_use(model, args.weights, key="--weights")
    classes = metadata.get("classes", [])
    if args.classes:
        if not args.classes.is_file():
            raise UserError(f"--classes: there is no file {args.classes}")
        try:
            classes = args.classes.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as e:
            raise UserError(f"--classes {args.classes}: not a text in UTF-8: {e}") from e
    count = arguments.get("num_classes")
    if classes and count and len(classes) != count:
        raise UserError(f"--classes: {len(classes)} names, but the model has {count} classes")
    clips = metadata.get("clips", {})
    data = DataConfig(**{k: v for k, v in clips.items() if k in {f.name for f in dataclasses.fields(DataConfig)}})
    if metadata.get("mean"):
        data = dataclasses.replace(data, mean=tuple(metadata["mean"]), std=tuple(metadata["std"]))
    if data.clip_sampler.startswith("pytorchvideo."):  # a training sampler; testing is uniform
        data = dataclasses.replace(data, clip_sampler="random")
    return model, classes, Config(data=data), clips.get("short_side", data.crop_size)


@torch.inference_mode()
def scores_of(model: nn.Module, clips: torch.Tensor, config: Config, device: str) -> torch.Tensor:
    """clips uint8 [V, C, T, S, S] -> softmax [V, classes]"""
    parts = []
    for clip in clips.split(1):  # one view at a time: memory of one
        parts.append(model(normalise(clip.to(device), config.data.mean, config.data.std)).float().softmax(-1).cpu())
    return torch.cat(parts)


def write_timeline(
    args: argparse.Namespace,
    model: nn.Module,
    dataset: ClipDataset,
    row: int,
    name: str,
    names: list[str],
    config: Config,
) -> list[Path]:
    """What --timeline and --draw ask for; returns the files. Raises VideoError, OSError."""
    written, times, scores = [], [], []
    for batch in timeline.windows_of(dataset, row):
        scores.append(scores_of(model, batch["clip"][0], config, args.device))
        times.append(batch["times"][0])
    when, what = np.concatenate(times), torch.cat(scores)
    if args.timeline:
        args.timeline.mkdir(parents=True, exist_ok=True)
        written += [args.timeline / f"{name}{ending}" for ending in TIMELINE]
        timeline.write_csv(written[0], when, what, names)
        timeline.draw_picture(written[1], when, what, names, title=name)
    if args.draw:
        args.draw.mkdir(parents=True, exist_ok=True)
        written.append(args.draw / f"{name}{DREW}")
        timeline.draw_video(written[-1], dataset, row, when, what, names)
    return written


def file_names(paths: list[str]) -> list[str]:
    """The videos' names without their endings, numbered where that would leave two alike."""
    stems = [Path(p).stem for p in paths]
    return stems if len(set(stems)) == len(stems) else [f"{k:04d}_{stem}" for k, stem in enumerate(stems)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="file or folder")
    parser.add_argument("--weights", required=True, help="weight file, step folder or run folder")
    parser.add_argument("--model", help="name, where the weights do not say it")
    parser.add_argument("--classes", type=Path, help="one class name a line, where the weights do not have them")
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--crops", type=int, default=3, choices=(1, 3))
    parser.add_argument("--timeline", type=Path, metavar="DIR", help="write what happens when, as CSV and as a picture")
    parser.add_argument("--draw", type=Path, metavar="DIR", help="write the video with what happens drawn on it")
    parser.add_argument("--hop-s", type=float, help="seconds from window to window; default end to end")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for decoding a video")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_intermixed_args()
    if args.clips < 1 or args.timeout <= 0 or (args.hop_s is not None and args.hop_s <= 0):
        raise UserError("--clips, --timeout and --hop-s must be > 0")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch sees no GPU here")
    paths = find_videos(args.videos)
    model, classes, config, short_side = load_classifier(args)
    model = model.to(args.device).eval()
    config = dataclasses.replace(config, features=dataclasses.replace(config.features, hop_s=args.hop_s))
    videos, size = VideoList([os.path.abspath(p) for p in paths], [-1] * len(paths)), config.data.crop_size
    samplers = (build.uniform_sampler(config, args.clips), args.crops), (build.window_sampler(config), 1)
    whole, windows = (
        ClipDataset(
            videos,
            sample=sample,
            transform=EvalCrops(short_side=short_side, size=size, num_crops=crops),
            timeout_s=args.timeout,
        )
        for sample, crops in samplers
    )
    unread, names = [], file_names(paths)
    if args.draw:
        given = {Path(p).resolve() for p in paths}
        for name in names:
            if (args.draw / f"{name}{DREW}").resolve() in given:
                raise UserError(f"--draw {args.draw}: {name}{DREW} is one of the videos; choose another folder")
    for i, (path, name) in enumerate(zip(paths, names)):
        sample = whole[Key(0, i)]
        if "clip" not in sample:
            unread.append(path)
            print(f"{path}: {sample['bad'][0][1]}", file=sys.stderr)
            continue
        scores = scores_of(model, sample["clip"], config, args.device).mean(0)
        print(path)
        for k in ranked(scores).tolist():
            print(f"  {scores[k]:7.2%}  {timeline.named(classes, k)}", flush=True)
        if args.timeline or args.draw:
            try:
                for file in write_timeline(args, model, windows, i, name, classes, config):
                    print(f"  {file}", flush=True)
            except (VideoError, OSError) as e:
                unread.append(path)
                print(f"{path}: {e}", file=sys.stderr)
    if unread:
        raise UserError(f"{len(unread)} of {len(paths)} videos could not be read: {', '.join(unread[:3])}")


if __name__ == "__main__":
    run_command(main)

"""Hands a model over: writes it in a form that others read, and tries what was written.

    hiera-video export --weights runs/own --to onnx own.onnx
    hiera-video export --weights runs/own --to onnx own.onnx --pixels --int8
    hiera-video export --weights runs/own --to hf own_hf
    hiera-video export --weights hiera_base_16x224.mae_k400_ft_k400 --to pt2 b.pt2 --videos dog.mp4

hf: a folder for transformers, with its own code and a model card:
`pipeline("video-classification", model=OUT, trust_remote_code=True)`. onnx: for onnxruntime and
others; `hiera-video predict` and `extract-features` read it, too. pt2: torch.export's; aoti:
compiled for this kind of processor by AOTInductor. These three take `clip`, float [batch, 3, T, S,
S] and normalised or, with --pixels, uint8, and give `logits`, `features` and, with --maps, `stage1`
to `stage4` ([batch, t, h, w, C]). Of a masked autoencoder, its encoder's. They take Hiera, MViTv2
and ViT; hf takes Hiera.

What was written is read again, and real clips (--videos; else drawn ones) go through both: the
largest difference (relative to the largest value) and the share of equal predictions are printed,
and the exit status is 3 where a difference is above --tolerance.
"""

import argparse
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.commands.arguments import make_parser
from hiera_video.commands.predict import find_videos
from hiera_video.data.transforms import normalise
from hiera_video.export import formats, huggingface
from hiera_video.export.check import Comparison, compare
from hiera_video.export.graph import Graph
from hiera_video.inference import UnnamedModel, VideoModel, load
from hiera_video.models.published import LICENCE, published
from hiera_video.models.trunk import Trunk
from hiera_video.models.weights import read_weights
from hiera_video.system.errors import RunStopped, UserError, VideoError


class Form(NamedTuple):
    write: Callable[[Graph, Tensor, Path, dict[str, Any]], None]
    open: Callable[[Path], formats.Run]
    tolerance: float


FORMS = {
    "onnx": Form(formats.write_onnx, formats.open_onnx, 1e-4),
    "pt2": Form(formats.write_pt2, formats.open_pt2, 1e-5),
    "aoti": Form(formats.write_aoti, formats.open_aoti, 1e-4),
}


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--weights", required=True, help="weight file, step folder, run folder or published name"
    )
    parser.add_argument("--to", choices=(*FORMS, "hf"), required=True)
    parser.add_argument("target", metavar="OUT", type=Path)
    parser.add_argument("--model", help="name, where the weights do not say it")
    parser.add_argument("--maps", action="store_true", help="give the map of every stage, too")
    parser.add_argument("--pixels", action="store_true", help="take uint8, normalise inside")
    parser.add_argument(
        "--int8", action="store_true", help="onnx: products in 8 bits, for processors"
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=formats.OPSET,
        help=f"onnx: {formats.OLDEST_OPSET} to {formats.OPSET}; less for runtimes that know less",
    )
    parser.add_argument("--videos", nargs="+", default=[], metavar="VIDEO", help="to try it on")
    parser.add_argument("--clips", type=int, default=8, help="to try it on")
    parser.add_argument("--tolerance", type=float, help="default 1e-4; pt2: 1e-5; int8: none")
    return parser


def main(args: argparse.Namespace) -> None:
    check_arguments(args)
    try:
        model = load(args.weights, model=args.model, device="cpu")
        _, metadata = read_weights(args.weights)
    except UnnamedModel as e:
        raise UserError(f"{e}: --model") from e
    except ValueError as e:
        raise UserError(str(e)) from e
    if not isinstance(model.encoder, Trunk) or not model.takes_video:
        raise UserError(f"{args.weights}: what is exported is a model on video")
    metadata = {
        **metadata,
        "model": metadata.get("model", {"name": args.model}),
        "mean": list(model.format.mean),
        "std": list(model.format.std),
    }
    clips, whose = clips_to_try(model, args)
    try:
        args.target.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, for a file that is wrong, or half of one, to replace nothing.
        with tempfile.TemporaryDirectory(dir=args.target.parent, prefix=".export") as folder:
            made = Path(folder) / args.target.name
            if args.to == "hf":
                write_for_hub(model, made, metadata, clips, whose, args)
                shutil.rmtree(args.target, ignore_errors=True)
            else:
                write_file(model, made, metadata, clips, whose, args)
            for part in Path(folder).iterdir():  # of large models ONNX has a second file
                part.replace(args.target.parent / part.name)
    except OSError as e:
        raise UserError(f"cannot write {args.target}: {e}") from e
    except ValueError as e:
        raise UserError(str(e)) from e


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError."""
    if args.int8 and args.to != "onnx":
        raise UserError("--int8 is for --to onnx")
    if args.opset != formats.OPSET and args.to != "onnx":
        raise UserError("--opset is for --to onnx")
    if not formats.OLDEST_OPSET <= args.opset <= formats.OPSET:
        raise UserError(
            f"--opset {args.opset} must be from {formats.OLDEST_OPSET} to {formats.OPSET}"
        )
    if args.clips < 1:
        raise UserError(f"--clips {args.clips} must be > 0")
    target = args.target
    if args.to == "aoti" and target.suffix != ".pt2":
        raise UserError(f"{target}: AOTInductor's files end in .pt2")
    if args.to != "hf":
        if target.is_dir():
            raise UserError(f"{target} is a folder; name a file")
        return
    if args.maps or args.pixels:
        raise UserError("--maps and --pixels are for the other forms")
    if target.exists() and not huggingface.is_export(target) and not is_empty(target):
        raise UserError(f"{target} holds something else; name a new folder")


def is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def write_file(
    model: VideoModel,
    file: Path,
    metadata: dict[str, Any],
    clips: Tensor,
    whose: str,
    args: argparse.Namespace,
) -> None:
    """Raises RunStopped, ValueError, OSError."""
    graph = Graph(model, maps=args.maps, pixels=args.pixels).eval()
    if not args.pixels:
        clips = normalise(clips, model.format.mean, model.format.std)
    form = FORMS[args.to]
    allowed = args.tolerance
    if args.to == "onnx":
        formats.write_onnx(graph, clips[:2], file, metadata, opset=args.opset)
    else:
        form.write(graph, clips[:2], file, metadata)
    found = compare(graph, form.open(file), clips)
    say(args, args.to, file.parent, found, whose)
    judge(args.target, found, form.tolerance if allowed is None else allowed)
    if args.int8:
        formats.to_int8(file, file)
        found = compare(graph, form.open(file), clips)
        say(args, "int8", file.parent, found, whose)
        judge(args.target, found, math.inf if allowed is None else allowed)


def write_for_hub(
    model: VideoModel,
    folder: Path,
    metadata: dict[str, Any],
    clips: Tensor,
    whose: str,
    args: argparse.Namespace,
) -> None:
    """The folder, tried where transformers is installed. Raises RunStopped, ValueError, OSError."""
    clips = normalise(clips, model.format.mean, model.format.std)
    rows = huggingface.rows_of_run(args.weights)
    named = published(args.weights)
    if named is not None:
        rows |= {"weights": named.name, "licence of the weights": LICENCE}
    huggingface.write_folder(model, folder, metadata, rows)
    opened = huggingface.open_folder(folder)
    if opened is None:
        print(f"{args.target}: not tried: transformers is not installed")
        return
    run, classify = opened
    found = compare(Graph(model).eval(), run, clips, timed=(model, classify))
    say(args, "hf", folder, found, whose)
    judge(args.target, found, 1e-5 if args.tolerance is None else args.tolerance)


def clips_to_try(model: VideoModel, args: argparse.Namespace) -> tuple[Tensor, str]:
    """(uint8 [N, 3, T, S, S], whose they are): at least two. Raises UserError."""
    count = max(args.clips, 2)
    if not args.videos:
        shape = (model.format.shape.num_frames, model.format.crop_size, model.format.crop_size)
        draw = torch.Generator().manual_seed(0)
        coarse = torch.rand((count, 3, 2, 4, 4), generator=draw)
        smooth = F.interpolate(coarse, size=shape, mode="trilinear")
        return (smooth * 255).to(torch.uint8), "drawn"
    videos = find_videos(args.videos)
    try:
        each = math.ceil(count / len(videos))
        parts = [model.clips(video, each) for video in videos]
    except VideoError as e:
        raise UserError(f"--videos: {e}") from e
    finally:
        model.close()
    return torch.cat(parts)[:count], "real"


def say(args: argparse.Namespace, form: str, folder: Path, found: Comparison, whose: str) -> None:
    """folder: that holds what was written, and nothing else."""
    ratio = found.exported_s / found.eager_s
    size = sum(part.stat().st_size for part in folder.rglob("*") if part.is_file())
    agree = "" if found.agreement is None else f", {found.agreement:.0%} of predictions equal"
    print(
        f"{args.target} ({form}, {size / 2**20:.1f} MiB): {found.clips} {whose} clips, largest "
        f"difference {found.largest:.1e}{agree}; a clip takes {found.exported_s * 1e3:.1f} ms, "
        f"{ratio:.2f} times the model's {found.eager_s * 1e3:.1f} ms on this processor",
        flush=True,
    )


def judge(file: Path, found: Comparison, tolerance: float) -> None:
    """Raises RunStopped."""
    worst = max(found.differences, key=lambda name: found.differences[name])
    if not found.largest <= tolerance:
        raise RunStopped(
            f"{file}: {worst} differs by {found.largest:.1e}, more than --tolerance {tolerance:g}"
        )

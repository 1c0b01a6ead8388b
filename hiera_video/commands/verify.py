"""Whether published weights are what they are said to be, and say what is published.

    hiera-video verify hiera_base_16x224.mae_k400_ft_k400
    hiera-video verify hiera_base_16x224.mae_k400_ft_k400 --data /k400 --sample 2000

Downloads the file if it is not there, loads every tensor of it into every parameter of the model,
and runs the model. With --data, a folder that holds val.csv of Kinetics-400 (`path label` a line),
it is tested in the published protocol, 5 clips x 3 crops, on all videos or on --sample of them, and
the exit status is 3 if top-1 is further than --tolerance, and two standard errors of a sample, from
the published one. What was not checked is said.
"""

import argparse
import json
import math
import random
from pathlib import Path

import torch

from hiera_video.commands.arguments import make_parser
from hiera_video.config import Config, DataConfig, ModelConfig, TestConfig
from hiera_video.data.lists import read_videos
from hiera_video.models.published import Published, nearest, published
from hiera_video.models.weights import load_weights
from hiera_video.models.zoo import create_model
from hiera_video.system.errors import RunStopped, UserError
from hiera_video.system.files import sha256_of

LIST = "sample.csv"


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("name", metavar="NAME", help="see `hiera-video models`")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder with val.csv of K400")
    parser.add_argument("--sample", type=int, metavar="N", help="so many of its videos")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--tolerance", type=float, default=0.5, help="points of top-1")
    parser.add_argument("--output", type=Path, help="folder of the test; default runs/verify_NAME")
    parser.add_argument("--workers", type=int, default=8, help="that decode videos")
    return parser


def main(args: argparse.Namespace) -> None:
    weights = published(args.name)
    if weights is None:
        raise UserError(
            f"{args.name} is no published name{nearest(args.name)}; `hiera-video models` lists them"
        )
    if args.data is not None and (weights.top1 is None or weights.data != "k400"):
        raise UserError(f"--data: no accuracy on K400 is published of {args.name}")
    if args.sample is not None and args.sample < 1:
        raise UserError(f"--sample {args.sample} must be > 0")
    check_file(weights)
    if args.data is None:
        print("not checked: accuracy" + (" (--data)" if weights.top1 is not None else ""))
        return
    check_accuracy(weights, args)


def check_file(weights: Published) -> None:
    """Prints what holds of the file. Raises UserError."""
    model = create_model(weights.model)
    try:
        file = weights.fetched()
        report = load_weights(model, weights.name, strict=True)
    except ValueError as e:
        raise UserError(str(e)) from e
    print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB, sha256 {sha256_of(file)}")
    print("not checked: its hash (none is published)")
    count = len(report.names("loaded"))
    total = weights.parameters / 1e6
    print(f"loaded: all {count} tensors, {total:.2f} M parameters")
    clip = torch.zeros(1, 3, *weights.input_size)
    with torch.inference_mode():
        out = model.eval()(clip)
    found = out if isinstance(out, torch.Tensor) else out.loss
    if not found.isfinite().all():
        raise RunStopped(f"{weights.name} makes of a grey clip what is not finite")
    print("runs: finite on a grey clip")


def check_accuracy(weights: Published, args: argparse.Namespace) -> None:
    """Prints top-1 beside the published one. Raises UserError, RunStopped."""
    from hiera_video.stages.run import run

    assert weights.top1 is not None  # asked before
    videos = read_videos("val.csv", root=args.data, key="--data")
    if videos.classes:  # names
        videos = videos.numbered_by(weights.classes, key="--data")
    if videos.has_segments or (videos.labels < 0).any():
        raise UserError("--data: val.csv must have one label a video, and no segments")
    rows = list(range(len(videos)))
    if args.sample is not None:
        rows = sorted(random.Random(args.seed).sample(rows, min(args.sample, len(rows))))
    output = args.output or Path(f"runs/verify_{weights.name}")
    output.mkdir(parents=True, exist_ok=True)
    lines = [f"{Path(videos.path(row)).absolute()} {videos.label(row)}\n" for row in rows]
    listed = output / LIST
    if listed.exists() and listed.read_text(errors="surrogateescape") != "".join(lines):
        raise UserError(f"{output} is of other videos; choose another --output")
    listed.write_text("".join(lines), errors="surrogateescape")
    run(
        Config(
            stages=("test",),
            output=str(output),
            model=ModelConfig(name=weights.model, num_classes=weights.count_classes),
            data=DataConfig(
                test=str((output / LIST).absolute()), decoder="decord", num_workers=args.workers
            ),
            test=TestConfig(weights=weights.name),
        )
    )
    found = json.loads((output / "test/metrics.json").read_text())
    share = weights.top1 / 100
    error = 100 * math.sqrt(share * (1 - share) / found["videos"])
    allowed = args.tolerance + (2 * error if len(rows) < len(videos) else 0)
    said = (
        f"top-1 {found['top1']:.2f} of {found['videos']} videos, published {weights.top1:.1f} "
        f"(+- {allowed:.2f})"
    )
    if abs(found["top1"] - weights.top1) > allowed:
        raise RunStopped(f"{weights.name}: {said}")
    print(said)
    if len(rows) < len(videos):
        print(f"not checked: the other {len(videos) - len(rows)} videos")

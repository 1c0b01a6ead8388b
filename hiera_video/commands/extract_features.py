"""Clip features of any list of videos: one safetensors file a video and a manifest.

    hiera-video extract-features --cfg configs/K400/hiera_b_16x4.yaml --weights runs/hiera_b_16x4 \\
        --videos list.csv --output features/

Read them back with `safetensors.torch.load_file(file)["features"]`, [clips, dim]. Videos may be of
any length. A command that was killed goes on where it was.

--shard 3/16 takes the rows 3, 19, 35 .. of the list: give that to 16 jobs with one output, or
`--shard slurm` to a job array (sbatch --array=0-15). The last one to end writes the manifest of
all.
"""

import argparse
import dataclasses
import os
from pathlib import Path

from hiera_video.commands.arguments import add_config, make_parser
from hiera_video.config import load_config
from hiera_video.system.errors import UserError


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_config(parser, "config file (YAML) of the model and its clips")
    parser.add_argument(
        "--weights", required=True, help="weight file, step folder, run folder or published name"
    )
    parser.add_argument(
        "--videos",
        required=True,
        help="list, `path` or `path label` a line, or a folder of class folders",
    )
    parser.add_argument("--output", required=True, help="folder for the features")
    parser.add_argument(
        "--shard", default="0/1", help="K/N, or slurm: this task of a job array; default all"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    number, count = shard_of(args.shard)
    config = load_config(args.cfg, args.overrides)
    videos = args.videos
    if "://" not in videos:
        videos = str(Path(videos).resolve())
    config = dataclasses.replace(
        config,
        output=args.output,
        stages=("features",),
        test=dataclasses.replace(config.test, weights=args.weights),
        features=dataclasses.replace(config.features, videos=videos),
    )
    # Imported here, after the config was read: torch takes seconds.
    from hiera_video.stages.features import Shard
    from hiera_video.stages.run import extract_features

    extract_features(config, shard=Shard(number, count))


def shard_of(text: str) -> tuple[int, int]:
    """(k, n) of "k/n", or of the environment of a SLURM job array. Raises UserError."""
    if text == "slurm":
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        text = f"{task}/{os.environ.get('SLURM_ARRAY_TASK_COUNT')}"
    try:
        k, n = map(int, text.split("/"))
    except ValueError:
        raise UserError(
            f"--shard {text}: K/N, such as 3/16, or slurm in a job array that starts at 0"
        ) from None
    if not 0 <= k < n:
        raise UserError(f"--shard {text}: shards of {n} are 0 to {n - 1}; start the job array at 0")
    return k, n

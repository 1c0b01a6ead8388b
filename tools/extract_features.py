"""Clip features of any list of videos: one safetensors file a video and a manifest.

    python tools/extract_features.py --cfg configs/K400/hiera_b_16x4.yaml --weights runs/hiera_b_16x4 \\
        --videos list.csv --output features/

Read them back with `safetensors.torch.load_file(file)["features"]`, [clips, dim]. Videos may be of any length. A command that
was killed goes on where it was. --shard 3/16 takes the rows 3, 19, 35 .. of the list: give that to 16 jobs with one output, or
`--shard slurm` to a job array (sbatch --array=0-15); the last one to end writes the manifest of all.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

from hiera_video.errors import UserError, run_command


def shard_of(text: str) -> tuple[int, int]:
    """(k, n) of "k/n", or of the environment of a SLURM job array. Raises UserError."""
    if text == "slurm":
        text = f"{os.environ.get('SLURM_ARRAY_TASK_ID')}/{os.environ.get('SLURM_ARRAY_TASK_COUNT')}"
    try:
        k, n = map(int, text.split("/"))
    except ValueError:
        raise UserError(f"--shard {text}: K/N, such as 3/16, or slurm in a job array that starts at 0") from None
    if not 0 <= k < n:
        raise UserError(f"--shard {text}: shards of {n} are 0 to {n - 1}; start the job array at 0")
    return k, n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="config file (YAML) of the model and its clips")
    parser.add_argument("--weights", required=True, help="weight file, step folder or run folder")
    parser.add_argument(
        "--videos", required=True, help="list, `path` or `path label` a line, or a folder of class folders"
    )
    parser.add_argument("--output", required=True, help="folder for the features")
    parser.add_argument("--shard", default="0/1", help="K/N, or slurm: this task of a job array; default all")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the config")
    args = parser.parse_intermixed_args()
    from hiera_video.config import load_config
    from hiera_video.files import is_remote
    from hiera_video.run import extract_features

    config = load_config(args.cfg, args.overrides)
    videos = args.videos if is_remote(args.videos) else str(Path(args.videos).resolve())
    config = dataclasses.replace(
        config,
        output=args.output,
        stages=("features",),
        test=dataclasses.replace(config.test, weights=args.weights),
        features=dataclasses.replace(config.features, videos=videos),
    )
    extract_features(config, shard=shard_of(args.shard))


if __name__ == "__main__":
    run_command(main)

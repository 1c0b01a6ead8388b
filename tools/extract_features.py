"""Clip features of any list of videos: one safetensors file a video and a manifest.

    python tools/extract_features.py --cfg configs/K400/hiera_b_16x4.yaml --weights runs/hiera_b_16x4 \\
        --videos list.csv --output features/

Read them back with `safetensors.torch.load_file(file)["features"]`, [clips, dim].
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

from hiera_video.errors import run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="config file (YAML) of the model and its clips")
    parser.add_argument("--weights", required=True, help="weight file, step folder or run folder")
    parser.add_argument(
        "--videos", required=True, help="list, `path` or `path label` a line, or a folder of class folders"
    )
    parser.add_argument("--output", required=True, help="folder for the features")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the config")
    args = parser.parse_intermixed_args()
    from hiera_video.config import load_config
    from hiera_video.run import extract_features

    config = load_config(args.cfg, args.overrides)
    config = dataclasses.replace(
        config,
        output=args.output,
        stages=("features",),
        test=dataclasses.replace(config.test, weights=args.weights),
        features=dataclasses.replace(config.features, videos=str(Path(args.videos).resolve())),
    )
    extract_features(config)


if __name__ == "__main__":
    run_command(main)

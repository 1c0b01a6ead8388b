"""The published weights by name, and what of them is on this machine.

    hiera-video models

Such a name stands wherever a weight file may: `init.weights=hiera_base_16x224.mae_k400`, `--weights
hiera_base_16x224.mae_k400_ft_k400`, `hiera_video.load(..)`. The file is downloaded once, to torch
hub's folder (TORCH_HOME); HIERA_VIDEO_WEIGHTS_URL names a mirror. Accuracy is the published one: of
videos with 5 clips x 3 crops. `hiera-video verify NAME` tries it.
"""

import argparse

from hiera_video.commands.arguments import make_parser
from hiera_video.models.published import BASE_URL, LICENCE, PUBLISHED


def parser() -> argparse.ArgumentParser:
    return make_parser(__doc__)


def main(args: argparse.Namespace) -> None:
    wide = max(map(len, PUBLISHED))
    print(f"{'name':{wide}}  M params  classes  top-1  here")
    for name, weights in PUBLISHED.items():
        top1 = "-" if weights.top1 is None else f"{weights.top1:.1f}"
        here = f"{weights.file.stat().st_size / 2**20:.0f} MiB" if weights.file.exists() else "-"
        count = weights.count_classes or "-"
        print(f"{name:{wide}}  {weights.parameters / 1e6:8.1f}  {count:>7}  {top1:>5}  {here}")
    print(f"\nlicence: {LICENCE}, of Meta Platforms (no commercial use); from {BASE_URL}")
    print(f"kept in: {weights.file.parent}")

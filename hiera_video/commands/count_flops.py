"""Multiply-accumulates of a forward pass and parameters of models, beside the paper's figures.

    hiera-video count-flops                                 # the video models with known figures
    hiera-video count-flops hiera_tiny_16x224 slow_r50

Runs each model once on the CPU; H takes half a minute.
"""

import argparse

import torch

from hiera_video.commands.arguments import make_parser
from hiera_video.models.flops import count_macs, count_parameters
from hiera_video.models.zoo import create_model
from hiera_video.system.errors import UserError

PAPER = {  # Table 4: GFLOPs a view (one multiply-accumulate is one), million parameters
    "hiera_base_16x224": (102, 51),
    "hiera_base_plus_16x224": (133, 69),
    "hiera_large_16x224": (413, 213),
    "hiera_huge_16x224": (1159, 672),
    "mvit_v2_large_16x224": (377, 218),
    "vit_base_16x224": (180, 87),
    "vit_large_16x224": (597, 305),
    "vit_huge_16x224": (1192, 633),
    "mvit_v2_small_16x224": (64, 34.5),  # PySlowFast's model zoo
}


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("models", nargs="*", default=list(PAPER))
    return parser


def main(args: argparse.Namespace) -> None:
    print(f"{'model':26} {'GMACs':>8} {'paper':>6} {'M params':>9} {'paper':>6}")
    for name in args.models:
        try:
            model = create_model(name)
        except ValueError as e:
            raise UserError(str(e)) from e
        clip = torch.zeros(1, 3, *getattr(model, "input_size", (16, 224, 224)))
        macs = count_macs(model, clip) / 1e9
        parameters = count_parameters(model) / 1e6
        paper_macs, paper_parameters = PAPER.get(name, ("-", "-"))
        print(
            f"{name:26} {macs:8.1f} {paper_macs:>6} {parameters:9.2f} {paper_parameters:>6}",
            flush=True,
        )

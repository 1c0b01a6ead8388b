"""Multiply-accumulates of a forward pass and parameters of the named models, beside the paper's figures.

    python tools/count_flops.py                                  # the four video models of the paper
    python tools/count_flops.py hiera_tiny_16x224 slow_r50

Runs each model once on the CPU; H takes half a minute.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

from hiera_video.errors import UserError, run_command

PAPER = {  # Table 4: GFLOPs a view (one multiply-accumulate is one), million parameters
    "hiera_base_16x224": (102, 51),
    "hiera_base_plus_16x224": (133, 69),
    "hiera_large_16x224": (413, 213),
    "hiera_huge_16x224": (1159, 672),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(PAPER))
    args = parser.parse_args()
    import torch

    from hiera_video.models.flops import count_macs, count_parameters
    from hiera_video.models.zoo import create_model

    print(f"{'model':26} {'GMACs':>8} {'paper':>6} {'M params':>9} {'paper':>6}")
    for name in args.models:
        try:
            model = create_model(name)
        except ValueError as e:
            raise UserError(str(e)) from e
        clip = torch.zeros(1, 3, *getattr(model, "input_size", (16, 224, 224)))
        macs, parameters = count_macs(model, clip) / 1e9, count_parameters(model) / 1e6
        paper = PAPER.get(name, ("-", "-"))
        print(f"{name:26} {macs:8.1f} {paper[0]:>6} {parameters:9.2f} {paper[1]:>6}", flush=True)


if __name__ == "__main__":
    run_command(main)

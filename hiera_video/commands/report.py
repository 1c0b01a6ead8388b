"""Makes the report of a run again: RUN/report.html, one file that opens in any browser.

    hiera-video report runs/hiera_b_16x4

A run writes it by itself when it ends; this is for a run that is still going on, or was copied from
elsewhere.
"""

import argparse
from pathlib import Path

from hiera_video.commands.arguments import add_overrides, make_parser
from hiera_video.config import load_config
from hiera_video.stages.report import write_report
from hiera_video.system.errors import UserError


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path, help="a run's folder")
    add_overrides(parser, "such as data.root, where the videos are now")
    return parser


def main(args: argparse.Namespace) -> None:
    file = args.run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{args.run} is no run: it has no config.yaml")
    print(write_report(load_config(file, args.overrides), args.run))

"""Makes the report of a run again: RUN/report.html, one file that opens in any browser.

    python tools/report.py runs/hiera_b_16x4

A run writes it by itself when it ends; this is for a run that is still going on, or was copied from elsewhere.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

from hiera_video.config import load_config
from hiera_video.errors import UserError, run_command
from hiera_video.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root, where the videos are now")
    args = parser.parse_intermixed_args()
    if not (args.run / "config.yaml").is_file():
        raise UserError(f"{args.run} is no run: it has no config.yaml")
    print(write_report(load_config(args.run / "config.yaml", args.overrides), args.run))


if __name__ == "__main__":
    run_command(main)

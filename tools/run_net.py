"""Pretrain, fine-tune, test, extract features: runs the stages that a config lists.

python tools/run_net.py --cfg configs/K400/hiera_b_16x4.yaml data.root=/k400
python tools/run_net.py --cfg configs/K400/hiera_b_16x4.yaml data.root=/k400 --dry-run --ranks 128
torchrun --nproc_per_node 8 tools/run_net.py --cfg ...
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

from hiera_video.errors import UserError, run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="config file (YAML)")
    parser.add_argument("--dry-run", action="store_true", help="say what the run would do and cost, and do nothing")
    parser.add_argument("--ranks", type=int, default=1, help="with --dry-run: how many ranks the run will have")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the config")
    args = parser.parse_intermixed_args()
    from hiera_video.config import load_config
    from hiera_video.dry_run import dry_run
    from hiera_video.run import run

    config = load_config(args.cfg, args.overrides)
    if args.ranks < 1:
        raise UserError(f"--ranks {args.ranks} must be > 0")
    if args.dry_run:
        dry_run(config, ranks=args.ranks)
    else:
        run(config)


if __name__ == "__main__":
    run_command(main)

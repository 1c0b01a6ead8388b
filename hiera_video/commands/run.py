"""Pretrain, fine-tune, test, extract features: runs the stages that a config lists.

hiera-video run --cfg configs/K400/hiera_b_16x4.yaml data.root=/k400
hiera-video run --cfg configs/K400/hiera_b_16x4.yaml data.root=/k400 --dry-run --ranks 128
hiera-video run --cfg configs/K400/hiera_b_16x4.yaml --show-config
torchrun --nproc_per_node 8 tools/run_net.py --cfg ...
"""

import argparse

from hiera_video.commands.arguments import add_config, make_parser
from hiera_video.config import load_config, to_yaml
from hiera_video.system.errors import UserError


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_config(parser)
    parser.add_argument(
        "--show-config", action="store_true", help="print the whole config, and do nothing"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what the run would do and cost, and do nothing"
    )
    parser.add_argument(
        "--ranks", type=int, default=1, help="with --dry-run: how many ranks the run will have"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    config = load_config(args.cfg, args.overrides)
    if args.ranks < 1:
        raise UserError(f"--ranks {args.ranks} must be > 0")
    if args.show_config:
        print(to_yaml(config), end="")
    elif args.dry_run:
        from hiera_video.stages.dry_run import dry_run

        dry_run(config, ranks=args.ranks)
    else:
        # Imported here, after the config was read: torch takes seconds.
        from hiera_video.stages.run import run

        run(config)

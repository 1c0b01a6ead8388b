"""Frozen evaluation: what cached features are worth to simple classifiers.

    hiera-video extract-features --cfg CFG --weights runs/mae --videos train.csv \\
        --output features/train features.stages=[4]
    hiera-video extract-features --cfg CFG --weights runs/mae --videos val.csv \\
        --output features/val features.stages=[4]
    hiera-video probe features/train features/val --lists train.csv val.csv

The features are used as they are, of videos that have both features and a label. The
nearest-neighbour and linear probes see a video's mean over its windows. "linear in time" sees the
means over space of a stage's map, one after the other in time. The attentive one sees the
tokens of a stage's whole map (features.stages=[4]; without maps it is left out), of one random
window at a time in training and the mean of its scores over all windows in testing.

The linear and attentive probes are trained at several rates in one pass; the rate is chosen on a
tenth of the training videos that is held out, never on the test videos. Prints a table; --json
writes it with the figures of all rates.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from hiera_video.commands.arguments import make_parser
from hiera_video.evaluation.frozen import CachedFeatures, FrozenEvaluation, ProbeSettings
from hiera_video.evaluation.probe import NEIGHBOURS
from hiera_video.system.errors import UserError


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("train", type=Path, help="features folder of the training videos")
    parser.add_argument("test", type=Path, help="features folder of the test videos")
    parser.add_argument(
        "--lists", nargs=2, required=True, metavar=("TRAIN", "TEST"), help="lists with the labels"
    )
    parser.add_argument(
        "--stage",
        type=int,
        default=4,
        choices=(1, 2, 3, 4),
        help="whose map the attentive probe sees",
    )
    parser.add_argument("--neighbours", type=int, default=NEIGHBOURS)
    parser.add_argument("--epochs", type=int, default=200, help="of the linear probe")
    parser.add_argument("--attentive-epochs", type=int, default=50)
    parser.add_argument(
        "--batch", type=int, default=256, help="videos; at most 64 for the attentive probe"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def main(args: argparse.Namespace) -> None:
    if min(args.neighbours, args.epochs, args.attentive_epochs, args.batch) < 1:
        raise UserError("--neighbours, --epochs, --attentive-epochs and --batch must be > 0")
    train = CachedFeatures(args.train, args.lists[0])
    test = CachedFeatures(args.test, args.lists[1], train.classes)
    settings = ProbeSettings(
        stage=args.stage,
        neighbours=args.neighbours,
        epochs=args.epochs,
        attentive_epochs=args.attentive_epochs,
        batch_size=args.batch,
        seed=args.seed,
    )
    frozen = FrozenEvaluation(train, test, settings)
    for name, features in (("training", train), ("test", test)):
        left_out = ""
        if features.left_out:
            left_out = f" ({features.left_out} without a label or features)"
        print(f"{name} videos: {len(features)}{left_out}")
    result: dict[str, dict[str, Any]] = {
        "nearest neighbours": frozen.nearest_neighbours(),
        "linear": frozen.linear(),
    }
    if frozen.has_maps:
        result["linear in time"] = frozen.linear_in_time()
        result["attentive"] = frozen.attentive()
    else:
        print(
            "no attentive probe: the features hold no whole maps; "
            f"extract them with features.stages=[{args.stage}]"
        )
    print_result(result)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def print_result(result: dict[str, dict[str, Any]]) -> None:
    for name, row in result.items():
        tried = [of_rate["rate"] for of_rate in row.get("by_rate", [])]
        if tried and row["rate"] in (tried[0], tried[-1]):
            print(
                f"{name}: the best rate, {row['rate']:g}, is at the end of those tried; "
                "one beyond it may be better"
            )
    print("\n| probe | rate | top-1 | top-5 |\n|---|---|---|---|")
    for name, row in result.items():
        print(f"| {name} | {row.get('rate', '')} | {row['top1']:.2f} | {row['top5']:.2f} |")

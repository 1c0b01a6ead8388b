"""From your own videos to a tested model: checks, splits, trains, tests, writes the report.

    hiera-video own my_videos/             # my_videos/CLASS/VIDEO.mp4
    hiera-video own clips.csv --folds 5    # a table: path,label[,start_s,end_s][,group][,split]

Every video is opened; those that cannot be read are named and left out. A row may be a segment of a
video, and have several labels, joined by `;`; none of them is nothing of that. Videos, or the
groups of a column (`group`, or --group), are drawn into train, val and test, unless a column
`split` says where each row belongs. Between segments, rows of "nothing" are added (--background).
The preset is chosen by the machine: quick (a CPU), standard (a GPU), thorough (one of 20 GB and
more); configs/own/ has them. Training ends early where validation does not become better.

A command that was killed goes on by the same command. Everything is in --output, a run folder; of
--folds K, a run folder a fold and folds.csv, a table of all.
"""

import argparse
import csv
import json
import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hiera_video.commands.arguments import add_overrides, make_parser
from hiera_video.config import Config, load_config
from hiera_video.stages.own import (
    NOTHING,
    OwnVideos,
    Row,
    background,
    by_number,
    draw_folds,
    draw_parts,
    measure_videos,
    read_own,
    without_unread,
    write_lists,
    write_unread,
)
from hiera_video.system.errors import UserError
from hiera_video.system.files import write_csv

PRESETS = ("quick", "standard", "thorough")
LARGE_GIB = 20  # of a GPU that takes `thorough`
LEAST_STEPS = 300
UNEVEN = 3.0  # times the rows of the rarest class, above which classes are drawn evenly
LONGEST = 8  # data.sampling_rate
BEST = "checkpoints/best"
FEW = 10  # test videos of a class that say little
FIGURES = {
    "top1": "top-1",
    "mean_class": "mean of the classes",
    "macro_f1": "macro F1",
    "map": "mAP",
    "f1_micro": "micro F1",
    "f1_macro": "macro F1",
}


@dataclass(frozen=True)
class Part:
    """A run: all of the command, or one fold."""

    folder: Path
    rows: list[Row]


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("videos", type=Path, help="folder of class folders, or a table")
    add("--output", type=Path, help="default: runs/own/NAME")
    add("--preset", choices=PRESETS, help="default: by the machine")
    add("--weights", help="to start from; `none`: random ones; default: the preset's")
    add("--group", metavar="COLUMN", help="values of a table's column stay on one side of a split")
    add("--folds", type=int, default=1, metavar="K", help="cross-validation over the groups")
    add("--background", type=float, default=0.5, metavar="SHARE", help="rows of nothing, per row")
    add("--seed", type=int, default=0, help="of the split and of training")
    add("--dry-run", action="store_true", help="check, split, say what training costs; no training")
    add_overrides(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    if args.background < 0 or args.folds < 1:
        raise UserError("--background must be >= 0 and --folds >= 1")
    own = read_own(args.videos, group=args.group, say=print)
    if args.folds > 1 and own.rows[0].part:
        raise UserError(f"--folds {args.folds}: {args.videos} says itself what is tested (split)")
    output = args.output or Path("runs/own") / args.videos.absolute().stem
    preset = args.preset or preset_of_machine()
    first = load_config(preset_file(preset), args.overrides)  # for its errors
    own, lengths_s = checked(own, first, args.videos, output)
    if args.folds == 1:
        parts = [Part(output, draw_parts(own, seed=args.seed))]
    else:
        folds = draw_folds(own, args.folds, seed=args.seed)
        parts = [Part(output / f"fold_{k}", rows) for k, rows in enumerate(folds, start=1)]
    configs = []
    for part in parts:
        gaps = []
        if own.has_segments and args.background:
            gaps = background(own, part.rows, lengths_s, share=args.background)
        counts = write_lists(part.folder / "lists", own, [*part.rows, *gaps])
        configs.append(config_of(args, own, part, preset, counts))
        print(describe(own, part, counts, len(gaps)))
        trained = {label for row in part.rows if row.part == "train" for label in row.labels}
        never = [name for name in own.names if name not in trained]
        if never:
            print(f"WARNING: {len(never)} classes have no row to train on: {', '.join(never[:3])}")
    print(f"preset {preset} (configs/own/{preset}.yaml)")
    from hiera_video.stages.dry_run import dry_run
    from hiera_video.stages.run import run

    if args.dry_run:
        dry_run(replace(configs[0], stages=("train",)), ranks=1)
        return
    for part, config in zip(parts, configs):
        print(f"{part.folder}: training and testing", flush=True)
        run(replace(config, stages=("train",)))
        run(replace(config, stages=("test",)))
    if len(parts) > 1:
        print(folds_table(output, parts))
    for line in what_next(own, parts, args.videos):
        print(line)


def checked(
    own: OwnVideos, config: Config, source: Path, output: Path
) -> tuple[OwnVideos, dict[str, float]]:
    """What can be read, and the length of every video in seconds. Raises UserError."""
    from hiera_video.build import video_source

    lengths_s, unread = measure_videos(own, video_source(config, quarantine=False))
    own = without_unread(own, lengths_s, unread, source)
    if unread:
        write_unread(output, unread)
        print(f"{len(unread)} videos cannot be read and are left out: {output / 'left_out.csv'}")
    return own, lengths_s


def preset_of_machine() -> str:
    import torch

    if not torch.cuda.is_available():
        return "quick"
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    return "thorough" if gib >= LARGE_GIB else "standard"


def preset_file(name: str) -> Path:
    """The package carries configs/own/ as `presets`."""
    return Path(__file__).resolve().parents[1] / "presets" / f"{name}.yaml"


def config_of(
    args: argparse.Namespace, own: OwnVideos, part: Part, preset: str, counts: dict[str, int]
) -> Config:
    """The preset, for these lists. Raises UserError."""
    file = preset_file(preset)
    plain = load_config(file)
    lists = (part.folder / "lists").absolute()
    keys: dict[str, Any] = {
        "output": part.folder,
        "seed": args.seed,
        "data.root": own.root,
        "data.classes": lists / "classes.txt",
        **{f"data.{name}": lists / f"{name}.csv" for name in counts},
        "classify.multilabel": own.multilabel,
    }
    if counts["val"]:
        keys["test.weights"] = part.folder / BEST
    if own.has_segments:
        # Clips about as long as a segment, that lie as windows over a whole video will.
        frames = own.median_s() * plain.data.target_fps
        keys["data.clip_sampler"] = "random"
        keys["data.sampling_rate"] = min(max(round(frames / plain.data.num_frames), 1), LONGEST)
        keys["data.segment_share"] = 0.6
    if not own.multilabel and own.balance() > UNEVEN:
        keys["train.sampler"] = "balanced"
    if args.weights is not None:
        keys["init.weights"] = args.weights
    batch = min(plain.train.batch_size, max(counts["train"] // 2, 1))
    epochs = max(plain.train.epochs, math.ceil(LEAST_STEPS * batch / counts["train"]))
    longer = epochs / plain.train.epochs
    keys["train.batch_size"] = batch
    keys["train.accumulate"] = min(plain.train.accumulate, batch)
    keys["train.epochs"] = epochs
    for name in ("val_every", "save_every"):
        keys[f"train.{name}"] = getattr(plain.train, name) * longer
    keys["optim.warmup_epochs"] = plain.optim.warmup_epochs * longer
    trained = len({row.path for row in part.rows if row.part == "train"})
    if own.multilabel and not 0 < round(plain.classify.threshold_share * trained) < trained:
        keys["classify.threshold_share"] = 0  # too few to hold some out
    if not counts["val"]:
        keys |= {"train.val_every": 0, "train.patience": 0}
    given = [f"{key}={_yaml(value)}" for key, value in keys.items()]
    return load_config(file, [*given, *args.overrides])


def _yaml(value: object) -> str:
    """Quoted where YAML would read something else in it."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (str, Path)):
        return str(value)
    text = str(value)
    if "${" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError(f"{text!r}: a folder's name must be UTF-8 and without ${{: rename it")
    return json.dumps(text, ensure_ascii=False)


def describe(own: OwnVideos, part: Part, counts: dict[str, int], nothing: int) -> str:
    kind = "segments" if own.has_segments else "videos"
    more = f", {nothing} of them of nothing" if nothing else ""
    labels = "several labels a row" if own.multilabel else "one label a row"
    sides = ", ".join(f"{count} in {name}" for name, count in counts.items())
    groups = len({row.group for row in part.rows})
    held = f"{sum(counts.values())} {kind}{more}, {len(own.names)} classes, {labels}"
    return f"{part.folder / 'lists'}: {held}; {sides}; {groups} groups, none in two of them"


# -- what comes out


def folds_table(output: Path, parts: list[Part]) -> str:
    """Writes folds.csv. Returns the same as a table, with mean and spread."""
    metrics = [json.loads((part.folder / "test/metrics.json").read_text()) for part in parts]
    keys = [key for key in FIGURES if any(of_fold.get(key) is not None for of_fold in metrics)]
    rows: list[list[Any]] = [["fold", "videos", *keys]]
    for part, of_fold in zip(parts, metrics):
        rows.append([part.folder.name, of_fold["videos"], *(of_fold.get(key) for key in keys)])
    write_csv(output / "folds.csv", rows)
    lines = [f"{'':10}{'tested':>8}" + "".join(f"{FIGURES[key]:>22}" for key in keys)]
    for name, videos, *values in rows[1:]:
        cells = ["-" if value is None else f"{value:.1f}" for value in values]
        lines.append(f"{name:10}{videos:>8}" + "".join(f"{cell:>22}" for cell in cells))
    told = []
    for key in keys:
        values = [of_fold[key] for of_fold in metrics if of_fold.get(key) is not None]
        spread = f" +- {stdev(values):.1f}" if len(values) > 1 else ""
        told.append(f"{fmean(values):.1f}{spread}")
    tested = sum(of_fold["videos"] for of_fold in metrics)
    lines.append(f"{'all':10}{tested:>8}" + "".join(f"{text:>22}" for text in told))
    return "\n".join([*lines, f"(mean and standard deviation over folds) {output / 'folds.csv'}"])


def what_next(own: OwnVideos, parts: list[Part], source: Path) -> list[str]:
    """Commands and advice."""
    run = parts[0].folder
    config = load_config(run / "config.yaml")
    weights = config.test.weights or run
    lines = ["", "what next:", f"  look     {run / 'report.html'}"]
    lines.append(f"  use      hiera-video predict NEW.mp4 --weights {quote(weights)}")
    if own.has_segments:
        classes = (run / "lists/classes.txt").read_text(encoding="utf-8").splitlines()
        nothing = f" --nothing {NOTHING}" if NOTHING in classes else ""
        lines.append(
            f"  find     hiera-video find-segments --weights {quote(weights)} --videos TABLE.csv "
            f"--output found --hop-s 0.2{nothing}"
        )
    lines.append(f"  correct  hiera-video review {quote(run)} --table {quote(source)}")
    if len(parts) == 1:
        few = few_tested(run / "lists", own.multilabel)
        if few:
            lines.append(
                f"  measure  {len(few)} classes have fewer than {FEW} rows in the test "
                f"({', '.join(few[:3])}): --folds 5 --output OTHER tests on every row once"
            )
    if config.init.file is None:
        lines.append(
            "  improve  --weights hiera_base_16x224.mae_k400_ft_k400 --preset standard starts from "
            "weights that know videos (a GPU, a download)"
        )
    return lines


def few_tested(lists: Path, multilabel: bool) -> list[str]:
    with open(lists / "test.csv", newline="", encoding="utf-8", errors="surrogateescape") as f:
        written = [label for row in csv.DictReader(f) for label in row["label"].split(";")]
    names = (lists / "classes.txt").read_text(encoding="utf-8").splitlines()
    places = by_number(names, multilabel)
    return [name for k, name in enumerate(names) if written.count(str(k) if places else name) < FEW]


def quote(path: str | Path) -> str:
    """For a shell."""
    return shlex.quote(str(path))

"""What masked-autoencoder pretraining is worth, on a small data set.

    python datasets/moving_shapes.py data/moving_shapes
    hiera-video compare-pretraining --output runs/comparison

Pretrains on all training videos without their labels, once a seed. Then fine-tunes on a few
labelled ones, evenly over the classes and other ones for every seed, with and without those
weights, and tests. Frozen features are those of all videos, beside those of random weights.

Mind the control: "scratch" starts from the classifier's own initialisation, which is not the one
that the autoencoder starts from, so a difference between the two arms is not pretraining's alone.

Everything is another command's run in --output, so what is finished is not done again. Writes
table.md: top-1, mean and standard deviation over the seeds, and the nearest-neighbour probe during
pretraining.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

import hiera_video
from hiera_video import build
from hiera_video.commands.arguments import make_parser
from hiera_video.config import load_config
from hiera_video.data.lists import VideoList, read_videos
from hiera_video.system.errors import RunStopped, UserError

ARMS = ("pretrained", "scratch")
FROZEN = ("pretrained", "random")
PROBES = ("nearest neighbours", "linear", "attentive")


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=Path("data/moving_shapes"),
        help="folder of train.csv and val.csv",
    )
    add("--pretrain", default="configs/demo/pretrain.yaml", metavar="CFG")
    add("--finetune", default="configs/demo/finetune.yaml", metavar="CFG")
    add("--output", type=Path, required=True)
    add("--budgets", type=int, nargs="+", default=[40, 160, 800], help="labelled videos")
    add("--seeds", type=int, default=3)
    add("--pretrain-epochs", type=float, default=60, help="effective ones")
    add("--probes", type=int, default=6, help="during pretraining")
    add("--steps", type=int, default=500, help="of fine-tuning, for any number of labelled videos")
    add("--batch", type=int, default=16)
    add("--jobs", type=int, default=1, help="runs at a time")
    return parser


def main(args: argparse.Namespace) -> None:
    numbers = (args.seeds, args.pretrain_epochs, args.probes, args.steps, args.batch, args.jobs)
    if min(numbers) <= 0:
        raise UserError(
            "--seeds, --pretrain-epochs, --probes, --steps, --batch and --jobs must be > 0"
        )
    videos = read_videos("train.csv", root=args.data)
    if min(args.budgets) < 1 or max(args.budgets) > len(videos):
        raise UserError(
            f"--budgets {args.budgets} must be between 1 and the {len(videos)} videos of "
            f"{videos.source}"
        )
    args.output.mkdir(parents=True, exist_ok=True)
    Comparison(args, videos).run()
    table = tables(args)
    (args.output / "table.md").write_text(table)
    print(table)


class Comparison:
    def __init__(self, args: argparse.Namespace, videos: VideoList):
        self._args = args
        self._videos = videos
        self._root = f"data.root={args.data.resolve()}"

    def run(self) -> None:
        """Raises RunStopped."""
        seeds = range(self._args.seeds)
        with ThreadPoolExecutor(self._args.jobs) as pool:
            _wait_for(pool.submit(self.pretrain, seed) for seed in seeds)
            jobs = [pool.submit(self.probe_frozen, arm, seed) for arm in FROZEN for seed in seeds]
            for budget in self._args.budgets:
                for seed in seeds:
                    part = self.write_part(budget, seed)
                    for arm in ARMS:
                        jobs.append(pool.submit(self.finetune, arm, part, budget, seed))
            _wait_for(jobs)

    def pretrain(self, seed: int) -> None:
        args = self._args
        run_net(
            args.pretrain,
            args.output / f"pretrain_{seed}",
            self._root,
            f"train.epochs={args.pretrain_epochs}",
            f"train.val_every={args.pretrain_epochs / args.probes}",
            f"seed={seed}",
        )

    def finetune(self, arm: str, part: Path, budget: int, seed: int) -> None:
        args = self._args
        weights = args.output / f"pretrain_{seed}" if arm == "pretrained" else "null"
        run_net(
            args.finetune,
            args.output / f"{arm}_{budget}_{seed}",
            self._root,
            f"data.train={part}",
            f"seed={seed}",
            f"train.batch_size={args.batch}",
            f"train.epochs={args.steps * args.batch / budget}",
            "train.val_every=0",
            "train.save_every=1e9",
            f"init.weights={weights}",
        )

    def probe_frozen(self, arm: str, seed: int) -> None:
        """Writes frozen_<arm>_<seed>/probes.json."""
        args = self._args
        output = args.output / f"frozen_{arm}_{seed}"
        weights = args.output / f"pretrain_{seed}"
        if arm == "random":
            weights = args.output / f"random_{seed}.safetensors"
            config = load_config(args.pretrain, [self._root, f"seed={seed}"])
            model = build.build_model(build.model_spec(config, None), seed=seed)
            save_file(model.state_dict(), weights)
        lists = [args.data / "train.csv", args.data / "val.csv"]
        for split, videos in zip(("train", "val"), lists):
            run_command(
                output,
                *("extract-features", "--cfg", args.pretrain, "--weights", weights),
                *("--videos", videos, "--output", output / split),
                *(self._root, "features.stages=[4]"),
            )
        if not (output / "probes.json").exists():
            run_command(
                output,
                *("probe", output / "train", output / "val", "--lists", *lists),
                *("--seed", seed, "--json", output / "probes.json"),
            )

    def write_part(self, budget: int, seed: int) -> Path:
        """A list of `budget` labelled videos."""
        part = (self._args.output / f"train_{budget}_{seed}.csv").resolve()
        rows = labelled_part(self._videos, budget, seed)
        part.write_text("".join(f"{self._videos.line(row)}\n" for row in rows))
        return part


def run_command(output: Path, *arguments: object) -> None:
    """In a process of its own. Raises RunStopped with its last line if it fails."""
    command = [sys.executable, "-m", "hiera_video", *map(str, arguments)]
    # The same code as this process runs, from any folder.
    paths = [str(Path(hiera_video.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        raise RunStopped(f"{output}: exit status {done.returncode}: {last}")
    print(f"{output}: done", flush=True)


def run_net(cfg: str, output: Path, *overrides: str) -> None:
    run_command(output, "run", "--cfg", cfg, f"output={output}", *overrides)


def _wait_for(jobs: Iterable[Any]) -> None:
    for job in list(jobs):
        job.result()


def labelled_part(videos: VideoList, count: int, seed: int) -> list[int]:
    """`count` rows, evenly over the classes, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(videos))
    turn = np.zeros(len(videos), dtype=int)  # the how-many-th of its class a row is
    for label in np.unique(videos.labels):
        of_class = order[videos.labels[order] == label]
        turn[of_class] = np.arange(len(of_class))
    in_turns = sorted(order.tolist(), key=lambda row: turn[row])
    return sorted(in_turns[:count])


def tables(args: argparse.Namespace) -> str:
    def finetuned(arm: str, budget: int) -> str:
        def top1(seed: int) -> float:
            file = args.output / f"{arm}_{budget}_{seed}/test/metrics.json"
            return json.loads(file.read_text())["top1"]

        return spread(top1, args.seeds)

    def frozen(arm: str, probe: str) -> str:
        def top1(seed: int) -> float:
            file = args.output / f"frozen_{arm}_{seed}/probes.json"
            return json.loads(file.read_text())[probe]["top1"]

        return spread(top1, args.seeds)

    lines = table_lines("labelled videos", args.budgets, ARMS, finetuned)
    lines += ["", *table_lines("frozen features, top-1", PROBES, FROZEN, frozen)]
    lines += ["", *pretraining_lines(args)]
    return "\n".join(lines) + "\n"


def table_lines(
    title: str,
    rows: Sequence[object],
    arms: Sequence[str],
    cell: Callable[[str, Any], str],
) -> list[str]:
    lines = [f"| {title} | {' | '.join(arms)} |", "|---|---|---|"]
    for row in rows:
        lines.append(f"| {row} | {' | '.join(cell(arm, row) for arm in arms)} |")
    return lines


def pretraining_lines(args: argparse.Namespace) -> list[str]:
    """Probe and loss on the way."""
    folders = [args.output / f"pretrain_{seed}" for seed in range(args.seeds)]
    probes = [rows_of(folder, "probe") for folder in folders]
    losses = []
    for folder in folders:
        losses.append({row["step"]: row["loss"] for row in rows_of(folder, "train")})
    lines = ["| pretraining step | nearest neighbours, top-1 | loss |", "|---|---|---|"]
    for at_step in zip(*probes):
        step = at_step[0]["step"]
        seen = [of_run[step] for of_run in losses if step in of_run]
        loss = f"{statistics.mean(seen):.3f}" if len(seen) == len(losses) else ""
        top1 = spread_of([row["knn_top1"] for row in at_step])
        lines.append(f"| {step} | {top1} | {loss} |")
    return lines


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def spread(value: Callable[[int], float], seeds: int) -> str:
    return spread_of([value(seed) for seed in range(seeds)])


def spread_of(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"

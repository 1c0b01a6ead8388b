"""What masked-autoencoder pretraining is worth, on a small data set: fine-tuning from it against the same steps from scratch,
and what its frozen features are worth against those of random weights.

    python datasets/moving_shapes.py data/moving_shapes
    python tools/compare_pretraining.py --output runs/comparison

Pretrains on all training videos without their labels, once a seed, then fine-tunes on a few labelled ones, evenly over the
classes and other ones for every seed, with and without those weights, and tests. Frozen features are those of all videos, for
tools/probe.py. Everything is a run of another tool in --output, so what is finished is not done again. Writes table.md: top-1,
mean and standard deviation over the seeds, and the nearest-neighbour probe during pretraining.
"""

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

import numpy as np
from safetensors.torch import save_file

from hiera_video import build
from hiera_video.config import load_config
from hiera_video.data.annotations import VideoList, read_videos
from hiera_video.errors import RunStopped, UserError, run_command

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("pretrained", "scratch")
FROZEN = ("pretrained", "random")
PROBES = ("nearest neighbours", "linear", "attentive")


def run_tool(output: Path, tool: str, *arguments: str | Path) -> None:
    """In a process of its own. Raises RunStopped with its last line if it fails."""
    command = [sys.executable, ROOT / "tools" / tool, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RunStopped(f"{output}: exit status {done.returncode}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    print(f"{output}: done", flush=True)


def run_net(cfg: str, output: Path, *overrides: str) -> None:
    run_tool(output, "run_net.py", "--cfg", cfg, f"output={output}", *overrides)


def probe_frozen(args: argparse.Namespace, arm: str, seed: int) -> None:
    """Writes frozen_<arm>_<seed>/probes.json."""
    output, root = args.output / f"frozen_{arm}_{seed}", f"data.root={args.data.resolve()}"
    weights = args.output / f"pretrain_{seed}"
    if arm == "random":
        weights = args.output / f"random_{seed}.safetensors"
        config = load_config(args.pretrain, [root, f"seed={seed}"])
        save_file(build.build_model(*build.model_arguments(config, None), seed=seed).state_dict(), weights)
    for split in ("train", "val"):
        common = ["--cfg", args.pretrain, "--weights", weights, "--videos", args.data / f"{split}.csv"]
        run_tool(output, "extract_features.py", *common, "--output", output / split, root, "features.stages=[4]")
    if (output / "probes.json").exists():
        return
    lists = ("--lists", args.data / "train.csv", args.data / "val.csv")
    more = ("--seed", str(seed), "--json", output / "probes.json")
    run_tool(output, "probe.py", output / "train", output / "val", *lists, *more)


def labelled_part(videos: VideoList, count: int, seed: int) -> list[int]:
    """`count` rows, evenly over the classes, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(videos))
    turn = np.zeros(len(videos), dtype=int)  # the how-many-th of its class a row is
    for label in np.unique(videos.labels):
        of_class = order[videos.labels[order] == label]
        turn[of_class] = np.arange(len(of_class))
    return sorted(sorted(order.tolist(), key=lambda row: turn[row])[:count])


def rows_of(folder: Path, split: str) -> list[dict]:
    return [
        row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if row["split"] == split
    ]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def tables(args: argparse.Namespace) -> str:
    lines = [f"| labelled videos | {' | '.join(ARMS)} |", "|---|---|---|"]
    for budget in args.budgets:
        top1 = {
            arm: [
                json.loads((args.output / f"{arm}_{budget}_{seed}/test/metrics.json").read_text())["top1"]
                for seed in range(args.seeds)
            ]
            for arm in ARMS
        }
        lines.append(f"| {budget} | {' | '.join(spread(top1[arm]) for arm in ARMS)} |")
    lines += ["", f"| frozen features, top-1 | {' | '.join(FROZEN)} |", "|---|---|---|"]
    for probe in PROBES:
        found = {
            arm: [
                json.loads((args.output / f"frozen_{arm}_{seed}/probes.json").read_text())[probe]["top1"]
                for seed in range(args.seeds)
            ]
            for arm in FROZEN
        }
        lines.append(f"| {probe} | {' | '.join(spread(found[arm]) for arm in FROZEN)} |")
    probes = [rows_of(args.output / f"pretrain_{seed}", "probe") for seed in range(args.seeds)]
    lines += ["", "| pretraining step | nearest neighbours, top-1 | loss |", "|---|---|---|"]
    losses = [
        {row["step"]: row["loss"] for row in rows_of(args.output / f"pretrain_{s}", "train")} for s in range(args.seeds)
    ]
    for at_step in zip(*probes):
        step = at_step[0]["step"]
        seen = [of_run.get(step) for of_run in losses]
        loss = f"{statistics.mean(seen):.3f}" if None not in seen else ""
        lines.append(f"| {step} | {spread([row['knn_top1'] for row in at_step])} | {loss} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/moving_shapes"), help="folder of train.csv and val.csv")
    parser.add_argument("--pretrain", default="configs/demo/pretrain.yaml", metavar="CFG")
    parser.add_argument("--finetune", default="configs/demo/finetune.yaml", metavar="CFG")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--budgets", type=int, nargs="+", default=[40, 160, 800], help="labelled videos")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain-epochs", type=float, default=60, help="effective ones")
    parser.add_argument("--probes", type=int, default=6, help="during pretraining")
    parser.add_argument("--steps", type=int, default=500, help="of fine-tuning, whatever the number of labelled videos")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    if min(args.seeds, args.pretrain_epochs, args.probes, args.steps, args.batch, args.jobs) <= 0:
        raise UserError("--seeds, --pretrain-epochs, --probes, --steps, --batch and --jobs must be > 0")
    videos = read_videos("train.csv", root=args.data)
    if min(args.budgets) < 1 or max(args.budgets) > len(videos):
        raise UserError(f"--budgets {args.budgets} must be between 1 and the {len(videos)} videos of {videos.source}")
    args.output.mkdir(parents=True, exist_ok=True)
    root = f"data.root={args.data.resolve()}"
    seeds = range(args.seeds)
    with ThreadPoolExecutor(args.jobs) as pool:
        more = [root, f"train.epochs={args.pretrain_epochs}", f"train.val_every={args.pretrain_epochs / args.probes}"]
        jobs = [
            pool.submit(run_net, args.pretrain, args.output / f"pretrain_{seed}", *more, f"seed={seed}")
            for seed in seeds
        ]
        for job in jobs:
            job.result()
        jobs = [pool.submit(probe_frozen, args, arm, seed) for arm in FROZEN for seed in seeds]
        for budget in args.budgets:
            for seed in seeds:
                part = (args.output / f"train_{budget}_{seed}.csv").resolve()
                part.write_text("".join(f"{videos.line(row)}\n" for row in labelled_part(videos, budget, seed)))
                more = [root, f"data.train={part}", f"seed={seed}", f"train.batch_size={args.batch}"]
                more += [
                    f"train.epochs={args.steps * args.batch / budget}",
                    "train.val_every=0",
                    "train.save_every=1e9",
                ]
                for arm in ARMS:
                    weights = args.output / f"pretrain_{seed}" if arm == "pretrained" else "null"
                    output = args.output / f"{arm}_{budget}_{seed}"
                    jobs.append(pool.submit(run_net, args.finetune, output, *more, f"init.weights={weights}"))
        for job in jobs:
            job.result()
    table = tables(args)
    (args.output / "table.md").write_text(table)
    print(table)


if __name__ == "__main__":
    run_command(main)

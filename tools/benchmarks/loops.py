"""What the training and evaluation loops cost beside the model.

    python tools/benchmark.py loop                              # synthetic clips in memory
    python tools/benchmark.py loop --waiting /k400/val/*.mp4    # and the wait for real ones

The loops are those of a run; timers stand around the model's forward pass, the backward pass and
the optimizer's step (testing: the forward pass), and all else is overhead: batches, normalisation,
mixing, gradient norm, moving average, log. The wait for real clips, with 0, 1 and 2 workers, is
what a run writes to metrics.jsonl. Without videos a Kinetics-like one is made.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from benchmarks.shared import (
    SIZES,
    describe,
    make_kinetics_like,
    make_parser,
    print_table,
    write_figures,
)

from hiera_video.config import ClassifyConfig, OptimConfig, TrainConfig, load_config
from hiera_video.evaluation.loop import Forward, evaluate, predict_logits
from hiera_video.evaluation.scores import ViewScores
from hiera_video.models import create_hiera
from hiera_video.stages.run import run
from hiera_video.system.distributed import World
from hiera_video.system.errors import UserError
from hiera_video.system.log import RunLog
from hiera_video.training.interval import BadVideos
from hiera_video.training.loop import TrainRun, train
from hiera_video.training.optim import Ema, make_optimizer
from hiera_video.training.plan import Plan
from hiera_video.training.tasks import Classify

CLASSES = 400
CONFIG = "configs/K400/hiera_b_16x4.yaml"
MEAN = (0.45, 0.45, 0.45)
STD = (0.225, 0.225, 0.225)
ALONE = World(0, 1, torch.device("cpu"))


class NoHooks:
    """For a training loop of which nothing is kept."""

    def stop_requested(self) -> str:
        return ""

    def look(self, step: int) -> None: ...

    def save(self, step: int) -> None: ...

    def is_over(self, step: int) -> bool:
        return False

    def stopped(self, step: int, reason: str, rows: list[int]) -> NoReturn:
        raise UserError(reason)


class Clock:
    """Seconds inside the calls that it was put around."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def around(self, name: str, call):
        def timed(*arguments, **named):
            began = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - began

        return timed


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def synthetic_batch(clips: int, views: int = 1) -> dict:
    generator = torch.Generator().manual_seed(0)
    shape = (clips, views, 3, 16, 224, 224)
    return {
        "clip": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        "label": torch.arange(clips) % CLASSES,
        "erase": torch.zeros(clips, views, 4, dtype=torch.int32),
        "seed": torch.arange(clips * views).unflatten(0, (clips, views)),
        "index": torch.arange(clips),
        "row": torch.arange(clips),
        "times": [],
        "bad": [],
        "unavailable": "",
        "requested": clips,
    }


def training_overhead(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe's fine-tuning loop on one batch in memory, over and over."""
    model = create_hiera(f"hiera_{args.size}_16x224")
    recipe = ClassifyConfig(label_smoothing=0.1, mixup=0.8, cutmix=1.0)
    task = Classify(model, recipe, num_classes=CLASSES, mean=MEAN, std=STD)
    optim = OptimConfig(clip_grad=5.0, layer_decay=0.65)
    config = TrainConfig(batch_size=args.batch, ema=0.9999)
    optimizer = make_optimizer(model, optim)
    ema = Ema(model, config.ema)
    batch = synthetic_batch(args.batch)
    silent = RunLog(None)

    def steps(count: int) -> float:
        plan = Plan(count, count, 0.1, 0, 0, 0, 1.0)
        began = time.perf_counter()
        train(
            TrainRun(task, task, optimizer, ema, plan, config, optim, ALONE, seed=0),
            [batch] * count,
            NoHooks(),
            log=silent,
            bad_videos=BadVideos(str, num_videos=1, max_fraction=1.0, log=silent),
        )
        return time.perf_counter() - began

    steps(2)  # warm
    clock = Clock()
    with (
        replaced(model, "forward", clock.around("forward", model.forward)),
        replaced(torch.Tensor, "backward", clock.around("backward", torch.Tensor.backward)),
        replaced(optimizer, "step", clock.around("optimizer", optimizer.step)),
    ):
        total = steps(args.steps)
    return report(f"training step, {args.size}, {args.batch} clips", clock, total, args.steps)


def evaluation_overhead(size: str, *, videos: int, views: int = 15) -> dict[str, Any]:
    """The test loop on 15 views of a video in memory, over and over."""
    model = create_hiera(f"hiera_{size}_16x224").eval()
    batch = synthetic_batch(1, views)
    forward = Forward(ALONE.device, MEAN, STD, views_per_forward=3)

    def score(count: int) -> float:
        began = time.perf_counter()
        evaluate(
            predict_logits(model),
            [{**batch, "index": torch.tensor([k])} for k in range(count)],
            ViewScores(views // 3, 3),
            forward,
            world=ALONE,
            progress=RunLog(None).progress(count, what="test", unit="videos"),
        )
        return time.perf_counter() - began

    score(1)  # warm
    clock = Clock()
    with replaced(model, "forward", clock.around("forward", model.forward)):
        total = score(videos)
    return report(f"testing, {size}, {views} views a video", clock, total, videos)


def report(title: str, clock: Clock, total: float, count: int) -> dict:
    inside = sum(clock.spent.values())
    rows = [[name, f"{s / count:.3f}", f"{s / total:.1%}"] for name, s in clock.spent.items()]
    rows.append(["all else", f"{(total - inside) / count:.3f}", f"{1 - inside / total:.1%}"])
    print_table(rows, [title, "seconds", "share"])
    return {"seconds": total / count, "overhead": 1 - inside / total, "phases": clock.spent}


def waiting(args: argparse.Namespace, folder: Path) -> dict:
    """Training runs on real files: the share of the time that they wait for data."""
    videos = [str(Path(v).resolve()) for v in args.videos]
    videos = videos or [str(make_kinetics_like(folder / "made.mp4", keyframes=250))]
    count = args.batch * (args.steps + args.log_every)
    (folder / "train.csv").write_text(
        "".join(f"{videos[k % len(videos)]} {k % CLASSES}\n" for k in range(count))
    )
    (folder / "val.csv").write_text(f"{videos[0]} 0\n")
    rows = []
    result = {}
    for workers in (0, 1, 2):
        output = folder / f"workers_{workers}"
        overrides = [
            f"data.root={folder}",
            "data.decoder=auto",
            f"data.num_workers={workers}",
            "data.classes=null",
        ]
        overrides += [
            "stages=[train]",
            "train.epochs=1",
            "train.repeats=1",
            f"train.batch_size={args.batch}",
        ]
        overrides += [
            f"train.log_every={args.log_every}",
            f"output={output}",
            f"model.name=hiera_{args.size}_16x224",
        ]
        overrides += [
            f"model.num_classes={CLASSES}",
            "device=cpu",
            "data.manifest=" + str(folder / "manifest.sqlite"),
        ]
        run(load_config(CONFIG, overrides))
        lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        # The first line holds the start of the workers.
        seen = [row for row in lines if row["split"] == "train"][1:]
        wait = sum(row["data_wait"] for row in seen) / len(seen)
        speed = sum(row["clips_per_s"] for row in seen) / len(seen)
        said = "waits for data" in (output / "log.txt").read_text().replace(
            "of it waiting for data", ""
        )
        rows.append([str(workers), f"{wait:.1%}", f"{speed:.2f}", "yes" if said else "no"])
        result[str(workers)] = {"data_wait": wait, "clips_per_s": speed, "said": said}
    print_table(rows, ["workers", "waiting for data", "clips/s", "log says what to change"])
    return result


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("command", choices=("loop",))
    add("videos", nargs="*", help="for --waiting; default: one that is made here")
    add("--size", choices=SIZES, default="tiny")
    add("--batch", type=int, default=2, help="clips in a step")
    add("--steps", type=int, default=10)
    add("--log-every", type=int, default=2, help="steps, with --waiting")
    add("--waiting", action="store_true", help="also run on real files, with 0, 1 and 2 workers")
    return parser


def main(args: argparse.Namespace) -> None:
    missing = [video for video in args.videos if not Path(video).is_file()]
    if missing:
        raise UserError(f"there is no video {missing[0]}")
    if args.steps < 1:
        raise UserError(f"--steps {args.steps} must be > 0")
    result = describe("cpu")
    print(", ".join(f"{key} {value}" for key, value in result.items()))
    result["training"] = training_overhead(args)
    result["testing"] = evaluation_overhead(args.size, videos=2)
    if args.waiting:
        with tempfile.TemporaryDirectory() as folder:
            result["waiting"] = waiting(args, Path(folder))
    write_figures(args.json, result)

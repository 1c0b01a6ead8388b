"""What training fewer parameters saves: all of a Hiera, frozen stages, LoRA.

    python tools/benchmark.py adapt --size base --batch 8

A step is forward, backward and AdamW. Contenders take turns. Memory is the whole of it at the peak
(weights, gradients, moments, activations), each in a fresh process: of the GPU's allocator, or what
the resident set grew by from before the model was built.
"""

import argparse
import gc
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from benchmarks.models import CLIP, DTYPES, take_turns
from benchmarks.shared import SIZES, describe, make_parser, print_table, write_figures

from hiera_video.config import OptimConfig
from hiera_video.models import create_hiera
from hiera_video.models.lora import Lora
from hiera_video.system.memory import peak_gib, reset_peak
from hiera_video.training.optim import make_optimizer

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
CLASSES = 51
RANK = 16
# Frozen stages, and the rank of LoRA in the others.
WAYS = {
    "all": (0, 0),
    "freeze_stages=1": (1, 0),
    "freeze_stages=2": (2, 0),
    "freeze_stages=3": (3, 0),
    "freeze_stages=4": (4, 0),
    f"lora_rank={RANK}": (0, RANK),
    f"freeze_stages=2, lora_rank={RANK}": (2, RANK),
}


def make_step(args: argparse.Namespace, way: str) -> tuple[Callable[[], None], int]:
    """(a step, the number of parameters that it trains)"""
    stages, rank = WAYS[way]
    torch.manual_seed(0)
    model = create_hiera(f"hiera_{args.size}_16x224", num_classes=CLASSES).to(args.device)
    model.freeze(stages)
    if rank:
        Lora(rank, rank).add_to(model, seed=0)
    model.train()
    optimizer = make_optimizer(model, OptimConfig())
    clip = torch.randn(args.batch, *CLIP, device=args.device)
    labels = torch.zeros(args.batch, dtype=torch.long, device=args.device)
    dtype = DTYPES[args.dtype]

    def step() -> None:
        with torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(clip), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, sum(p.numel() for p in model.parameters() if p.requires_grad)


def memory_mib(args: argparse.Namespace, way: str) -> float:
    """At the peak of the second step, in a fresh process."""
    command = [sys.executable, str(SCRIPT), "adapt", "--size", args.size, "--device", args.device]
    command += ["--batch", str(args.batch), "--dtype", args.dtype, "--memory-of", way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_memory(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    before = reset_peak(device)
    step, _ = make_step(args, args.memory_of)
    for _ in range(2):
        step()
    print((peak_gib(device) - before) * 1024)


def parser() -> argparse.ArgumentParser:
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("command", choices=("adapt",))
    add("--size", choices=SIZES, default="base")
    add("--batch", type=int, default=2, help="clips")
    add("--rounds", type=int, default=5)
    add("--dtype", choices=tuple(DTYPES), default="float32")
    add("--device", choices=("cpu", "cuda"), default=default_device)
    add("--memory-of", choices=tuple(WAYS), help=argparse.SUPPRESS)
    return parser


def main(args: argparse.Namespace) -> None:
    if args.memory_of:
        print_memory(args)
        return
    memory = {way: memory_mib(args, way) for way in WAYS}
    made = {way: make_step(args, way) for way in WAYS}
    steps = {way: step for way, (step, _) in made.items()}
    times = take_turns(steps, rounds=args.rounds, device=args.device)
    gc.collect()
    figures = describe(args.device) | {"size": args.size, "batch": args.batch, "dtype": args.dtype}
    whole = statistics.median(times["all"])
    rows = []
    found = {}
    for way, seconds in times.items():
        middle = statistics.median(seconds)
        found[way] = {
            "trained": made[way][1],
            "best_ms": min(seconds) * 1e3,
            "median_ms": middle * 1e3,
            "memory_mib": memory[way],
        }
        cells = [way, f"{made[way][1] / 1e6:.2f}", f"{min(seconds) * 1e3:.0f}"]
        rows.append([*cells, f"{middle * 1e3:.0f}", f"{whole / middle:.2f}", f"{memory[way]:.0f}"])
    header = ["trained", "million parameters", "best ms", "median ms", "speed-up", "memory MiB"]
    print(", ".join(f"{key}: {value}" for key, value in figures.items()))
    print_table(rows, header)
    write_figures(args.json, {**figures, "ways": found})

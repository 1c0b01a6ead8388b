"""Side-by-side speed in one run: ours against the official model, and against the models that people know.

    python tools/benchmark.py model                                  # forward, B 16x224
    python tools/benchmark.py pretrain --size large --batch 2        # masked-autoencoder step: forward and backward
    python tools/benchmark.py loader --help                          # reading clips; see benchmark_data.py
    python tools/benchmark.py loop --help                            # what the loops cost beside the model

Contenders take turns, A B C A B C ..., so that a machine whose speed drifts treats them alike; ratios are of minimum and of
median times. GFLOP/s count two operations a multiply-accumulate; the share is of the matrix-product rate measured in the same
run. Memory of a step on the CPU is the resident set above its value before, one fresh process each (Linux). Prints a table,
and writes everything as JSON to --json. Without `hiera-transformer` (extra `test`) there are no official rows.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from hiera_video.errors import UserError, run_command
from hiera_video.models import create_hiera, create_hiera_mae
from hiera_video.models.flops import count_macs

SIZES = ("tiny", "small", "base", "base_plus", "large", "huge")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLIP = (3, 16, 224, 224)
MASK_RATIO = 0.9


class PlainViT(nn.Module):
    """A plain video ViT with 2x16x16 tokens, global attention, from torchvision's encoder: a yardstick, never trained."""

    def __init__(self, dim: int, depth: int, heads: int):
        super().__init__()
        from torchvision.models.vision_transformer import Encoder

        self.patch_embed = nn.Conv3d(3, dim, (2, 16, 16), (2, 16, 16))
        self.encoder = Encoder(8 * 14 * 14, depth, heads, dim, 4 * dim, 0.0, 0.0)
        self.head = nn.Linear(dim, 400)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.encoder(self.patch_embed(clip).flatten(2).transpose(1, 2)).mean(1))


def classifier(name: str, size: str) -> nn.Module:
    """Ours, the official one, or a yardstick, in eval mode with random weights."""
    torch.manual_seed(0)
    if name == "ours":
        return create_hiera(f"hiera_{size}_16x224").eval()
    if name == "official":
        return official(f"hiera_{size}_16x224").train()  # in eval it adds a softmax; nothing random is in it
    if name == "mvit_b_16x4":
        from hiera_video.models.pytorchvideo_models import create_pytorchvideo

        return create_pytorchvideo("mvit_base_16x4").eval()
    return PlainViT(*{"vit_b": (768, 12, 12), "vit_l": (1024, 24, 16)}[name]).eval()


def autoencoder(name: str, size: str) -> nn.Module:
    torch.manual_seed(0)
    return create_hiera_mae(f"hiera_{size}_16x224") if name == "ours" else official(f"mae_hiera_{size}_16x224")


def official(name: str) -> nn.Module:
    import hiera

    if not hasattr(hiera, name) and not hasattr(hiera.hiera_mae, name):
        raise UserError(f"the official release has no {name}")
    return (getattr(hiera, name, None) or getattr(hiera.hiera_mae, name))(pretrained=False)


def has_official() -> bool:
    try:
        import hiera  # noqa: F401
    except ImportError:
        return False
    return True


def forward(model: nn.Module, clip: Tensor, dtype: torch.dtype) -> None:
    with torch.no_grad(), torch.autocast(clip.device.type, dtype, enabled=dtype != torch.float32):
        model(clip)


def pretrain_step(model: nn.Module, clip: Tensor, dtype: torch.dtype) -> None:
    """Forward and backward at mask ratio 0.9, without an optimizer."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(clip.device.type, dtype, enabled=dtype != torch.float32):
        out = model(clip, mask_ratio=MASK_RATIO)
        loss = out[0]
    loss.backward()


def training_step(model: nn.Module, clip: Tensor, dtype: torch.dtype) -> None:
    """Forward and backward of fine-tuning, without an optimizer."""
    model.zero_grad(set_to_none=True)
    labels = torch.zeros(len(clip), dtype=torch.long, device=clip.device)
    with torch.autocast(clip.device.type, dtype, enabled=dtype != torch.float32):
        loss = F.cross_entropy(model(clip), labels)
    loss.backward()


STEPS = {"model": forward, "pretrain": pretrain_step, "finetune": training_step}


def timed(work: Callable[[], None], device: str) -> float:
    """Seconds of one call, the device's work included."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product: the best of several."""
    n = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    out = torch.empty(n, n, device=device, dtype=dtype)
    best = min(timed(partial(torch.mm, a, b, out=out), device) for _ in range(12))
    return 2 * n**3 / best


def take_turns(contenders: dict[str, Callable[[], None]], *, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every round, after one warm-up each."""
    for work in contenders.values():
        timed(work, device)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            times[name].append(timed(work, device))
    return times


def peak_memory_mib(args: argparse.Namespace, what: str, dtype: str) -> float | None:
    """Peak of one step above the value before it, in a fresh process on the CPU; on a GPU by its allocator, here."""
    if args.device == "cuda" or not sys.platform.startswith("linux"):
        return None
    command = [sys.executable, __file__, args.command, "--size", args.size, "--batch", str(args.batch)]
    done = subprocess.run([*command, "--memory-of", what, "--dtype", dtype], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_memory(args: argparse.Namespace) -> None:
    """The child of `peak_memory_mib`: prints one number, MiB."""
    model = build(args.command, args.memory_of, args.size)
    clip = torch.randn(args.batch, *CLIP)
    gc.collect()
    before = _resident_mib("VmRSS")
    STEPS[args.command](model, clip, DTYPES[args.dtype[0]])
    print(_resident_mib("VmHWM") - before)


def _resident_mib(field: str) -> float:
    """VmRSS: now; VmHWM: peak of this process image (getrusage would carry over the parent's)."""
    with open("/proc/self/status") as f:
        line = next(line for line in f if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def build(command: str, what: str, size: str) -> nn.Module:
    return autoencoder(what, size) if command == "pretrain" else classifier(what, size)


def macs_of(command: str, what: str, size: str, batch: int) -> int:
    """Multiply-accumulates of the work; a backward pass costs two forwards."""
    one_clip = torch.zeros(1, *CLIP)
    forward_macs = pretrain_macs(size) if command == "pretrain" else count_macs(classifier(what, size), one_clip)
    return forward_macs * batch * (1 if command == "model" else 3)


def pretrain_macs(size: str) -> int:
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.mae = create_hiera_mae(f"hiera_{size}_16x224")

        def forward(self, clip: Tensor) -> Tensor:
            return self.mae(clip, mask_ratio=MASK_RATIO).pred

    return count_macs(Step(), torch.zeros(1, *CLIP))


def print_profile(work: Callable[[], None], device: str) -> None:
    """Where one call's time goes: operators by their own time."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        work()
        synchronise(device)
    own = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda e: -getattr(e, own))
    total = sum(getattr(e, own) for e in events)
    rows = [[e.key[:60], f"{getattr(e, own) / 1e3:.0f}", f"{getattr(e, own) / total:.1%}"] for e in events[:10]]
    print_table(rows, ["operator", "ms", "share"])


def describe(device: str) -> dict:
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    return {"machine": name, "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def benchmark(args: argparse.Namespace) -> dict:
    """Measures everything that was asked for and prints the table. Returns what was measured."""
    device, result = (
        args.device,
        {"command": args.command, "size": args.size, "batch": args.batch, **describe(args.device)},
    )
    print(", ".join(f"{k} {v}" for k, v in result.items()))
    clip = torch.randn(args.batch, *CLIP, device=device)
    reference = "official" if has_official() and args.size not in ("tiny", "small") else None
    models = ["ours", *([reference] if reference else []), *(args.others if args.command == "model" else [])]
    macs = {what: macs_of(args.command, what, args.size, args.batch) for what in models if what != "official"}
    macs["official"] = macs["ours"]  # the same model
    rows = []
    for dtype in args.dtype:
        peak = matmul_rate(device, DTYPES[dtype])
        work: dict[str, tuple[str, Callable[[], None]]] = {}
        for what in models:
            model = build(args.command, what, args.size).to(device)
            work[what] = (what, partial(STEPS[args.command], model, clip, DTYPES[dtype]))
            if what == "ours" and args.compile:
                compiled = torch.compile(model)
                work["ours, compiled"] = (what, partial(STEPS[args.command], compiled, clip, DTYPES[dtype]))
        times = take_turns({k: call for k, (_, call) in work.items()}, rounds=args.rounds, device=device)
        for name, (what, _) in work.items():
            best, middle = min(times[name]), statistics.median(times[name])
            flops = 2 * macs[what] / best
            row = {"model": name, "precision": dtype, "best_ms": 1e3 * best, "median_ms": 1e3 * middle}
            row |= {"clips_per_s": args.batch / best, "gflops": flops / 1e9, "share_of_matmul": flops / peak}
            if reference:
                row["speedup_best"] = min(times[reference]) / best
                row["speedup_median"] = statistics.median(times[reference]) / middle
            if args.memory and name in ("ours", "official"):
                row["memory_mib"] = peak_memory_mib(args, what, dtype)
            rows.append(row)
        if args.profile:
            print(f"ours, {dtype}:")
            print_profile(work["ours"][1], device)
        result[f"matmul_gflops_{dtype}"] = peak / 1e9
        print(f"matrix product, {dtype}: {peak / 1e9:.0f} GFLOP/s")
    columns = list(dict.fromkeys(k for row in rows for k in row))
    print_table([[_cell(row.get(c)) for c in columns] for row in rows], columns)
    return {**result, "rows": rows}


def print_table(rows: list[list[str]], header: list[str]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    for row in [header, ["-" * w for w in widths], *rows]:
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value or "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=STEPS, help="forward, masked-autoencoder step, or fine-tuning step")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch", type=int, default=None, help="clips; default 1, 2 for a training step")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of every contender")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="float32, bfloat16 (autocast)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave peak memory out")
    parser.add_argument("--profile", action="store_true", help="also print where our eager model's time goes")
    parser.add_argument("--others", nargs="*", choices=("mvit_b_16x4", "vit_b", "vit_l"), default=[], help="yardsticks")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--memory-of", choices=("ours", "official"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batch = args.batch or (1 if args.command == "model" else 2)
    if args.memory_of:
        print_memory(args)
        return
    result = benchmark(args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] in (["loader"], ["views"]):
        import benchmark_data

        run_command(benchmark_data.main)
    elif sys.argv[1:2] == ["loop"]:
        import benchmark_loops

        run_command(benchmark_loops.main)
    else:
        run_command(main)

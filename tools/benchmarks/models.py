"""Side-by-side speed in one run: ours against the official model, and against well-known models.

    python tools/benchmark.py model                             # forward, B 16x224
    python tools/benchmark.py pretrain --size large --batch 2   # masked-autoencoder step
    python tools/benchmark.py finetune                          # forward and backward

Contenders take turns, A B C A B C ..., so that a machine whose speed drifts treats them alike;
ratios are of minimum and of median times. GFLOP/s count two operations a multiply-accumulate; the
share is of the matrix-product rate measured in the same run. Memory is that of a step above what
was held before: of the GPU's allocator, or the resident set of a fresh process (Linux). Without
`hiera-transformer` (extra `test`) there are no official rows. `pretrain` also measures a decoder on
a part of the hidden patches (mae.decoder_keep), `finetune` an encoder on a part of the mask units
(classify.keep_units).
"""

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.shared import SIZES, describe, make_parser, print_table, write_figures
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from hiera_video.models import create_hiera, create_hiera_mae, create_model
from hiera_video.models.flops import count_macs
from hiera_video.models.token_dial import TokenDial
from hiera_video.system.errors import UserError
from hiera_video.system.memory import peak_gib, reset_peak

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLIP = (3, 16, 224, 224)
MASK_RATIO = 0.9
CPU = torch.device("cpu")
# Shares of the hidden patches that the decoder sees, of the mask units that the encoder computes.
SHARES = {"model": (1.0,), "pretrain": (1.0, 0.5, 0.25), "finetune": (1.0, 0.5)}
SHARE_OF = {"pretrain": "decoder_keep", "finetune": "keep_units"}


def classifier(name: str, size: str) -> nn.Module:
    """Ours, the official one, or a yardstick, in eval mode with random weights."""
    torch.manual_seed(0)
    if name == "ours":
        return create_hiera(f"hiera_{size}_16x224").eval()
    if name == "official":
        # In eval it would add a softmax; nothing in it is random.
        return official(f"hiera_{size}_16x224").train()
    if name == "mvit_b_16x4":
        from hiera_video.models.baselines import create_pytorchvideo

        return create_pytorchvideo("mvit_base_16x4").eval()
    return create_model({"vit_b": "vit_base_16x224", "vit_l": "vit_large_16x224"}[name]).eval()


def autoencoder(name: str, size: str) -> nn.Module:
    torch.manual_seed(0)
    return (
        create_hiera_mae(f"hiera_{size}_16x224")
        if name == "ours"
        else official(f"mae_hiera_{size}_16x224")
    )


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


def forward(model: nn.Module, clip: Tensor, dtype: torch.dtype, share: float) -> None:
    with torch.no_grad(), torch.autocast(clip.device.type, dtype, enabled=dtype != torch.float32):
        model(clip)


def pretrain_step(model: nn.Module, clip: Tensor, dtype: torch.dtype, share: float) -> None:
    """Forward and backward at mask ratio 0.9, without an optimizer."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(clip.device.type, dtype, enabled=dtype != torch.float32):
        part = {} if share == 1 else {"decoder_keep": share}
        loss = model(clip, mask_ratio=MASK_RATIO, **part)[0]
    loss.backward()


def training_step(model: nn.Module, clip: Tensor, dtype: torch.dtype, share: float) -> None:
    """Forward and backward of fine-tuning, without an optimizer."""
    model.zero_grad(set_to_none=True)
    labels = torch.zeros(len(clip), dtype=torch.long, device=clip.device)
    with torch.autocast(clip.device.type, dtype, enabled=dtype != torch.float32):
        part = () if share == 1 else (TokenDial(share).choose(model, clip, range(len(clip))),)
        loss = F.cross_entropy(model(clip, *part), labels)
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


def take_turns(
    contenders: dict[str, Callable[[], None]], *, rounds: int, device: str, warm_ups: int = 2
) -> dict[str, list[float]]:
    """Seconds of every round, after warm-ups. What a GPU has no room for is left out."""
    times: dict[str, list[float]] = {}
    shown = sys.stderr.isatty()
    for name, work in tqdm(contenders.items(), desc="warm-up", disable=not shown):
        try:
            for _ in range(warm_ups):
                timed(work, device)
            times[name] = []
        except torch.OutOfMemoryError:
            print(f"{name}: out of memory")
    for _ in tqdm(range(rounds), unit="rounds", disable=not shown):
        for name in times:
            times[name].append(timed(contenders[name], device))
    return times


def peak_memory_mib(args: argparse.Namespace, what: str, dtype: str, share: float) -> float | None:
    """Of one step in a fresh process; None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    command = [sys.executable, str(SCRIPT), args.command]
    command += ["--size", args.size, "--batch", str(args.batch)]
    command += ["--memory-of", what, "--share", str(share), "--dtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_memory(args: argparse.Namespace) -> None:
    """The child of `peak_memory_mib`: prints one number, MiB."""
    model = build(args.command, args.memory_of, args.size)
    clip = torch.randn(args.batch, *CLIP)
    step = partial(STEPS[args.command], model, clip, DTYPES[args.dtype[0]], args.share)
    print(step_memory_mib(model, step, CPU))


def step_memory_mib(model: nn.Module, step: Callable[[], None], device: torch.device) -> float:
    """Peak of a step above the value before it, at which there are no gradients."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    before = reset_peak(device)
    step()
    return (peak_gib(device) - before) * 1024


def build(command: str, what: str, size: str) -> nn.Module:
    return autoencoder(what, size) if command == "pretrain" else classifier(what, size)


@cache
def macs_of(command: str, what: str, size: str, batch: int, share: float) -> int:
    """Multiply-accumulates of the work; a backward pass costs two forwards."""
    if command == "pretrain":
        forward_macs = pretrain_macs(size, share)
    else:
        model: Any = classifier(what, size)
        clip = torch.zeros(1, *CLIP)
        part = () if share == 1 else (TokenDial(share).choose(model, clip, [0]),)
        forward_macs = count_macs(model, clip, *part)
    return forward_macs * batch * (1 if command == "model" else 3)


def pretrain_macs(size: str, share: float) -> int:
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.mae = create_hiera_mae(f"hiera_{size}_16x224")

        def forward(self, clip: Tensor) -> Tensor:
            return self.mae(clip, mask_ratio=MASK_RATIO, decoder_keep=share).pred

    return count_macs(Step(), torch.zeros(1, *CLIP))


def print_profile(work: Callable[[], None], device: str) -> None:
    """Where one call's time goes: operators by their own time."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        work()
        synchronise(device)
    own = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    # Operators have the time of their kernels, which stand beside them.
    operators = [e for e in profiler.key_averages() if e.device_type == DeviceType.CPU]
    events = sorted(operators, key=lambda e: -getattr(e, own))
    total = sum(getattr(e, own) for e in events)
    rows = [
        [e.key[:60], f"{getattr(e, own) / 1e3:.0f}", f"{getattr(e, own) / total:.1%}"]
        for e in events[:10]
    ]
    print_table(rows, ["operator", "ms", "share"])


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Measures everything that was asked for and prints the table. Returns what was measured."""
    result = {"command": args.command, "size": args.size, "batch": args.batch}
    result |= describe(args.device)
    print(", ".join(f"{key} {value}" for key, value in result.items()))
    reference = "official" if has_official() and args.size not in ("tiny", "small") else None
    models = ["ours"]
    if reference:
        models.append(reference)
    if args.command == "model":
        models += args.others
    rows = []
    for dtype in args.dtype:
        rate = matmul_rate(args.device, DTYPES[dtype])
        result[f"matmul_gflops_{dtype}"] = rate / 1e9
        rows += measure(args, models, dtype, rate, reference)
        print(f"matrix product, {dtype}: {rate / 1e9:.0f} GFLOP/s")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print_table([[_cell(row.get(column)) for column in columns] for row in rows], columns)
    return {**result, "rows": rows}


def measure(
    args: argparse.Namespace, models: list[str], dtype: str, rate: float, reference: str | None
) -> list[dict[str, Any]]:
    """A row for each contender at one precision. rate: FLOP/s of a matrix product."""
    clip = torch.randn(args.batch, *CLIP, device=args.device)
    contenders: dict[str, Callable[[], None]] = {}
    model_of: dict[str, tuple[str, float]] = {}
    modules: dict[str, nn.Module] = {}
    for what in models:
        model = modules[what] = build(args.command, what, args.size).to(args.device)
        shares = args.shares or SHARES[args.command]
        for share in shares if what == "ours" else (1.0,):
            name = what if share == 1 else f"{what}, {SHARE_OF[args.command]} {share:g}"
            step = STEPS[args.command]
            contenders[name] = partial(step, model, clip, DTYPES[dtype], share)
            model_of[name] = (what, share)
            if what == "ours" and args.compile:
                # A run has one share and one size of a batch.
                compiled = torch.compile(model, dynamic=False)
                contenders[f"{name}, compiled"] = partial(
                    step, compiled, clip, DTYPES[dtype], share
                )
                model_of[f"{name}, compiled"] = (what, share)
    times = take_turns(contenders, rounds=args.rounds, device=args.device)
    rows = []
    for name in times:
        what, share = model_of[name]
        best = min(times[name])
        middle = statistics.median(times[name])
        # The official model is the same one.
        counted = "ours" if what == "official" else what
        flops = 2 * macs_of(args.command, counted, args.size, args.batch, share) / best
        row = {
            "model": name,
            "precision": dtype,
            "best_ms": 1e3 * best,
            "median_ms": 1e3 * middle,
            "clips_per_s": args.batch / best,
            "gflops": flops / 1e9,
            "share_of_matmul": flops / rate,
        }
        if "ours" in times:
            row["beside_ours"] = min(times["ours"]) / best
        if reference in times:
            row["speedup_best"] = min(times[reference]) / best
            row["speedup_median"] = statistics.median(times[reference]) / middle
        if args.memory and what in ("ours", "official") and "compiled" not in name:
            if args.device == "cuda":
                row["memory_mib"] = step_memory_mib(
                    modules[what], contenders[name], torch.device("cuda")
                )
            else:
                row["memory_mib"] = peak_memory_mib(args, what, dtype, share)
        rows.append(row)
    if args.profile and "ours" in times:
        print(f"ours, {dtype}:")
        print_profile(contenders["ours"], args.device)
    return rows


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value or "")


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("command", choices=STEPS, help="forward, masked-autoencoder step, or fine-tuning step")
    add("--size", choices=SIZES, default="base")
    add("--batch", type=int, help="clips; default 1, 2 for a training step")
    add("--rounds", type=int, default=9, help="timed rounds of every contender")
    add(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=list(DTYPES),
        help="float32, bfloat16 (autocast)",
    )
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cpu", "cuda"), default=default_device)
    add("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    add("--no-memory", dest="memory", action="store_false", help="leave peak memory out")
    add("--profile", action="store_true", help="also print where our eager model's time goes")
    add(
        "--others",
        nargs="*",
        choices=("mvit_b_16x4", "vit_b", "vit_l"),
        default=[],
        help="yardsticks",
    )
    add("--shares", type=float, nargs="+", help="of decoder_keep or keep_units, in place of all")
    add("--share", type=float, default=1.0, help=argparse.SUPPRESS)
    add("--memory-of", choices=("ours", "official"), help=argparse.SUPPRESS)
    return parser


def main(args: argparse.Namespace) -> None:
    args.batch = args.batch or (1 if args.command == "model" else 2)
    if args.memory_of:
        print_memory(args)
    elif args.shares and args.command == "model":
        raise UserError("--shares is for pretrain and finetune")
    else:
        write_figures(args.json, benchmark(args))

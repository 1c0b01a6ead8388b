"""The paper's own comparison: MViTv2's steps to Hiera, plain ViT, and four ways of masking.

    python tools/benchmark.py table1 --size large    # forward of every step, and of ViT and Hiera
    python tools/benchmark.py masking --size base    # a pretraining step in each way of Figure 4

`table1`: steps are those of the paper's Table 1, on clips of 16 x 224 x 224; a, b and c separate
and pad mask units in testing, too, as the paper did; `whole` is the same without. ViT and Hiera
stand beside them. `masking`: mask tokens in the encoder (c), beside the same network
with hidden units deleted (b: step e; d: step a, separated and padded; e: Hiera); forward and
backward of the encoder alone, and of the whole step.

Contenders take turns, A B C A B C ..; times are of the best round. Memory is the peak above what
was held before, each in a fresh process: of the GPU's allocator, or of the resident set (Linux).
"""

import argparse
import gc
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.models import CLIP, DTYPES, MASK_RATIO, matmul_rate, step_memory_mib, take_turns
from benchmarks.shared import describe, make_parser, print_table, write_figures
from torch import Tensor, nn

from hiera_video.models import create_model
from hiera_video.models.flops import count_macs, count_parameters

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
STEPS = ("mvitv2", "a", "b", "c", "d", "e", "f")
# Clips a second on an A100 in float16: paper Table 1, of L's steps; Table 17.
PAPER_STEPS = dict(zip(STEPS, (20.5, 20.7, 10.4, 26.2, 29.4, 29.8, 40.8)))
PAPER = {"vit base": 47.1, "hiera base": 133.6, "vit large": 17.8, "hiera large": 40.8}
# Of a pretraining step: the name of a way, the model's family, its arguments.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "c: tokens, step a": ("mvit_v2", {"step": "a", "masking": "tokens"}),
    "d: separate and pad, step a": ("mvit_v2", {"step": "a", "masking": "separate"}),
    "c: tokens, step e": ("mvit_v2", {"step": "e", "masking": "tokens"}),
    "b: delete, step e": ("mvit_v2", {"step": "e", "masking": "delete"}),
    "c: tokens, Hiera": ("hiera", {"masking": "tokens"}),
    "e: Hiera": ("hiera", {}),
}


def table1_models(
    size: str, *, whole: bool, kv_stride: int
) -> dict[str, tuple[str, dict[str, Any]]]:
    """name of a row -> (model, arguments)"""
    mvit = f"mvit_v2_{size}_16x224"
    pools = {"kv_stride": (1, kv_stride, kv_stride)}
    rows: dict[str, tuple[str, dict[str, Any]]] = {s: (mvit, {"step": s, **pools}) for s in STEPS}
    if whole:
        separate = {"separate": False, **pools}
        rows |= {f"{s}, whole": (mvit, {"step": s, **separate}) for s in "abc"}
    for family in ("vit", "hiera"):
        for other in ("base", size):
            rows[f"{family} {other}"] = (f"{family}_{other}_16x224", {})
    return rows


def build(name: str, arguments: dict[str, Any], device: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, **arguments).to(device)


def forward(model: nn.Module, clip: Tensor, dtype: torch.dtype) -> None:
    with torch.no_grad(), torch.autocast(clip.device.type, dtype, enabled=dtype != torch.float32):
        model(clip)


def whole_step(model: Any, clip: Tensor, dtype: torch.dtype) -> None:
    model.zero_grad(set_to_none=True)
    with torch.autocast(clip.device.type, dtype, enabled=dtype != torch.float32):
        loss = model(clip, MASK_RATIO).loss
    loss.backward()


def encoder_step(model: Any, clip: Tensor, dtype: torch.dtype) -> None:
    model.zero_grad(set_to_none=True)
    noise = torch.rand(len(clip), model.num_units, device=clip.device)
    visible = model.draw_visible(noise, MASK_RATIO)
    keep = torch.zeros(noise.shape, dtype=torch.bool, device=clip.device).scatter(1, visible, 1)
    with torch.autocast(clip.device.type, dtype, enabled=dtype != torch.float32):
        found = model.forward_encoder(clip, keep, visible)
    found.float().square().mean().backward()


MASKING = {"encoder": encoder_step, "step": whole_step}


def memory_mib(args: argparse.Namespace, row: str) -> float | None:
    """Of one call in a fresh process; None where the system does not tell, or nobody asks."""
    if not args.memory or not sys.platform.startswith("linux"):
        return None
    command = [sys.executable, str(SCRIPT), args.command, "--size", args.size]
    command += ["--kv-stride", str(args.kv_stride)]
    command += ["--batch", str(args.batch), "--dtype", args.dtype, "--device", args.device]
    done = subprocess.run(
        [*command, "--memory-of", row], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def print_memory(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    clip = torch.randn(args.batch, *CLIP, device=device)
    if args.command == "table1":
        rows = table1_models(args.size, whole=True, kv_stride=args.kv_stride)
        model = build(*rows[args.memory_of], args.device).eval()
        work: Callable[..., None] = forward
    else:
        way, _, what = args.memory_of.rpartition(" / ")
        model = masking_model(way, args)
        work = MASKING[what]
    step = partial(work, model, clip, DTYPES[args.dtype])
    print(step_memory_mib(model, step, device))


def masking_model(way: str, args: argparse.Namespace) -> nn.Module:
    family, arguments = WAYS[way]
    return build(f"mae_{family}_{args.size}_16x224", arguments, args.device)


def table1(args: argparse.Namespace) -> dict[str, Any]:
    dtype = DTYPES[args.dtype]
    clip = torch.randn(args.batch, *CLIP, device=args.device)
    named = table1_models(args.size, whole=args.whole, kv_stride=args.kv_stride)
    models = {row: build(*model, args.device).eval() for row, model in named.items()}
    work = {row: partial(forward, model, clip, dtype) for row, model in models.items()}
    times = take_turns(work, rounds=args.rounds, device=args.device, warm_ups=args.warm_ups)
    rows: dict[str, dict[str, Any]] = {}
    for row, seconds in times.items():
        macs = count_macs(models[row].cpu(), torch.zeros(1, *CLIP))
        rows[row] = {
            "gmacs": macs / 1e9,
            "million_parameters": count_parameters(models[row]) / 1e6,
            "best_ms": 1e3 * min(seconds),
            "median_ms": 1e3 * statistics.median(seconds),
            "clips_per_s": args.batch / min(seconds),
            "share_of_matmul": 2 * macs * args.batch / min(seconds) / args.rate,
            "memory_mib": memory_mib(args, row),
            "speed_ratio": ratio(times, yardstick(row), row),
            "paper_ratio": paper_ratio(row, args.size),
        }
    return rows


def ratio(times: dict[str, list[float]], beside: str, row: str) -> float | None:
    """None where a GPU had no room for the other one."""
    return min(times[beside]) / min(times[row]) if beside in times else None


def yardstick(row: str) -> str:
    """The row that its speed is compared with: MViTv2, or the ViT of the same size."""
    family, _, size = row.partition(" ")
    return f"vit {size}" if family in ("vit", "hiera") else "mvitv2"


def paper_ratio(row: str, size: str) -> float | None:
    paper = PAPER | (PAPER_STEPS if size == "large" else {})
    return paper[row] / paper[yardstick(row)] if row in paper else None


def masking(args: argparse.Namespace) -> dict[str, Any]:
    dtype = DTYPES[args.dtype]
    clip = torch.randn(args.batch, *CLIP, device=args.device)
    models = {way: masking_model(way, args) for way in WAYS}
    rows: dict[str, dict[str, Any]] = {way: {} for way in WAYS}
    for what, step in MASKING.items():
        work = {way: partial(step, model, clip, dtype) for way, model in models.items()}
        times = take_turns(work, rounds=args.rounds, device=args.device, warm_ups=args.warm_ups)
        for way, seconds in times.items():
            dense = next(other for other in WAYS if is_same_network(other, way))
            rows[way] |= {
                f"{what}_ms": 1e3 * min(seconds),
                f"{what}_speed_ratio": ratio(times, dense, way),
                f"{what}_memory_mib": memory_mib(args, f"{way} / {what}"),
            }
    gc.collect()
    return rows


def is_same_network(way: str, other: str) -> bool:
    """The first such way is the one with mask tokens."""
    return WAYS[way][1].get("step") == WAYS[other][1].get("step")


def parser() -> argparse.ArgumentParser:
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("command", choices=("table1", "masking"))
    add("--size", choices=("base", "large"), default="large")
    add("--batch", type=int, default=1, help="clips")
    add("--rounds", type=int, default=5, help="of all in turn; default 5")
    add("--warm-ups", type=int, default=2, help="calls of each before those, not timed; default 2")
    add("--dtype", choices=tuple(DTYPES), default="float32")
    add("--device", choices=("cpu", "cuda"), default=default_device)
    add("--whole", action="store_true", help="steps a, b and c also without separate-and-pad")
    add("--kv-stride", type=int, default=8, help="of keys and values in the first stage")
    add("--no-memory", dest="memory", action="store_false", help="leave peak memory out")
    add("--memory-of", help=argparse.SUPPRESS)
    return parser


def main(args: argparse.Namespace) -> None:
    if args.memory_of:
        print_memory(args)
        return
    args.rate = matmul_rate(args.device, DTYPES[args.dtype])
    figures = describe(args.device) | {
        "size": args.size,
        "batch": args.batch,
        "dtype": args.dtype,
        "matmul_gflops": args.rate / 1e9,
    }
    rows = (table1 if args.command == "table1" else masking)(args)
    print(", ".join(f"{key} {value}" for key, value in figures.items()))
    columns = list(max(rows.values(), key=len))
    cells = [[name, *(_cell(row.get(column)) for column in columns)] for name, row in rows.items()]
    print_table(cells, ["", *columns])
    write_figures(args.json, {**figures, "rows": rows})


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"

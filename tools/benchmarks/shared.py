"""What the benchmarks share: the machine in words, tables, files of figures, a video to read."""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

SIZES = ("tiny", "small", "base", "base_plus", "large", "huge")


def describe(device: str) -> dict:
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    return {
        "machine": name,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def print_table(rows: list[list[str]], header: list[str]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    for row in [header, ["-" * w for w in widths], *rows]:
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def write_figures(file: Path | None, figures: dict[str, Any]) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures, indent=1) + "\n")


def make_kinetics_like(
    path: Path, *, keyframes: int, seconds: int = 10, bit_rate: int = 1_000_000
) -> Path:
    """A drifting, noisy picture, H.264 at the given keyframe interval."""
    rng = np.random.default_rng(0)
    scene = torch.from_numpy(rng.normal(0, 1, (1, 3, 40, 60)).astype(np.float32))
    scene = (
        torch.nn.functional.interpolate(scene, (640, 960), mode="bicubic")[0]
        .permute(1, 2, 0)
        .numpy()
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = 340
        stream.height = 256
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = bit_rate
        stream.options = {
            "preset": "medium",
            "g": str(keyframes),
            "keyint_min": str(keyframes),
            "sc_threshold": "0",
        }
        for t in range(30 * seconds):
            top = int(190 + 150 * np.sin(t / 31))
            left = int(300 + 250 * np.sin(t / 47))
            image = (
                scene[top : top + 256, left : left + 340] * 60
                + 128
                + rng.normal(0, 6, (256, 340, 1))
            )
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), format="rgb24")
                )
            )
        container.mux(stream.encode())
    return path

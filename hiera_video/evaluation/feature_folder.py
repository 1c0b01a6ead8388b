"""A folder of features, read back, whatever its layout.

Legend: N videos, W windows of one of them, dim channels.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from hiera_video.evaluation.detector_files import SUFFIX, sidecar_of
from hiera_video.evaluation.features import read_manifest
from hiera_video.system.errors import UserError

MADE_OF = "made_of.json"  # what the features are of
Span = tuple[float, float]  # seconds


class FeatureFolder:
    """The videos of it that have features, in the order of their list. Raises UserError."""

    def __init__(self, folder: Path):
        try:
            self.lines = read_manifest(folder)
        except OSError as e:
            inside = folder / "features"
            hint = f"name {inside}" if inside.is_dir() else "extract features into it first"
            raise UserError(f"{folder}: no manifest.csv; {hint}") from e
        if self.lines and not {"path", "file", "num_clips", "status"} <= self.lines[0].keys():
            raise UserError(f"{folder}/manifest.csv is not of features")
        self.folder = folder
        # Numbers of the manifest's lines.
        self.rows = [row for row, line in enumerate(self.lines) if line["status"] == "ok"]

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, rows: list[int]) -> "FeatureFolder":
        """Of these lines of the manifest alone."""
        part = copy.copy(self)
        part.rows = rows
        return part

    def path(self, k: int) -> str:
        """As the list has it."""
        return self._line(k)["path"]

    def windows(self, k: int) -> int:
        return int(self._line(k)["num_clips"])

    def features(self, k: int) -> Tensor:
        """float32 [W, dim]"""
        return self.read(k, "features")

    def times(self, k: int) -> np.ndarray:
        """[W, 2], seconds"""
        file = self.file(k)
        if file.suffix != SUFFIX:
            return self.read(k, "times", dtype=torch.float64).numpy()
        fps = json.loads(sidecar_of(file).read_text())["fps"]
        facts = json.loads((self.folder / "features.json").read_text())
        starts = np.arange(self.windows(k)) * facts["stride_frames"]
        return np.stack([starts, starts + facts["window_frames"]], axis=1) / fps

    def read(
        self, k: int, name: str, which: int | None = None, *, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """A tensor of the video's windows, or of one of them: [W, ..]"""
        file = self.file(k)
        if file.suffix == SUFFIX:
            whole = torch.from_numpy(np.load(file))
            return whole if which is None else whole[which : which + 1]
        first = int(self._line(k).get("first") or 0)
        count = self.windows(k)
        if which is not None:
            first += which
            count = 1
        with safe_open(file, "pt") as f:
            return f.get_slice(name)[first : first + count].to(dtype)

    def shape(self, name: str) -> list[int] | None:
        """Of a window's tensor; None where there is no such tensor."""
        file = self.file(0)
        if file.suffix == SUFFIX:
            return list(np.load(file, mmap_mode="r").shape[1:]) if name == "features" else None
        with safe_open(file, "pt") as f:
            return f.get_slice(name).get_shape()[1:] if name in set(f.keys()) else None

    def made_of(self) -> dict[str, Any]:
        """What it says of its weights; nothing where it does not."""
        card = self.folder / MADE_OF
        return json.loads(card.read_text()) if card.exists() else {}

    def check(self) -> None:
        """Raises UserError for the first file that is not there."""
        for k in range(len(self)):
            if not self.file(k).is_file():
                raise UserError(
                    f"{self.file(k)} is not there, though manifest.csv names it; extract the "
                    "features again"
                )

    def file(self, k: int) -> Path:
        return self.folder / self._line(k)["file"]

    def _line(self, k: int) -> dict[str, str]:
        return self.lines[self.rows[k]]


def span_of(times: np.ndarray, first: int, length: int) -> Span:
    """Of windows that follow each other; times: [W, 2]"""
    return float(times[first, 0]), float(times[first + length - 1, 1])


def extent_of(times: np.ndarray) -> Span:
    """Of all windows, which reach to the end of a video; times: [W, 2]"""
    return float(times[0, 0]), float(times[-1, 1])


def gap_of(times: np.ndarray) -> float:
    """Seconds from window to window, or of the only one; times: [W, 2]"""
    if len(times) > 1 and times[1, 0] > times[0, 0]:
        return float(times[1, 0] - times[0, 0])
    return float(times[0, 1] - times[0, 0])

"""The published weights, by name: `hiera_base_16x224.mae_k400_ft_k400`.

A name is a model's, and what it was trained on: `mae_k400` is a masked autoencoder's file,
`mae_k400_ft_k400` that of the classifier that was fine-tuned from it. Names and files are the
official package's (hiera-transformer, hiera.py and hiera_mae.py).
"""

import difflib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch

from hiera_video.models.zoo import INPUTS, create_model
from hiera_video.system.download import download
from hiera_video.system.stores import is_remote

BASE_URL = "https://dl.fbaipublicfiles.com/hiera"
BASE_URL_KEY = "HIERA_VIDEO_WEIGHTS_URL"  # of the environment: a mirror
CLASSES = {"k400": 400, "in1k": 1000}
LICENCE = "CC BY-NC 4.0"  # LICENSE.models of the official repository
# Published top-1 (paper Tables 4 and 8): 5 x 3 views of a video, one of an image.
TOP1 = {
    "hiera_tiny_224": 82.8,
    "hiera_small_224": 83.8,
    "hiera_base_224": 84.5,
    "hiera_base_plus_224": 85.2,
    "hiera_large_224": 86.1,
    "hiera_huge_224": 86.9,
    "hiera_base_16x224": 84.0,
    "hiera_base_plus_16x224": 85.0,
    "hiera_large_16x224": 87.3,
    "hiera_huge_16x224": 87.8,
}


@dataclass(frozen=True)
class Published:
    name: str
    model: str  # of the zoo
    data: str  # k400, or in1k (images)
    top1: float | None  # in percent; none of an autoencoder

    @property
    def file(self) -> Path:
        """Where it is kept: torch hub's folder."""
        return Path(torch.hub.get_dir()) / "checkpoints" / f"{self.model}.pth"

    @property
    def url(self) -> str:
        base = os.environ.get(BASE_URL_KEY, BASE_URL).rstrip("/")
        if not is_remote(base):
            raise ValueError(f"{BASE_URL_KEY}={base} must be a URL")
        return f"{base}/{self.model}.pth"

    @property
    def count_classes(self) -> int:
        """0 of an autoencoder."""
        return 0 if self.top1 is None else CLASSES[self.data]

    @property
    def input_size(self) -> tuple[int, ...]:
        return INPUTS[self.model.rpartition("_")[2]]["input_size"]

    @property
    def parameters(self) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in create_model(self.model).parameters())

    @property
    def classes(self) -> list[str]:
        """Names of the classes; none of an autoencoder, nor of an image model."""
        if self.top1 is None or self.data != "k400":
            return []
        return (files("hiera_video") / "labels/k400.txt").read_text().splitlines()

    def metadata(self) -> dict[str, Any]:
        """What a weight file of ours would say of itself (weights.py)."""
        return {"model": {"name": self.model}, "classes": self.classes}

    def fetched(self) -> Path:
        """The file, downloaded if it is not there. Raises ValueError."""
        try:
            if download(self.url, self.file):
                print(f"{self.name}: licence {LICENCE}, in {self.file}", file=sys.stderr)
        except OSError as e:
            reason = e.reason if type(e) is URLError else e
            raise ValueError(
                f"{self.name} cannot be had from {self.url}: {reason}; fetch it elsewhere and put "
                f"it at {self.file}, or name a mirror in {BASE_URL_KEY}"
            ) from e
        return self.file


def _all() -> dict[str, Published]:
    found: dict[str, Published] = {}
    for model, top1 in TOP1.items():
        data = "k400" if model.endswith("_16x224") else "in1k"
        tuned = Published(f"{model}.mae_{data}_ft_{data}", model, data, top1)
        pretrained = Published(f"{model}.mae_{data}", f"mae_{model}", data, None)
        found |= {tuned.name: tuned, pretrained.name: pretrained}
    return found


PUBLISHED = _all()


def pixel_statistics(arguments: Mapping[str, Any]) -> dict[str, list[float]]:
    """Mean and std of pixels, 0 to 1, with which a model of these arguments is published.

    ImageNet's for images and for VideoMAE, whose positions are not learned; else Kinetics'.
    """
    if len(arguments["input_size"]) == 3 and not arguments.get("sincos_pos_embed"):
        return {"mean": [0.45] * 3, "std": [0.225] * 3}
    return {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def published(name: str | Path) -> Published | None:
    """By its name; that of an autoencoder may begin with `mae_`, as the official one does.

    None where a file or folder of that name is there.
    """
    text = str(name)
    found = PUBLISHED.get(text.removeprefix("mae_"))
    if found is None or Path(name).exists():
        return None
    return found if found.name == text or found.top1 is None else None


def nearest(name: str) -> str:
    """For a message: a published name that looks meant; empty if none does."""
    near = difflib.get_close_matches(name, PUBLISHED, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""

"""What a study compares, and the runs that takes.

Every arm is fine-tuned on the same parts of the training list, for the same steps, with the same
seeds and at the same rates; only what it starts from differs:

    pretrained   the masked autoencoder after its pretraining
    same start   the same autoencoder before its first step
    published    the classifier's own initialisation
    baseline     another model, from its own initialisation

and `same start, equal time` and `baseline, equal time` get pretraining's time as steps on labels.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hiera_video.data.lists import VideoList
from hiera_video.system.errors import UserError

PRETRAINED = "pretrained"
SAME_START = "same start"
PUBLISHED = "published"
BASELINE = "baseline"
EQUAL_TIME = ", equal time"
ARMS = (PRETRAINED, SAME_START, PUBLISHED, BASELINE)


def earlier(step: int) -> str:
    """The arm that starts from that step of the pretraining."""
    return f"{PRETRAINED} for {step} steps"


def step_of(arm: str) -> int | None:
    """The step of such an arm."""
    found = re.fullmatch(rf"{PRETRAINED} for (\d+) steps", arm)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Pretraining:
    """A way to pretrain: the config, or the config with something changed."""

    name: str
    overrides: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Pretraining":
        """`NAME:key=value,key=value`. Raises UserError."""
        name, _, changes = text.partition(":")
        overrides = tuple(changes.split(","))
        if not name or not all("=" in change for change in overrides) or name in ARMS:
            raise UserError(f"--also {text!r} must be NAME:key=value,key=value, with a new name")
        return cls(name, overrides)


@dataclass(frozen=True)
class Run:
    """One fine-tuning and its test."""

    arm: str
    budget: float  # share of the labelled videos
    rate: float
    seed: int
    steps: int
    weights: Path | None  # what it starts from; None: the model's own initialisation
    cfg: str

    @property
    def name(self) -> str:
        """Of its folder."""
        arm = self.arm.replace(", ", "_").replace(" ", "_")
        return f"{arm}_{self.budget:g}_{self.rate:g}_{self.seed}"


def labelled_part(videos: VideoList, share: float, seed: int) -> list[int]:
    """A share of the rows, evenly over the classes, drawn by the seed; sorted."""
    order = np.random.default_rng(seed).permutation(len(videos))
    turn = np.zeros(len(videos), dtype=int)  # the how-many-th of its class a row is
    for label in np.unique(videos.labels):
        of_class = order[videos.labels[order] == label]
        turn[of_class] = np.arange(len(of_class))
    in_turns = sorted(order.tolist(), key=lambda row: turn[row])
    count = max(1, round(share * len(videos)))
    return sorted(in_turns[:count])


def write_part(file: Path, videos: VideoList, rows: Sequence[int]) -> None:
    """A list of those rows, of the kind that the whole list is; paths are whole."""
    lines = "".join(f"{videos.line(row, os.path.abspath(videos.path(row)))}\n" for row in rows)
    file.write_text(videos.head() + lines, encoding="utf-8", errors="surrogateescape")

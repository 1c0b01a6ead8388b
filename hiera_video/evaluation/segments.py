"""From scores of windows to segments: what happens from when to when."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Segment(NamedTuple):
    label: str
    score: float
    start_s: float
    end_s: float

    def frames(self, fps: float, count: int) -> tuple[int, int]:
        """The first and the last frame that it shows, from 0, of `count` at an even rate."""
        first = min(round(self.start_s * fps), count - 1)
        return first, max(first, min(round(self.end_s * fps), count) - 1)


def segments_of(
    times: np.ndarray, best: Sequence[tuple[str, float]], *, least: float
) -> list[Segment]:
    """Windows that follow each other with one best class, of a score of `least` or more.

    times: [W, 2], seconds. best: class and score of each window. One window ends, and the next
    begins, midway between their centres. The score is the mean.
    """
    centres = times.mean(1)
    edges = [times[0, 0], *(centres[:-1] + centres[1:]) / 2, times[-1, 1]]
    found: list[Segment] = []
    scores: list[float] = []
    for k, (label, score) in enumerate(best):
        if score < least:
            scores = []
            continue
        if scores and found[-1].label == label:
            scores.append(score)
            found[-1] = found[-1]._replace(score=float(np.mean(scores)), end_s=float(edges[k + 1]))
        else:
            scores = [score]
            found.append(Segment(label, score, float(edges[k]), float(edges[k + 1])))
    return found


EDGES = ("centres", "windows")


@dataclass(frozen=True)
class SegmentSettings:
    """How scores over time become segments.

    smooth_s: seconds over which scores are averaged; 0: not at all. A segment begins where the
    score reaches `high`, and ends where it falls below `low`. least_s: shorter ones are dropped.
    edges: `centres`, one window ends and the next begins midway between their centres; `windows`, a
    segment is all that its windows show, for what is only known when it is seen whole.
    """

    smooth_s: float = 0.0
    high: float = 0.5
    low: float = 0.3
    least_s: float = 0.0
    edges: str = "centres"

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"low={self.low}, high={self.high}: 0 <= low <= high <= 1")
        if min(self.smooth_s, self.least_s) < 0:
            raise ValueError(f"smooth_s={self.smooth_s}, least_s={self.least_s}: both >= 0")
        if self.edges not in EDGES:
            raise ValueError(f"edges={self.edges!r} must be one of {', '.join(EDGES)}")


def find_segments(
    times: np.ndarray, scores: np.ndarray, names: Sequence[str], settings: SegmentSettings
) -> list[Segment]:
    """Of every class on its own, by when they begin. times: [W, 2], seconds; scores: [W, classes]

    A segment's score is the mean of its windows'.
    """
    centres = times.mean(1)
    edges = np.concatenate([times[:1, 0], (centres[:-1] + centres[1:]) / 2, times[-1:, 1]])
    starts, ends = (edges[:-1], edges[1:]) if settings.edges == "centres" else times.T
    smooth = smoothed(centres, scores, settings.smooth_s)
    found = []
    for c, name in enumerate(names):
        for first, last in runs(smooth[:, c], high=settings.high, low=settings.low):
            start = float(starts[first])
            end = float(ends[last])
            if end - start >= settings.least_s:
                score = float(smooth[first : last + 1, c].mean())
                found.append(Segment(name, score, start, end))
    return sorted(found, key=lambda segment: segment.start_s)


def smoothed(centres: np.ndarray, scores: np.ndarray, smooth_s: float) -> np.ndarray:
    """The mean over windows whose centres are at most half of `smooth_s` away."""
    if smooth_s == 0:
        return scores
    near = np.abs(centres[:, None] - centres[None]) <= smooth_s / 2 + 1e-9
    return near @ scores / near.sum(1, keepdims=True)


def runs(scores: np.ndarray, *, high: float, low: float) -> list[tuple[int, int]]:
    """(first, last) of the windows at `low` or above of which one is at `high` or above."""
    above = np.concatenate([[False], scores >= low, [False]])
    firsts = np.flatnonzero(above[1:] & ~above[:-1])
    lasts = np.flatnonzero(above[:-1] & ~above[1:]) - 1
    found = zip(firsts.tolist(), lasts.tolist())
    return [(first, last) for first, last in found if scores[first : last + 1].max() >= high]

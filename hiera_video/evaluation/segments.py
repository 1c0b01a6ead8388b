"""From scores of windows to segments: what happens from when to when."""

from collections.abc import Sequence
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

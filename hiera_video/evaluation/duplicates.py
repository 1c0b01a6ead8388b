"""Near-duplicates: videos that features find near each other, and whose frames are the same.

Features name a few neighbours of each video; their frames (same_frames.py) decide. What is the
same of two videos may be a part of both, as long as it is the whole of one of them, a window or so
aside.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hiera_video.evaluation.likeness import Match, Windows, matches


class Pair(NamedTuple):
    """Videos by their numbers; `match` lays the windows of the first beside the second's."""

    first: int
    match: Match


def near_pairs(
    windows: Windows,
    *,
    neighbours: int,
    allowed: Callable[[int], Tensor],
    advance: Callable[[], object],
) -> list[Pair]:
    """Every video with its nearest ones, each pair once, nearest first.

    allowed: video -> bool [V], the videos that make a pair with it. advance: called after every
    video.
    """
    found: dict[tuple[int, int], Pair] = {}
    for video in range(len(windows)):
        near = matches(windows.of(video), windows, top=neighbours, allowed=allowed(video))
        for match in near:
            pair = (min(video, match.video), max(video, match.video))
            found.setdefault(pair, Pair(video, match))
        advance()
    return sorted(found.values(), key=lambda pair: -pair.match.score)

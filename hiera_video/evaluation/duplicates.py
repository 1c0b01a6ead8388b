"""Near-duplicates: pairs of videos that features find alike, and whose frames are the same.

Features name a few neighbours of each video; their frames (same_frames.py) decide. What is the
same of two videos may be a part of both, as long as it is the whole of one of them, a window or so
aside.

Legend: n windows of a video, dim channels.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from hiera_video.evaluation.likeness import Match, Windows, matches

NEIGHBOURS = 10  # of a video that are looked at
REFUSED = 2  # of them, one after the other, after which the others are further away
LEAST = 0.3  # cosine of whitened features, below which nobody looks at frames


class Pair(NamedTuple):
    """Videos by their numbers; `match` lays the windows of the first beside the second's."""

    first: int
    match: Match
    frames: float | None  # how alike their frames are; None where nobody looked


class Neighbours(Protocol):
    def __call__(self, video: int) -> list[Match]:
        """The nearest videos, itself left out, nearest first."""


def exact_neighbours(windows: Windows) -> Neighbours:
    def near(video: int) -> list[Match]:
        found = matches(windows.of(video), windows, top=NEIGHBOURS + 1)
        return [match for match in found if match.video != video][:NEIGHBOURS]

    return near


def near_duplicates(
    count: int,
    near: Neighbours,
    *,
    is_wanted: Callable[[int, int], bool],
    look: Callable[[int, Match], float | None],
    least: float,
    least_features: float,
    advance: Callable[[], None],
) -> Iterator[Pair]:
    """Pairs of `count` videos, each once.

    is_wanted: whether a pair of videos is asked for. look: how alike their frames are, from 0 to 1;
    None where they cannot be read: then cosines of at least `least_features` are believed. least:
    of frames. advance: called after every video.
    """
    seen: set[tuple[int, int]] = set()
    for video in range(count):
        refused = 0
        for match in near(video):
            if match.score < LEAST or refused == REFUSED:
                break
            pair = (min(video, match.video), max(video, match.video))
            if pair in seen or not is_wanted(*pair):
                continue
            seen.add(pair)
            frames = look(video, match)
            alike = match.score >= least_features if frames is None else frames >= least
            if alike:
                refused = 0
                yield Pair(video, match, frames)
            else:
                refused += 1
        advance()

"""Whether two videos show the same frames: asked of pairs that features find alike.

Features tell what a video is about; two takes of one scene can lie as near to each other as a video
and its trimmed copy. Small grey frames tell them apart: in a copy they are the same, and so is what
changes in them over time.

Legend: N frames, S x S pixels.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from hiera_video.data.decode.source import VideoSource
from hiera_video.evaluation.feature_folder import Span
from hiera_video.system.errors import VideoError
from hiera_video.system.files import exists

SIDE = 16  # pixels of a small frame, on both sides
PART_S = 2.4  # of a video that is looked at
FRAMES = 24  # of it
STILL = 1.0  # grey levels, of the change over time, below which it is noise
HELD = 8  # frames of full size at a time
MOST_SLACK_S = 2.0  # that windows may lie early or late
# Powers that set copies and others apart: chosen on MovingShapes, and on GRID and MIRACL, whose
# takes are of the same people before the same wall.
OF_FRAMES = 6
OF_STILLS = 12
# Copies of MovingShapes, GRID and MIRACL have 0.81 and more, but for one of 11 frames at half its
# size (0.61); other pairs of a few thousand 0.73 and less, and one of 1.8 million 0.77.
SAME = 0.79


class Alike(NamedTuple):
    score: float  # from 0 to 1; SAME and more in copies
    offset_s: float  # from a moment of the first to the same one of the second


def same_part(
    span: Span, extents: tuple[Span, Span], offset_s: float, *, gap_s: float
) -> tuple[Span, Span]:
    """Seconds of both that are the same.

    span: of the first, by windows, which may leave a `gap_s` at its ends. extents: all of both.
    """
    (first, last), (other_first, other_last) = extents
    start = max(span[0] - gap_s, first, other_first - offset_s)
    end = min(span[1] + gap_s, last, other_last - offset_s)
    return (start, end), (start + offset_s, end + offset_s)


class SmallFrames(NamedTuple):
    frames: np.ndarray  # float32 [N, S, S], grey levels from 0 to 255
    times: np.ndarray  # [N], seconds
    gap_s: float  # from frame to frame of the video


class FrameLook:
    """Looks at the frames of pairs of videos, from several threads.

    unread: where videos lie that could not be read -> why. read: those that could.
    """

    def __init__(self, make_source: Callable[[], VideoSource]):
        """make_source: called once a thread."""
        self.unread: dict[str, str] = {}
        self.read: set[str] = set()
        self._make_source = make_source
        self._of_thread = threading.local()
        self._sources: list[VideoSource] = []

    def __call__(
        self, places: Sequence[str], spans: Sequence[Span], *, slack_s: float
    ) -> Alike | None:
        """A power of the correlation of their frames, times that of what changes in them.

        places, spans: of the two; seconds that may show the same, `slack_s` early or late. A part
        in the middle is looked at. None where one of them cannot be read. Raises Unavailable.
        """
        lengths = [end - start for start, end in spans]
        half = min(PART_S, *lengths) / 2
        slack_s = min(slack_s, MOST_SLACK_S)
        middle = [(start + end) / 2 for start, end in spans]
        ours = self._part(places[0], middle[0], half, most=FRAMES)
        theirs = self._part(places[1], middle[1], half + slack_s)
        if ours is None or theirs is None:
            return None
        best = Alike(0.0, middle[1] - middle[0])
        for shift in np.arange(-slack_s, slack_s + theirs.gap_s / 2, theirs.gap_s):
            offset = middle[1] - middle[0] + float(shift)
            wanted = ours.times + offset
            early = wanted < theirs.times[0] - theirs.gap_s
            there = ~early & (wanted <= theirs.times[-1] + theirs.gap_s)
            if there.sum() < max(1, len(wanted) / 2):
                continue
            nearest = np.abs(theirs.times[None] - wanted[there][:, None]).argmin(1)
            score = alike(ours.frames[there], theirs.frames[nearest])
            if score > best.score:
                best = Alike(score, offset)
        return best

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def _part(
        self, place: str, middle: float, half: float, *, most: int | None = None
    ) -> SmallFrames | None:
        """Frames around a moment, evenly at most so many."""
        if place in self.unread:
            return None
        try:
            if not exists(place):
                raise VideoError("no such file")
            with self._source().open(place) as video:
                times = video.info.times
                chosen = np.flatnonzero(np.abs(times - middle) <= half)
                if len(chosen) == 0:
                    return None
                if most is not None:
                    some = np.linspace(0, len(chosen) - 1, min(most, len(chosen)))
                    chosen = chosen[some.astype(int)]
                frames = small_frames(video, chosen)
                self.read.add(place)
                return SmallFrames(frames, times[chosen], 1 / video.info.fps)
        except (VideoError, OSError) as e:
            self.unread[place] = str(e)
            return None

    def _source(self) -> VideoSource:
        if not hasattr(self._of_thread, "source"):
            self._of_thread.source = self._make_source()
            self._sources.append(self._of_thread.source)
        return self._of_thread.source


def small_frames(video: Any, indices: np.ndarray) -> np.ndarray:
    """float32 [N, S, S]. Raises VideoError."""
    small = []
    for first in range(0, len(indices), HELD):
        for frame in video.get(indices[first : first + HELD]):
            grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            small.append(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    return np.stack(small).astype(np.float32)


def alike(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of frames [N, S, S] one by one."""
    ours = ours.reshape(len(ours), -1)
    theirs = theirs.reshape(len(theirs), -1)
    frames = _correlation(
        ours - ours.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True)
    )
    changes = [part - part.mean(0) for part in (ours, theirs)]
    if max(float(np.sqrt((change**2).mean())) for change in changes) < STILL:
        return max(frames, 0.0) ** OF_STILLS  # nothing moves
    return max(frames, 0.0) ** OF_FRAMES * max(_correlation(*changes), 0.0)


def _correlation(ours: np.ndarray, theirs: np.ndarray) -> float:
    energy = float((ours**2).sum()) * float((theirs**2).sum())
    return float((ours * theirs).sum()) / max(np.sqrt(energy), 1e-6)

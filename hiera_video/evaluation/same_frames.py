"""Whether two videos show the same frames: asked of pairs that features find alike.

Features tell what a video is about; two takes of one scene can lie as near to each other as a video
and its trimmed copy. Small grey frames tell them apart: in a copy they are the same, and so is what
changes in them over time.

Legend: N frames, S x S pixels.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np

from hiera_video.data.decode.source import VideoSource

SIDE = 16  # pixels of a small frame, on both sides
PART_S = 2.4  # of a video that is looked at
FRAMES = 24  # of it
STILL = 1.0  # grey levels, of the change over time, below which it is noise
HELD = 8  # frames of full size at a time
# Powers that set copies and others apart: chosen on MovingShapes, and on GRID and MIRACL, whose
# takes are of the same people before the same wall.
OF_FRAMES = 6
OF_STILLS = 12
# Copies of MovingShapes, GRID and MIRACL have 0.81 and more, but for one of 11 frames at half its
# size (0.61); other pairs 0.73 and less.
SAME = 0.76


class Alike(NamedTuple):
    score: float  # from 0 to 1; SAME and more in copies
    offset_s: float  # from a moment of the first to the same one of the second


def frames_alike(
    source: VideoSource,
    paths: tuple[str, str],
    spans: tuple[tuple[float, float], tuple[float, float]],
    *,
    slack_s: float,
) -> Alike:
    """A power of the correlation of their frames, times that of what changes in them.

    spans: seconds of both that may show the same, `slack_s` early or late. Looked at is a part in
    the middle. Raises VideoError.
    """
    middle = [(start + end) / 2 for start, end in spans]
    best = Alike(0.0, middle[1] - middle[0])
    half = min(PART_S, *(end - start for start, end in spans)) / 2
    with source.open(paths[0]) as video:
        times = video.info.times
        inside = np.flatnonzero(np.abs(times - middle[0]) <= half)
        if len(inside) == 0:
            return best
        chosen = inside[np.linspace(0, len(inside) - 1, min(FRAMES, len(inside))).astype(int)]
        ours = small_frames(video, chosen)  # [N, S, S]
        ours_at = times[chosen] - middle[0]
    with source.open(paths[1]) as video:
        times = video.info.times
        near = np.flatnonzero(np.abs(times - middle[1]) <= half + slack_s)
        if len(near) == 0:
            return best
        theirs = small_frames(video, near)
        theirs_at = times[near] - middle[1]
        step = 1 / video.info.fps
    for shift in np.arange(-slack_s, slack_s + step / 2, step):
        wanted = ours_at + shift
        there = (wanted >= theirs_at[0] - step) & (wanted <= theirs_at[-1] + step)
        if there.sum() < max(2, len(wanted) / 2):
            continue
        nearest = np.abs(theirs_at[None] - wanted[there][:, None]).argmin(1)
        score = alike(ours[there], theirs[nearest])
        if score > best.score:
            best = Alike(score, middle[1] - middle[0] + float(shift))
    return best


def small_frames(video: Any, indices: np.ndarray) -> np.ndarray:
    """float32 [N, S, S], grey levels from 0 to 255. Raises VideoError."""
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

"""Which frames make a clip: index arithmetic only, no decoding.

Every function returns int64 [clips, frames], indices into the presented frames of a video, clamped to [0, N - 1] (a video
shorter than its clip repeats its last frame). `span` is the length of a clip in frames of the video, not rounded:

    span = sampling_rate * num_frames / target_fps * fps        16 x 4 at 30 fps: 64 frames, at 25 fps: 53.3

PySlowFast spaces the frames of a clip over linspace(start, start + span - 1), truncated: for 16 x 4 the steps are 4.2.

    |0         63|                                    random_clip: start drawn in [0, N - span]
    |clip 0      |clip 1 ...          clip 4 to N-1|  uniform_clips: starts spread over [0, N - span]
    |. | . | . | . | . | . |                          segment_clips: one frame of each of T equal segments
    |window 0 |window 1 |window 2 |      |last window| sliding_windows: every hop, the last one ends with the video
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def clip_span(fps: float, num_frames: int, sampling_rate: int, target_fps: float = 30) -> float:
    """Length of a clip in frames of a video of `fps`; at least 1."""
    return max(1.0, sampling_rate * num_frames / target_fps * fps)


def uniform_clips(
    num_frames_in_video: int,
    fps: float,
    num_frames: int = 16,
    sampling_rate: int = 4,
    num_clips: int = 5,
    target_fps: float = 30,
) -> np.ndarray:
    """The PySlowFast test protocol: int64 [num_clips, num_frames]. One clip is taken from the middle."""
    _check(num_frames_in_video, fps, num_frames=num_frames, sampling_rate=sampling_rate, num_clips=num_clips)
    span = clip_span(fps, num_frames, sampling_rate, target_fps)
    room = max(num_frames_in_video - span, 0)
    hop = math.floor(room / max(num_clips - 1, 1))
    starts = [k * hop for k in range(num_clips)] if num_clips > 1 else [math.floor(room / 2)]
    return np.stack([_spread(start, span, num_frames, num_frames_in_video) for start in starts])


def random_clip(
    num_frames_in_video: int,
    fps: float,
    num_frames: int = 16,
    sampling_rate: int = 4,
    target_fps: float = 30,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """One clip that starts anywhere: int64 [1, num_frames]."""
    _check(num_frames_in_video, fps, num_frames=num_frames, sampling_rate=sampling_rate)
    span = clip_span(fps, num_frames, sampling_rate, target_fps)
    start = rng.uniform(0, max(num_frames_in_video - span, 0))
    return _spread(start, span, num_frames, num_frames_in_video)[None]


def segment_clips(
    num_frames_in_video: int, num_frames: int = 16, num_clips: int = 1, *, rng: np.random.Generator | None = None
) -> np.ndarray:
    """One frame from each of `num_frames` equal segments of the whole video (Something-Something): [num_clips, num_frames].

    With `rng` (training) the frame is drawn within its segment. Without (testing) clip k of K takes the point
    (2 k + 1) / (2 K) of every segment: the middle for one clip, and different frames for each of several. The papers do
    not say how a second temporal view was taken; this is our choice.
    """
    _check(num_frames_in_video, 1.0, num_frames=num_frames, num_clips=num_clips)
    size = (num_frames_in_video - 1) / num_frames
    first = np.round(size * np.arange(num_frames)).astype(np.int64)
    last = np.round(size * np.arange(1, num_frames + 1)).astype(np.int64)
    if rng is not None:
        return np.stack([rng.integers(first, last, endpoint=True) for _ in range(num_clips)])
    points = (2 * np.arange(num_clips)[:, None] + 1) / (2 * num_clips)
    return np.floor(first + points * (last - first)).astype(np.int64)


def sliding_windows(
    num_frames_in_video: int,
    fps: float,
    num_frames: int = 16,
    sampling_rate: int = 4,
    target_fps: float = 30,
    *,
    hop_s: float | None = None,
) -> np.ndarray:
    """Windows over the whole video, one every `hop_s` seconds (default: end to end): [windows, num_frames].

    If the last regular window ends before the video does, one more is laid so that it ends with the video.
    """
    _check(num_frames_in_video, fps, num_frames=num_frames, sampling_rate=sampling_rate)
    span = clip_span(fps, num_frames, sampling_rate, target_fps)
    hop = span if hop_s is None else hop_s * fps
    if hop <= 0:
        raise ValueError(f"hop_s={hop_s} must be > 0")
    room = max(num_frames_in_video - span, 0)
    starts = [k * hop for k in range(math.floor(room / hop + 1e-6) + 1)]
    if room - starts[-1] >= 1:
        starts.append(room)
    return np.stack([_spread(start, span, num_frames, num_frames_in_video) for start in starts])


def pytorchvideo_clips(
    sampler: Any, num_frames_in_video: int, fps: float, num_frames: int = 16, *, rng: np.random.Generator
) -> np.ndarray:
    """All clips that a PyTorchVideo clip sampler takes from one video: [clips, num_frames].

    The sampler (of `pytorchvideo.data.make_clip_sampler`) works in seconds; a clip's frames are those that PyTorchVideo
    gives for [start, end), subsampled evenly as its UniformTemporalSubsample does. Its random samplers draw from Python's
    global generator, which is seeded here from `rng`.
    """
    import random  # the module that PyTorchVideo's samplers draw from

    _check(num_frames_in_video, fps, num_frames=num_frames)
    random.seed(int(rng.integers(2**63)))
    sampler.reset()
    duration, end, clips = num_frames_in_video / fps, 0.0, []
    while True:
        info = sampler(end, duration, {})
        starts, ends, last = info.clip_start_sec, info.clip_end_sec, info.is_last_clip
        several = isinstance(starts, list)
        for start, stop in zip(starts, ends) if several else [(starts, ends)]:
            first = min(math.ceil(float(start) * fps - 1e-6), num_frames_in_video - 1)
            count = max(min(math.ceil(float(stop) * fps - 1e-6), num_frames_in_video) - first, 1)
            clips.append(first + np.linspace(0, count - 1, num_frames).astype(np.int64))
        end = ends[-1] if several else ends
        if last[-1] if several else last:
            sampler.reset()
            return np.stack(clips)


def _spread(start: float, span: float, num_frames: int, num_frames_in_video: int) -> np.ndarray:
    # In float64, clamped before it is truncated: tests hold every index against the published protocol's.
    frames = np.linspace(start, start + span - 1, num_frames)
    return np.clip(frames, 0, num_frames_in_video - 1).astype(np.int64)


def _check(num_frames_in_video: int, fps: float, **positive: int) -> None:
    if num_frames_in_video < 1 or not fps > 0:
        raise ValueError(f"a video of {num_frames_in_video} frames at {fps} fps has no clips")
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be > 0")


ClipSampler = Callable[[int, float, np.random.Generator], np.ndarray]  # (frames, fps, rng) -> int64 [clips, T]

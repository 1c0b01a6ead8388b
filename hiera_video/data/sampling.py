"""Which frames make a clip: index arithmetic only, no decoding.

Every function returns int64 [clips, frames], indices into the presented frames of a video, clamped
to [0, N - 1] (a video shorter than its clip repeats its last frame). `span` is the length of a clip
in frames of the video, not rounded:

    span = sampling_rate * num_frames / target_fps * fps    (16 x 4: 64 at 30 fps, 53.3 at 25 fps)

PySlowFast spaces the frames of a clip over linspace(start, start + span - 1), truncated: for 16 x 4
the steps are 4.2.

    random_clip       |      |0         63|              |   start drawn in [0, N - span]
    uniform_clips     |clip 0    |clip 1    ...    clip 4|   starts spread over [0, N - span]
    segment_clips     | .   |  .  |   . |.    |  .  | .  |   one frame of each of T equal segments
    sliding_windows   |window 0 |window 1 |...   |last   |   every hop; the last ends with the video
    consecutive_windows  as many frames as the clip has, which follow each other in the file

The classes at the end are these functions with their arguments, as a data set takes them:
`(frames, fps, rng) -> int64 [clips, T]`, and picklable, since workers may be started afresh.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

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
    """The PySlowFast test protocol: int64 [num_clips, num_frames].

    One clip is taken from the middle.
    """
    _check(
        num_frames_in_video,
        fps,
        num_frames=num_frames,
        sampling_rate=sampling_rate,
        num_clips=num_clips,
    )
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
    num_frames_in_video: int,
    num_frames: int = 16,
    num_clips: int = 1,
    *,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """One frame from each of `num_frames` equal segments of a video: [num_clips, num_frames].

    This is how Something-Something is sampled.

    With `rng` (training) the frame is drawn within its segment. Without (testing) clip k of K takes
    the point (2 k + 1) / (2 K) of every segment: the middle for one clip, and different frames for
    each of several. The papers do not say how a second temporal view was taken; this is our choice.
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
    """Windows over the whole video, one every `hop_s` seconds: [windows, num_frames].

    By default they lie end to end.

    If the last regular window ends before the video does, one more is laid so that it ends with the
    video.
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


def consecutive_windows(num_frames_in_video: int, num_frames: int, stride: int) -> np.ndarray:
    """Windows of frames that follow each other, one every `stride` frames: [windows, num_frames].

    A last one that would reach beyond the video is left out (ActionFormer's features: `range(0, N -
    num_frames + 1, stride)`); a video shorter than one window has one.
    """
    if num_frames_in_video < 1 or stride < 1:
        raise ValueError(f"num_frames_in_video={num_frames_in_video}, stride={stride}: both > 0")
    starts = np.arange(0, max(num_frames_in_video - num_frames, 0) + 1, stride)
    return (starts[:, None] + np.arange(num_frames)).clip(max=num_frames_in_video - 1)


def pytorchvideo_clips(
    sampler: Any,
    num_frames_in_video: int,
    fps: float,
    num_frames: int = 16,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """All clips that a PyTorchVideo clip sampler takes from one video: [clips, num_frames].

    The sampler (of `pytorchvideo.data.make_clip_sampler`) works in seconds; a clip's frames are
    those that PyTorchVideo gives for [start, end), subsampled evenly as its
    UniformTemporalSubsample does. Its random samplers draw from Python's global generator, which is
    seeded here from `rng`.
    """
    import random  # the module that PyTorchVideo's samplers draw from

    _check(num_frames_in_video, fps, num_frames=num_frames)
    random.seed(int(rng.integers(2**63)))
    sampler.reset()
    duration = num_frames_in_video / fps
    end = 0.0
    clips = []
    while True:
        info = sampler(end, duration, {})
        starts = info.clip_start_sec
        ends = info.clip_end_sec
        last = info.is_last_clip
        several = isinstance(starts, list)
        spans = zip(starts, ends) if several else [(starts, ends)]
        for start, stop in spans:
            first = min(math.ceil(float(start) * fps - 1e-6), num_frames_in_video - 1)
            count = max(min(math.ceil(float(stop) * fps - 1e-6), num_frames_in_video) - first, 1)
            clips.append(first + np.linspace(0, count - 1, num_frames).astype(np.int64))
        end = ends[-1] if several else ends
        if last[-1] if several else last:
            sampler.reset()
            return np.stack(clips)


def _spread(start: float, span: float, num_frames: int, num_frames_in_video: int) -> np.ndarray:
    # In float64, and clamped before it is truncated, as in the published protocol.
    frames = np.linspace(start, start + span - 1, num_frames)
    return np.clip(frames, 0, num_frames_in_video - 1).astype(np.int64)


def _check(num_frames_in_video: int, fps: float, **positive: int) -> None:
    if num_frames_in_video < 1 or not fps > 0:
        raise ValueError(f"a video of {num_frames_in_video} frames at {fps} fps has no clips")
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be > 0")


def segment_frames(
    start_s: float,
    end_s: float,
    *,
    num_frames_in_video: int,
    fps: float,
    span: float = 0,
    share: float = 1,
) -> tuple[int, int]:
    """(first, count): the frames of a video that clips of a segment are drawn from.

    Frames shown in [start_s, end_s), at least one. A segment shorter than `span`, the length of a
    clip in frames, is widened to it about its middle; `first` may then be negative, and the last
    frame lie behind the video's end. share: of a clip, that lies in the segment at least; what is
    left may reach beyond it, inside the video. Raises ValueError for a segment that begins behind
    the end.
    """
    first = math.ceil(start_s * fps - 1e-6)
    if first >= num_frames_in_video:
        length = num_frames_in_video / fps
        raise ValueError(f"the segment from {start_s:g} s begins behind the end, {length:.3f} s")
    last = min(math.ceil(end_s * fps - 1e-6), num_frames_in_video)
    beyond = round((1 - share) * span)
    first = max(first - beyond, 0)
    last = min(last + beyond, num_frames_in_video)
    count = max(last - first, 1)
    if count >= span:
        return first, count
    wide = math.ceil(span)
    middle = (start_s * fps + min(end_s * fps, num_frames_in_video)) / 2
    return round(middle - wide / 2), wide


class ClipSampler(Protocol):
    def __call__(self, count: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        """The clips of a video of `count` frames: int64 [clips, T]."""

    def span(self, fps: float) -> float:
        """Length of a clip in frames of a video; 0 where it is as long as the video."""


@dataclass(frozen=True)
class ClipShape:
    """Frames of a clip, and how far they lie apart."""

    num_frames: int = 16
    sampling_rate: int = 4  # frames of a video of target_fps
    target_fps: float = 30.0

    @property
    def seconds(self) -> float:
        return self.num_frames * self.sampling_rate / self.target_fps

    def span(self, fps: float) -> float:
        return clip_span(fps, self.num_frames, self.sampling_rate, self.target_fps)


@dataclass(frozen=True)
class RandomClip:
    shape: ClipShape

    def span(self, fps: float) -> float:
        return self.shape.span(fps)

    def __call__(self, count: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        s = self.shape
        return random_clip(count, fps, s.num_frames, s.sampling_rate, s.target_fps, rng=rng)


@dataclass(frozen=True)
class UniformClips:
    shape: ClipShape
    clips: int

    def span(self, fps: float) -> float:
        return self.shape.span(fps)

    def __call__(self, count: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        s = self.shape
        return uniform_clips(count, fps, s.num_frames, s.sampling_rate, self.clips, s.target_fps)


@dataclass(frozen=True)
class SlidingWindows:
    shape: ClipShape
    hop_s: float | None

    def span(self, fps: float) -> float:
        return self.shape.span(fps)

    def __call__(self, count: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        s = self.shape
        return sliding_windows(
            count, fps, s.num_frames, s.sampling_rate, s.target_fps, hop_s=self.hop_s
        )


@dataclass(frozen=True)
class ConsecutiveWindows:
    num_frames: int
    stride: int

    def span(self, fps: float) -> float:
        return float(self.num_frames)

    def __call__(self, count: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        return consecutive_windows(count, self.num_frames, self.stride)


@dataclass(frozen=True)
class RandomSegments:
    """One clip, each of its frames drawn within its segment."""

    num_frames: int

    def span(self, fps: float) -> float:
        return 0.0

    def __call__(self, count: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        return segment_clips(count, self.num_frames, 1, rng=rng)


@dataclass(frozen=True)
class UniformSegments:
    num_frames: int
    clips: int

    def span(self, fps: float) -> float:
        return 0.0

    def __call__(self, count: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        return segment_clips(count, self.num_frames, self.clips)


@dataclass(frozen=True)
class PyTorchVideoClips:
    """A clip sampler of PyTorchVideo's, by its name in `make_clip_sampler`."""

    sampler: Any
    shape: ClipShape

    @classmethod
    def make(cls, name: str, shape: ClipShape, *arguments: float) -> "PyTorchVideoClips":
        """arguments: what follows the clip duration. Raises ValueError if they do not fit."""
        from pytorchvideo.data import make_clip_sampler  # imported here, because it takes seconds

        # Whole numbers as such: some arguments are counts.
        numbers = [int(a) if a == int(a) else a for a in arguments]
        try:
            sampler = make_clip_sampler(name, shape.seconds, *numbers)
        except (TypeError, AssertionError) as e:
            raise ValueError(f"{numbers} does not fit {name}: {e}") from e
        return cls(sampler, shape)

    def span(self, fps: float) -> float:
        return self.shape.span(fps)

    def __call__(self, count: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        return pytorchvideo_clips(self.sampler, count, fps, self.shape.num_frames, rng=rng)

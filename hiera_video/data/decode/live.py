"""The last seconds of a live stream: a camera, RTSP or HTTP, standard input.

A thread decodes what comes and keeps the newest frames, already small; whoever asks gets a window
that ends with the newest one, so nobody is ever behind by more than the time that their own work
takes. Where decoding itself falls behind, frames that no other needs are left out, then all but
keyframes. A stream that ends or breaks off is opened again.
"""

import contextlib
import math
import re
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from hiera_video.data.decode.pyav_reader import upright
from hiera_video.system.errors import VideoError

STDIN = "-"
NETWORK = re.compile(r"(rtsps?|rtmps?|udp|tcp|srt|rtp|https?)://")
LIVE_ONLY = re.compile(r"(rtsps?|rtmps?|udp|tcp|srt|rtp)://")
CAMERA = re.compile(r"/dev/video\d+\Z")
OPEN_S = 10.0  # to open a stream, and that it may stay silent
BEHIND_S = 0.5  # that decoding may be behind; beyond it, frames are left out
FAR_BEHIND_S = 2.0  # beyond it, all but keyframes
PAUSES_S = (0.5, 1.0, 2.0, 5.0)  # before a stream is opened again; the last one goes on


class Window(NamedTuple):
    """Some frames of the newest seconds."""

    frames: list[Any]  # as `keep` made them
    start_s: float  # from the first frame of the stream
    end_s: float
    arrived: float  # monotonic: when the newest came out of the decoder
    lag_s: float  # that decoding was behind then
    first: int  # numbers of frames, from the start of the stream
    last: int


class _Frame(NamedTuple):
    number: int
    at_s: float
    arrived: float
    lag_s: float
    kept: Any


class _Clock:
    """Seconds from the first frame of all, by the stamps of a stream, which may be opened again.

    Stamps begin anywhere, and may go back; from there on they are counted on from the wall's clock,
    and never back.
    """

    def __init__(self) -> None:
        self._began: float | None = None  # monotonic: when the first frame of all arrived
        self._shift_s: float | None = None  # from stamps to seconds
        self._last_s = -math.inf
        self._least_late_s = math.inf

    def begin(self) -> None:
        """The next stamp is of a stream that was opened anew."""
        self._shift_s = None

    def read(self, stamp_s: float | None, arrived: float) -> tuple[bool, float, float] | None:
        """(whether a count begins, seconds, seconds that decoding is behind)

        None for a frame at the time of the one before.
        """
        if self._began is None:
            self._began = arrived
        wall_s = arrived - self._began
        stamp_s = wall_s if stamp_s is None else float(stamp_s)
        is_new = self._shift_s is None or stamp_s + self._shift_s < self._last_s
        if is_new:
            self._shift_s = max(wall_s, self._last_s) - stamp_s
            self._least_late_s = math.inf
        at_s = stamp_s + (self._shift_s or 0.0)
        if at_s == self._last_s and not is_new:
            return None
        self._last_s = at_s
        self._least_late_s = min(self._least_late_s, wall_s - at_s)
        return is_new, at_s, wall_s - at_s - self._least_late_s


def is_live(source: str) -> bool:
    """Whether it can be nothing but a stream; http:// may be a file."""
    if source == STDIN or LIVE_ONLY.match(source) or CAMERA.match(source):
        return True
    is_number = source.isdecimal() and not Path(source).exists()  # of a camera
    return is_number or is_pipe(source)


def is_pipe(source: str) -> bool:
    """Whether it is a named one."""
    try:
        return stat.S_ISFIFO(Path(source).stat().st_mode)
    except OSError:
        return False


class LiveFrames:
    """keep: makes of a frame, uint8 [H, W, 3], what is kept of it. span_s: that is kept.

    reconnect_s: for which a stream is tried again. Raises VideoError where it cannot be opened.
    """

    def __init__(
        self,
        source: str,
        keep: Callable[[np.ndarray], Any],
        *,
        span_s: float,
        reconnect_s: float = 60.0,
        say: Callable[[str], None] = lambda line: None,
    ):
        self._source = source
        self._keep = keep
        self._span_s = span_s
        ends = source == STDIN or is_pipe(source)  # for good, when whoever writes is gone
        self._reconnect_s = 0.0 if ends else reconnect_s
        self._say = say
        self._frames: deque[_Frame] = deque()
        self._changed = threading.Condition()
        self._ended = ""  # why no more frames come
        self._closing = False
        self._clock = _Clock()
        self.received = 0
        self.reconnects = 0
        self._container: Any = open_stream(source)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def window(self, count: int, seconds: float, *, after_s: float, wait_s: float) -> Window | None:
        """`count` frames, evenly over the newest `seconds`, once one came behind `after_s`.

        None after `wait_s` without one. Raises VideoError where the stream has ended for good.
        """
        deadline = time.monotonic() + wait_s
        with self._changed:
            while True:
                found = self._newest(count, seconds)
                if found is not None and found.end_s >= after_s:
                    return found
                if self._ended:
                    raise VideoError(self._ended)
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)

    def close(self) -> None:
        self._closing = True
        self._thread.join(timeout=OPEN_S)

    def _newest(self, count: int, seconds: float) -> Window | None:
        held = list(self._frames)
        if len(held) < 2:
            return None
        times = np.array([frame.at_s for frame in held])
        step_s = float(np.median(np.diff(times)))
        length_s = max(seconds - step_s, 0.0)  # from the first frame to the last
        if times[-1] - times[0] < length_s - step_s / 2:
            return None
        points = times[-1] - length_s * np.linspace(1, 0, count)
        # The frame that is shown then, as clips of files are drawn; times are rounded in streams.
        chosen = np.searchsorted(times, points + step_s * 0.01, side="right") - 1
        some = [held[k] for k in chosen.clip(min=0)]
        last = held[-1]
        return Window(
            [frame.kept for frame in some],
            some[0].at_s,
            last.at_s,
            last.arrived,
            last.lag_s,
            some[0].number,
            last.number,
        )

    # -- the thread

    def _run(self) -> None:
        reason = "its reader failed"
        try:
            reason = self._read()
        except Exception as e:  # of `keep`: nobody else would tell
            reason = f"{type(e).__name__}: {e}"
        finally:
            self._shut()
            with self._changed:
                self._ended = f"{self._source}: {reason}"
                self._changed.notify_all()

    def _read(self) -> str:
        """Until the stream ends for good; why it did."""
        lost_since: float | None = None
        reason = "it was closed"
        attempt = 0
        while not self._closing:
            before = self.received
            try:
                if self._container is None:
                    self._container = open_stream(self._source)
                self._decode()
                reason = "it ended"
            except (av.FFmpegError, OSError, VideoError) as e:
                reason = str(e).removeprefix(f"{self._source}: ")
            self._shut()
            if self.received > before:
                lost_since = None
                attempt = 0
            now = time.monotonic()
            lost_since = now if lost_since is None else lost_since
            if self._closing or now - lost_since >= self._reconnect_s:
                break
            pause = PAUSES_S[min(attempt, len(PAUSES_S) - 1)]
            self._say(f"{self._source}: {reason}; it is opened again in {pause:g} s")
            attempt += 1
            self.reconnects += 1
            time.sleep(pause)
        return reason

    def _decode(self) -> None:
        """Until the stream ends. What came before it was opened is left."""
        stream = self._container.streams.video[0]
        stream.thread_type = "SLICE"  # threads by frame would hold some frames back
        codec = stream.codec_context
        self._clock.begin()
        for packet in self._container.demux(stream):
            if self._closing:
                return
            try:
                frames = packet.decode()
            except av.FFmpegError:  # damaged on its way; the next keyframe mends it
                continue
            for frame in frames:
                arrived = time.monotonic()
                read = self._clock.read(frame.time, arrived)
                if read is None:
                    continue
                is_new, at_s, lag_s = read
                codec.skip_frame = "DEFAULT"
                if lag_s > BEHIND_S:
                    codec.skip_frame = "NONKEY" if lag_s > FAR_BEHIND_S else "NONREF"
                # Where that does not help, every second, third, .. frame is kept, until it does.
                if lag_s > BEHIND_S and self.received % (1 + round(lag_s / BEHIND_S)):
                    self.received += 1
                    continue
                kept = self._keep(upright(frame, frame.width, frame.height))
                self._add(_Frame(self.received, at_s, arrived, lag_s, kept), alone=is_new)

    def _add(self, frame: _Frame, *, alone: bool) -> None:
        with self._changed:
            behind = self._frames[-1].at_s if self._frames else frame.at_s
            if alone or frame.at_s - behind > self._span_s:  # a gap is in no window
                self._frames.clear()
            self._frames.append(frame)
            self.received += 1
            # One more than the span, so that it is always covered.
            while len(self._frames) > 2 and self._frames[1].at_s <= frame.at_s - self._span_s:
                self._frames.popleft()
            self._changed.notify_all()

    def _shut(self) -> None:
        if self._container is not None:
            with contextlib.suppress(av.FFmpegError, OSError):
                self._container.close()
        self._container = None


def open_stream(source: str) -> Any:
    """An open container with a picture. Raises VideoError."""
    name = source
    options = {"fflags": "nobuffer", "flags": "low_delay"}
    form = None
    if source == STDIN:
        name = "pipe:0"
    elif source.isdecimal() or CAMERA.match(source):
        if not sys.platform.startswith("linux"):
            raise VideoError(f"{source}: cameras are read on Linux alone; pipe ffmpeg into `-`")
        name = f"/dev/video{source}" if source.isdecimal() else source
        form = "v4l2"
        if not Path(name).exists():
            raise VideoError(f"there is no camera {name}")
        options = {}
    elif source.startswith(("rtsp://", "rtsps://")):
        options["rtsp_transport"] = "tcp"
    timeout = (OPEN_S, OPEN_S) if NETWORK.match(source) else None
    try:
        container = av.open(name, format=form, options=options, timeout=timeout)
    except (av.FFmpegError, OSError) as e:
        what = (
            "nothing came that is a video" if source == STDIN else f"cannot be opened: {e.strerror}"
        )
        raise VideoError(f"{source}: {what}") from e
    if not container.streams.video:
        container.close()
        raise VideoError(f"{source}: has no picture")
    return container

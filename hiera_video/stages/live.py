"""Predictions of a live stream: the newest window again and again, the latest result shown."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from hiera_video.data.decode.live import LiveFrames, Window
from hiera_video.data.transforms import Plan
from hiera_video.inference import Prediction, VideoModel
from hiera_video.system.errors import RunStopped, UserError, VideoError
from hiera_video.system.signals import StopSignals, stop_requested

SHOWN = 3  # classes on the terminal
TOP = 5  # in a row of JSON
KEPT = 10_000  # latencies, for the last line
LOOK_S = 0.5  # from one look at signals to the next, while nothing comes


@dataclass(frozen=True)
class Watch:
    """How a stream is watched."""

    window_s: float | None = None  # None: the model's clip
    hop_s: float | None = None  # None: half a window
    json: Path | None = None  # file of results; - for standard output
    seconds: float | None = None  # after which it ends; None: never
    reconnect_s: float = 60.0  # for a stream that is lost


@dataclass
class Tally:
    """What was seen of a stream."""

    windows: int = 0
    frames: int = 0
    dropped: int = 0  # frames that no window held
    latencies_s: list[float] = field(default_factory=list)
    _next: int = 0  # number of the first frame that no window has reached

    def add(self, window: Window, latency_s: float) -> None:
        self.windows += 1
        self.frames = window.last + 1
        self.dropped += max(window.first - self._next, 0)
        self._next = window.last + 1
        self.latencies_s = [*self.latencies_s[-KEPT:], latency_s]

    def __str__(self) -> str:
        if not self.windows:
            return "no window was seen"
        middle, most = np.quantile(self.latencies_s, [0.5, 1.0])
        return (
            f"{self.windows} windows; {self.dropped} of {self.frames} frames were in none of them; "
            f"latency {middle:.2f} s (median), {most:.2f} s at most"
        )


def predict_stream(model: VideoModel, source: str, watch: Watch) -> None:
    """Until the stream ends, its seconds are over, or somebody stops it.

    Raises UserError, RunStopped.
    """
    count = model.format.shape.num_frames
    window_s = watch.window_s or model.format.shape.seconds
    if model.format.segments and not watch.window_s:
        raise UserError("--window-s: this model's clips are whole videos; say how long a window is")
    hop_s = watch.hop_s or window_s / 2
    crop = model.format.crops(1)

    def small(frame: np.ndarray) -> tuple[Plan, Tensor]:
        plan = crop.plan(*frame.shape[:2])
        return plan, plan.shrink(torch.from_numpy(frame).permute(2, 0, 1)[None])[0]

    try:
        frames = LiveFrames(source, small, span_s=window_s, reconnect_s=watch.reconnect_s, say=tell)
    except VideoError as e:
        raise UserError(str(e)) from e
    tally = Tally()
    until = time.monotonic() + watch.seconds if watch.seconds else np.inf
    after_s = -np.inf
    ended = ""
    try:
        with rows_to(watch.json) as rows, StopSignals():
            while time.monotonic() < until and not stop_requested():
                try:
                    window = frames.window(count, window_s, after_s=after_s, wait_s=LOOK_S)
                except VideoError as e:
                    ended = str(e)
                    break
                if window is None:
                    continue
                if len({kept.shape for _, kept in window.frames}) > 1:  # the picture's size changes
                    after_s = window.end_s + 1e-3
                    continue
                plan = window.frames[-1][0]
                clip = torch.stack([kept for _, kept in window.frames])
                best = model.predict_views(plan.views(clip).clips, top=TOP)
                latency_s = time.monotonic() - window.arrived + window.lag_s
                tally.add(window, latency_s)
                after_s = window.end_s + hop_s
                write(rows, window, best, latency_s, tally)
                show(window, best, latency_s, tally, quiet=watch.json == Path("-"))
    except KeyboardInterrupt:
        pass
    finally:
        frames.close()
        model.close()
    tell(f"{source}: {tally}; opened again {frames.reconnects} times")
    if ended and frames.reconnects:
        raise RunStopped(f"{ended}; tried again for {watch.reconnect_s:g} s (--reconnect-s)")
    if not tally.windows and ended:
        raise UserError(f"{ended}, before {window_s:g} s of it came")


def write(
    rows: TextIO | None, window: Window, best: list[Prediction], latency_s: float, tally: Tally
) -> None:
    """A line of JSON, there at once."""
    if rows is None:
        return
    row: dict[str, Any] = {
        "start_s": round(window.start_s, 3),
        "end_s": round(window.end_s, 3),
        "latency_s": round(latency_s, 3),
        "frames": tally.frames,
        "dropped": tally.dropped,
        "top": [{"label": p.label, "score": round(p.score, 6)} for p in best],
    }
    if best[0].is_chosen is not None:
        row["labels"] = [p.label for p in best if p.is_chosen]
    print(json.dumps(row), file=rows, flush=True)


def show(
    window: Window, best: list[Prediction], latency_s: float, tally: Tally, *, quiet: bool
) -> None:
    """The latest result: one line of the terminal that changes, or a line each in a log."""
    if quiet:
        return
    named = "  ".join(f"{p.score:4.0%} {p.label}" for p in best[:SHOWN])
    line = f"{window.end_s:8.1f} s  {named}  (latency {latency_s:.2f} s, dropped {tally.dropped})"
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line}", end="", flush=True)
    else:
        print(line, flush=True)


def tell(line: str) -> None:
    start = "\n" if sys.stdout.isatty() else ""
    print(f"{start}{line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def rows_to(file: Path | None) -> Iterator[TextIO | None]:
    """Raises UserError."""
    if file is None:
        yield None
    elif file == Path("-"):
        yield sys.stdout
    else:
        with contextlib.ExitStack() as stack:
            try:
                opened = stack.enter_context(open(file, "a", encoding="utf-8"))
            except OSError as e:
                raise UserError(f"--json: cannot write {file}: {e.strerror}") from e
            yield opened

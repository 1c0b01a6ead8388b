"""What a file's packets tell without decoding: its frames, their times, and who reads them rightly.

A scan takes milliseconds, but it reads the whole file. Scans are kept in a manifest (one SQLite
file), so that each file is scanned once and not every time a clip is drawn from it. It lies on a
disk of the machine itself: on a shared one, the locks of a thousand processes would cost more than
the scans.
"""

import json
import math
import os
import sqlite3
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np

from hiera_video.system.errors import VideoError
from hiera_video.system.members import file_of

T = TypeVar("T")
VERSION = 3  # of what a scan finds, and of how it is kept
BUSY_S = 0.02  # for a manifest that others write to; a scan takes about as long
FALLBACK_FPS = 30.0  # for a file that states no frame rate and has a single frame
UNEVEN = 0.5  # frames: time stamps further than this from an even grid make a variable frame rate

EDIT_LIST = "edit list"
NO_STAMPS = "packets without time stamps"
REPEATED_STAMPS = "repeated time stamps"
OPEN_GOP = "open groups of pictures"
REORDERED_AVI = "reordered frames in AVI"
TRANSPORT_STREAM = "MPEG transport stream"
PROGRAM_STREAM = "MPEG program stream"  # after a seek its frames get each other's time stamps
OTHER_FORMAT = "a format that decord was not tried on"
AV1 = "AV1"
FIELDS = "coded field by field"  # a frame of two packets
# In these files time stamps do not name the frames, so frames are counted.
COUNTED = {NO_STAMPS, REPEATED_STAMPS, REORDERED_AVI, PROGRAM_STREAM}
# FFmpeg's names of what decord reads rightly, but for the sets below.
DECORD_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"}

# What each decoder gets wrong: every one of the sets. Found by comparison with full decodes
# (tests/data/test_frame_truth.py).
UNSAFE: dict[str, list[set[str]]] = {
    "decord": [
        {EDIT_LIST},
        {NO_STAMPS},
        {REPEATED_STAMPS},
        {OPEN_GOP},
        {REORDERED_AVI},
        {TRANSPORT_STREAM},
        {PROGRAM_STREAM},
        {OTHER_FORMAT},
        {AV1},
    ],
    "torchcodec": [
        {EDIT_LIST, OPEN_GOP},
        {NO_STAMPS},
        {REPEATED_STAMPS},
        {REORDERED_AVI},
        {TRANSPORT_STREAM},
        {PROGRAM_STREAM},
    ],
    "pyav": [],
}


@dataclass(frozen=True)
class VideoInfo:
    num_frames: int  # presented frames
    fps: float  # average
    times: np.ndarray  # float64 [num_frames]: seconds from the first frame

    @property
    def is_even(self) -> bool:
        return bool(np.abs(self.times * self.fps - np.arange(self.num_frames)).max() <= UNEVEN)

    def grid(self) -> np.ndarray:
        """int64: the frames shown at 0, 1, 2 .. times 1 / fps seconds; clips are drawn from them.

        Of a constant rate, every frame once. Of a variable one, a frame that stays is repeated, and
        one of a burst left out.
        """
        steps = np.arange(self.num_frames)
        if self.is_even:
            return steps
        return np.searchsorted(self.times, steps / self.fps + 1e-6, side="right") - 1


@dataclass(frozen=True)
class Packets:
    """What the scan found. Times are in units of the stream's time base."""

    # Time stamps of the presented frames, sorted; empty where stamps do not name the frames.
    pts: list[int]
    keyframes: list[tuple[int, int]]  # (pts, where to seek), by pts
    time_base: float  # seconds
    rate: float  # frames per second that the file states; 0 if it does not
    counted: int  # frames, where they had to be counted
    remarks: tuple[str, ...]  # kinds of files that some decoder reads wrongly

    @cached_property
    def info(self) -> VideoInfo:
        if not self.pts:
            fps = self.rate or FALLBACK_FPS
            return VideoInfo(self.counted, fps, np.arange(self.counted) / fps)
        times = (np.array(self.pts, dtype=np.float64) - self.pts[0]) * self.time_base
        measured = FALLBACK_FPS
        if len(times) > 1 and times[-1] > 0:
            measured = (len(times) - 1) / times[-1]
        stated = VideoInfo(len(times), self.rate or measured, times)
        # What a file of uneven frames states may be anything, such as the clock of its recorder.
        return stated if stated.is_even else VideoInfo(len(times), measured, times)

    def unsafe(self, decoder: str) -> str:
        """Why `decoder` would give other frames; empty if it reads the file rightly."""
        kinds: set[str] = set()
        for kind in UNSAFE[decoder]:
            if kind <= set(self.remarks):
                kinds |= kind
        return ", ".join(sorted(kinds))

    @classmethod
    def scan(cls, container: av.container.InputContainer, stream: av.VideoStream) -> "Packets":
        """`counted` is left at 0, and fields are taken for frames: see PyAVReader."""
        pts = []
        keyframes = []
        remarks = set()
        last_key_pts = None
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        time_base = float(stream.time_base or Fraction(1, 1))
        shortest = math.inf  # duration of a packet, in frames
        for packet in container.demux(stream):
            if packet.size == 0:
                continue  # the flush packet at the end
            if packet.duration:
                shortest = min(shortest, packet.duration * time_base * rate)
            if packet.is_discard:  # decoded for the sake of others, outside the edit list
                remarks.add(EDIT_LIST)
            elif packet.pts is None:
                remarks.add(NO_STAMPS)
            else:
                pts.append(packet.pts)
            if packet.pts is None:
                continue
            if packet.is_keyframe:
                last_key_pts = packet.pts
                keyframes.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            elif last_key_pts is not None and packet.pts < last_key_pts:
                remarks.add(OPEN_GOP)
        if len(set(pts)) < len(pts):
            remarks.add(REPEATED_STAMPS)
        codec = stream.codec_context
        if container.format.name == "avi" and codec.has_b_frames:
            remarks.add(REORDERED_AVI)
        if container.format.name == "mpegts":
            remarks.add(TRANSPORT_STREAM)
        if container.format.name == "mpeg":
            remarks.add(PROGRAM_STREAM)
        if container.format.name not in DECORD_FORMATS:
            remarks.add(OTHER_FORMAT)
        if container.format.name in ("mpegts", "mpeg") and shortest < 0.6:
            remarks.add(FIELDS)
        if codec.name in ("av1", "libdav1d", "libaom-av1"):
            remarks.add(AV1)
        return cls(
            pts=[] if COUNTED & remarks else sorted(pts),
            keyframes=sorted(keyframes),
            time_base=time_base,
            rate=rate,
            counted=0,
            remarks=tuple(sorted(remarks)),
        )


class Manifest:
    """Scans by path, in a file that many processes of one machine read and add to.

    It is a cache: whatever is wrong with it, files are scanned anew. A file that has changed its
    size or time since is scanned again.
    """

    def __init__(self, file: str | Path):
        self._file = Path(file)
        self._connection: sqlite3.Connection | None = None
        self._open()

    def find(self, path: str) -> Packets | None:
        asked = (_key(path), f"{VERSION} {stamp(path)}")
        rows = self._run("SELECT scan FROM scans WHERE path = ? AND stamp = ?", asked)
        if not rows:
            return None
        try:
            content = json.loads(zlib.decompress(rows[0][0]))
            content["pts"] = np.cumsum(content["pts"], dtype=np.int64).tolist()
            content["keyframes"] = [(pts, seek) for pts, seek in content["keyframes"]]
            return Packets(**{**content, "remarks": tuple(content["remarks"])})
        # Damaged: the file is scanned again, and the entry replaced.
        except (zlib.error, ValueError, TypeError, KeyError):
            return None

    def add(self, path: str, packets: Packets) -> None:
        content = asdict(packets)
        # As differences: even steps compress to nothing.
        content["pts"] = np.diff(packets.pts, prepend=0).astype(np.int64).tolist()
        scan = zlib.compress(json.dumps(content).encode(), level=1)
        row = (_key(path), f"{VERSION} {stamp(path)}", scan)
        self._run("INSERT OR REPLACE INTO scans VALUES (?, ?, ?)", row)

    def _open(self) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._file, timeout=BUSY_S, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")  # who reads waits for nobody
            connection.execute("PRAGMA synchronous = OFF")  # a cache may be lost
            connection.execute(
                "CREATE TABLE IF NOT EXISTS scans (path BLOB PRIMARY KEY, stamp TEXT, scan BLOB)"
            )
        except sqlite3.OperationalError:  # busy, or a folder that cannot be written
            return
        except sqlite3.Error:  # no data base, or a damaged one: the next process makes a new one
            self._file.unlink(missing_ok=True)
            return
        except OSError:
            return
        self._connection = connection

    def _run(self, statement: str, values: tuple) -> list:
        """Nothing, where something is wrong."""
        if self._connection is None:
            self._open()
        if self._connection is None:
            return []
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error:
            return []


def local_manifest() -> Path:
    """Of this user, on this machine; of all runs."""
    return Path(tempfile.gettempdir()) / f"hiera_video_{os.getuid()}" / "manifest.sqlite"


def _key(path: str) -> bytes:
    return os.fsencode(os.path.abspath(path))


def stamp(path: str) -> str:
    """Of the file's present state."""
    try:
        status = os.stat(file_of(path))
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


# What opening and reading a damaged file raises: FFmpeg's own, and what PyAV makes of absurd times,
# sizes and texts.
DAMAGE = (av.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError)


def errors_named(work: Callable[..., T], *arguments: Any) -> T:
    """What a damaged file makes FFmpeg or PyAV raise, as a VideoError."""
    try:
        return work(*arguments)
    except DAMAGE as e:
        raise VideoError(reason(e)) from e


def reason(e: Exception) -> str:
    """First line of a decoder's message."""
    # str() of FFmpeg's errors would add a number and the path.
    text = getattr(e, "strerror", None) or str(e)
    return (text.strip().splitlines() or [type(e).__name__])[0]

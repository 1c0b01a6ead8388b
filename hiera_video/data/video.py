"""Frames of a video file, by index: the only file that imports a decoder.

    with open_video(path, "auto") as video:
        frames = video.get(indices)            # uint8 [len(indices), H, W, 3], RGB, upright

Frame k is the k-th frame that the file presents, in time order; both readers agree on it. A scan of the packets (no
decoding, milliseconds) tells how many there are, and whether decord reads the file rightly: it is off by frames on edit
lists, open groups of pictures and some AVI, and cannot open AV1. Those go to PyAV, whatever was asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np

DECODERS = ("auto", "decord", "pyav")
FALLBACK_FPS = 30.0  # for a file that states no frame rate and has a single frame


class VideoError(Exception):
    """A file that cannot be read, or a frame of it that cannot be decoded. One line, without the path."""


@dataclass(frozen=True)
class VideoInfo:
    num_frames: int  # presented frames
    fps: float  # average
    times: np.ndarray  # float64 [num_frames]: seconds from the first frame
    decord_unsafe: str  # why decord would give other frames; empty if it reads the file rightly


@dataclass(frozen=True)
class VideoReport:
    """What a full decode of a file found."""

    frames: int  # that decode
    fps: float
    width: int  # upright
    height: int
    damage: str  # the first coded frame that does not decode; empty if all do
    remark: str  # a wrong header; no damage


class VideoReader(Protocol):
    name: str
    info: VideoInfo

    def get(self, indices: Sequence[int] | np.ndarray) -> np.ndarray: ...
    def close(self) -> None: ...


class open_video:
    """Context manager: the reader for `path`. Raises VideoError. Open it in the process that uses it."""

    def __init__(self, path: str | Path, decoder: str = "auto"):
        if decoder not in DECODERS:
            raise ValueError(f"decoder={decoder!r} must be one of {', '.join(DECODERS)}")
        self._reader: VideoReader = PyAVReader(str(path))
        if decoder == "decord" and not self._reader.info.decord_unsafe:
            reader = DecordReader.open(str(path), self._reader.info)
            if reader is not None:
                self._reader.close()
                self._reader = reader

    def __enter__(self) -> VideoReader:
        return self._reader

    def __exit__(self, *_: object) -> None:
        self._reader.close()


def decord_is_installed() -> bool:
    try:
        import decord  # noqa: F401
    except ImportError:
        return False
    return True


@dataclass(frozen=True)
class _Packets:
    """What the scan found. Times are in units of the stream's time base."""

    pts: list[int]  # of the presented frames, sorted; empty when they cannot be told by their time stamps
    keyframes: list[tuple[int, int]]  # (pts, where to seek), by pts
    decord_unsafe: str

    @classmethod
    def scan(cls, container: av.container.InputContainer, stream: av.VideoStream) -> "_Packets":
        pts, keyframes, reasons = [], [], {}
        last_key_pts = None
        for packet in container.demux(stream):
            if packet.size == 0:
                continue  # the flush packet at the end
            if packet.is_discard:  # decoded for the sake of others, outside the edit list
                reasons["edit list"] = True
            elif packet.pts is None:
                reasons["packets without time stamps"] = True
            else:
                pts.append(packet.pts)
            if packet.pts is None:
                continue
            if packet.is_keyframe:
                last_key_pts = packet.pts
                keyframes.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            elif last_key_pts is not None and packet.pts < last_key_pts:
                reasons["open groups of pictures"] = True
        if len(set(pts)) < len(pts):
            reasons["repeated time stamps"] = True
        codec = stream.codec_context
        if container.format.name == "avi" and codec.has_b_frames:
            reasons["reordered frames in AVI"] = True
        if container.format.name == "mpegts":
            reasons["MPEG transport stream"] = True
        if codec.name in ("av1", "libdav1d", "libaom-av1"):
            reasons["AV1"] = True
        counted = {"packets without time stamps", "repeated time stamps", "reordered frames in AVI"} & reasons.keys()
        return cls([] if counted else sorted(pts), sorted(keyframes), ", ".join(reasons))


class PyAVReader:
    """Exact on every kind of file that was tried, and the faster one.

    For the wanted frames of one group of pictures it seeks to the group's keyframe and decodes up to the last of them;
    frames that are neither wanted nor needed by others (non-reference B frames) are not decoded at all. Files whose time
    stamps do not name the frames (AVI with reordered frames, for one) are decoded from the start and counted.
    """

    name = "pyav"

    def __init__(self, path: str):
        self._path = path
        self._open()
        try:
            packets = _errors_named(_Packets.scan, self._container, self._stream)
            self._pts, self._keyframes = packets.pts, packets.keyframes
            base = self._stream.time_base or Fraction(1, 1)
            if self._pts:
                times = np.array([float((p - self._pts[0]) * base) for p in self._pts])
                fps = self._rate(times)
            else:
                count = _errors_named(self._count)
                fps = self._rate(np.zeros(0))
                times = np.arange(count) / fps
            if not len(times):
                raise VideoError("has no frame that can be decoded")
        except BaseException:
            self.close()
            raise
        self.info = VideoInfo(len(times), fps, times, packets.decord_unsafe)

    def get(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [len(indices), H, W, 3]; any order, repeats allowed. Raises VideoError, IndexError."""
        wanted = sorted({int(i) for i in indices})
        if not wanted or wanted[0] < 0 or wanted[-1] >= self.info.num_frames:
            raise IndexError(f"frames {wanted[:1]} to {wanted[-1:]} of a video of {self.info.num_frames} frames")
        images = _errors_named(self._by_time if self._pts else self._by_count, wanted)
        missing = [i for i in wanted if i not in images]
        if missing:
            raise VideoError(f"frame {missing[0]} of {self.info.num_frames} cannot be decoded ({len(missing)} such)")
        if len({image.shape for image in images.values()}) > 1:
            raise VideoError("the size of the picture changes within the clip")
        return np.stack([images[int(i)] for i in indices])

    def inspect(self) -> VideoReport:
        self.close()
        self._open()
        frames, damage, size, position = 0, "", (0, 0), 0
        for packet in self._container.demux(self._stream):
            try:
                decoded = packet.decode()
            except av.FFmpegError as e:
                decoded, damage = [], damage or f"coded frame {position}: {_reason(e)}"
            for frame in decoded:
                if frame.is_corrupt:
                    damage = damage or f"coded frame {position}: corrupt"
                frames += 1
                if frames == 1:
                    size = _image(frame).shape[:2]
            position += 1
        if not frames:
            raise VideoError(damage or "has no frame that can be decoded")
        header = self._stream.frames
        remark = f"the header says {header} frames" if header and header != frames and not damage else ""
        return VideoReport(frames, self.info.fps, size[1], size[0], damage, remark)

    def close(self) -> None:
        self._container.close()

    def _open(self) -> None:
        try:
            self._container = av.open(self._path)
        except (av.FFmpegError, OSError) as e:
            raise VideoError(_reason(e)) from e
        stream = self._container.streams.best("video")
        if stream is None:
            self._container.close()
            raise VideoError("has no video stream")
        stream.codec_context.thread_count = 1
        self._stream = stream

    def _rate(self, times: np.ndarray) -> float:
        rate = self._stream.average_rate or self._stream.guessed_rate
        if rate:
            return float(rate)
        return (len(times) - 1) / times[-1] if len(times) > 1 and times[-1] > 0 else FALLBACK_FPS

    # -- frames named by their time stamps

    def _by_time(self, wanted: list[int]) -> dict[int, np.ndarray]:
        index_of = {self._pts[i]: i for i in wanted}
        groups: dict[int, list[int]] = {}  # keyframe -> wanted time stamps
        for pts in index_of:
            groups.setdefault(self._keyframe_of(pts), []).append(pts)
        images: dict[int, np.ndarray] = {}
        for keyframe, stamps in sorted(groups.items()):
            for start in (keyframe, keyframe - 1, keyframe - 2, None):  # None: from the very start
                if start is not None and start < 0:
                    continue
                found = self._decode_group(start, set(stamps))
                images.update({index_of[pts]: image for pts, image in found.items()})
                if len(found) == len(stamps):
                    break
        return images

    def _keyframe_of(self, pts: int) -> int:
        """The last keyframe that is shown no later than `pts`; -1 if there is none."""
        low, high = 0, len(self._keyframes)
        while low < high:
            mid = (low + high) // 2
            low, high = (mid + 1, high) if self._keyframes[mid][0] <= pts else (low, mid)
        return low - 1

    def _decode_group(self, keyframe: int | None, stamps: set[int]) -> dict[int, np.ndarray]:
        """Decodes from a keyframe until all `stamps` are found, or until it is clear that they will not be."""
        if keyframe is None:
            self.close()
            self._open()
        else:
            self._container.seek(self._keyframes[keyframe][1], stream=self._stream, backward=True)
        codec, last, found = self._stream.codec_context, max(stamps), {}
        first, late, broken, damaged = True, 0, False, set()
        for packet in self._container.demux(self._stream):
            codec.skip_frame = "DEFAULT" if packet.is_keyframe or packet.pts in stamps else "NONREF"
            broken = broken and not packet.is_keyframe
            try:
                frames = packet.decode()
            except av.FFmpegError:
                frames, broken = [], True
            if broken:
                # FFmpeg conceals what follows a broken packet, up to the next keyframe: those frames are not the video's.
                damaged.add(packet.pts)
            for frame in frames:
                if first and keyframe is not None and frame.pts is not None and frame.pts > min(stamps):
                    return {}  # the seek went too far
                first = False
                if frame.pts in stamps and frame.pts not in damaged and not frame.is_corrupt:
                    found[frame.pts] = _image(frame)
                # Frames come out in time order: well past the last wanted one, what is missing will not come.
                late += frame.pts is not None and frame.pts > last
            if len(found) == len(stamps) or late > 16:
                break
        return found

    # -- frames named by their position

    def _count(self) -> int:
        return sum(1 for _ in self._frames_from_start())

    def _by_count(self, wanted: list[int]) -> dict[int, np.ndarray]:
        images, rest = {}, set(wanted)
        for position, frame in enumerate(self._frames_from_start()):
            if position in rest:
                images[position] = _image(frame)
            if position >= wanted[-1]:
                break
        return images

    def _frames_from_start(self):
        self.close()
        self._open()
        for packet in self._container.demux(self._stream):
            try:
                yield from packet.decode()
            except av.FFmpegError:
                continue  # this one cannot be decoded; the next ones are counted on


def inspect_video(path: str | Path) -> VideoReport:
    """Decodes every frame. Raises VideoError where there is none."""
    with open_video(path, "pyav") as video:
        return _errors_named(video.inspect)


class DecordReader:
    """decord, on files that the scan declares safe. Opened from a path, one thread, its bridge left alone."""

    name = "decord"

    def __init__(self, reader, path: str, info: VideoInfo, errors: tuple[type[Exception], ...]):
        self._reader, self._path, self.info, self._errors = reader, path, info, errors

    @classmethod
    def open(cls, path: str, info: VideoInfo) -> "DecordReader | None":
        """None where decord is not installed, cannot open the file, or counts other frames than the scan."""
        try:
            import decord
        except ImportError:
            return None
        errors = (RuntimeError, decord.DECORDError)
        try:
            reader = decord.VideoReader(path, num_threads=1)
        except errors:
            return None
        return cls(reader, path, info, errors) if len(reader) == info.num_frames else None

    def get(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [len(indices), H, W, 3]. Raises VideoError, IndexError."""
        unique, back = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        if not len(unique) or unique[0] < 0 or unique[-1] >= self.info.num_frames:
            raise IndexError(f"frames {unique[:1]} to {unique[-1:]} of a video of {self.info.num_frames} frames")
        try:
            frames = self._reader.get_batch(unique.tolist())
        except self._errors:
            # It gives up on frames that are whole, as soon as its look-ahead meets a damaged one.
            with open_video(self._path, "pyav") as video:
                return video.get(indices)
        # PyTorchVideo switches decord's bridge to torch for the whole process when it is imported.
        frames = frames.asnumpy() if hasattr(frames, "asnumpy") else frames.numpy()
        return frames[back]

    def close(self) -> None:
        del self._reader


def _errors_named(work, *arguments):
    """What FFmpeg says when it cannot go on, as a VideoError."""
    try:
        return work(*arguments)
    except (av.FFmpegError, OSError) as e:
        raise VideoError(_reason(e)) from e


def _image(frame: av.VideoFrame) -> np.ndarray:
    # One thread: PyAV would take every core, in each of many workers.
    image = frame.reformat(format="rgb24", threads=1).to_ndarray()
    quarter_turns = round(frame.rotation / 90)
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns % 4 else image


def _reason(e: Exception) -> str:
    """First line of a decoder's message."""
    text = getattr(e, "strerror", None) or str(e)  # str() of FFmpeg's would add a number and the path
    return (text.strip().splitlines() or [type(e).__name__])[0]

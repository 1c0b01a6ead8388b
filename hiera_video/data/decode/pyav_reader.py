"""Frames with PyAV: exact on every kind of file that was tried, and the other readers' reference.

For the wanted frames of one group of pictures it seeks to the group's keyframe and decodes up to
the last of them; frames that are neither wanted nor needed by others (non-reference B frames) are
not decoded at all. Files whose time stamps do not name the frames (AVI with reordered frames, for
one) are decoded from the start and counted.

FFmpeg conceals damage: it shows something for a frame that it could not decode, and for those that
build on it. Those are not the video's frames. They are an error here, up to the next keyframe.
"""

import contextlib
import dataclasses
import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from hiera_video.data.decode.packets import (
    COUNTED,
    DAMAGE,
    FIELDS,
    Packets,
    errors_named,
    reason,
)
from hiera_video.system.errors import VideoError
from hiera_video.system.members import member_of, open_bytes

LATE_FRAMES = 16  # past the last wanted one, after which a missing one will not come

# Tags of any encoding: from PyAV 19 on that is so without asking, and asking is an error.
AV_MAJOR = int(av.__version__.split(".")[0])
READABLE_TAGS: Any = {"metadata_errors": "replace"} if AV_MAJOR < 19 else {}


@dataclass(frozen=True)
class VideoReport:
    """What a full decode of a file found."""

    frames: int  # that decode
    fps: float
    width: int  # upright
    height: int
    damage: str  # the first coded frame that does not decode; empty if all do
    remark: str  # a wrong header; no damage


class PyAVReader:
    """Opened from a path, in the process that uses it. Raises VideoError."""

    name = "pyav"

    def __init__(self, path: str, packets: Packets | None = None):
        self._path = path
        # Where frames are counted: the frames from the start, and the position of the next one.
        self._sequence: Iterator[av.VideoFrame | None] | None = None
        self._position = 0
        self._open()
        try:
            self.packets = errors_named(self._scan) if packets is None else packets
            self.info = self.packets.info
            if not self.info.num_frames:
                raise VideoError("has no frame that can be decoded")
        except BaseException:
            self.close()
            raise

    def get(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [len(indices), H, W, 3], in any order. Raises VideoError, IndexError."""
        images = dict(self.each(indices))
        return np.stack([images[int(i)] for i in indices])

    def each(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(frame number, uint8 [H, W, 3]) of each of them once, as they come.

        Raises VideoError, IndexError.
        """
        wanted = sorted({int(i) for i in indices})
        if not wanted or wanted[0] < 0 or wanted[-1] >= self.info.num_frames:
            raise IndexError(
                f"frames {wanted[:1]} to {wanted[-1:]} of a video of {self.info.num_frames} frames"
            )
        missing = set(wanted)
        shape = None
        found = self._by_time(wanted) if self.packets.pts else self._by_count(wanted)
        while (pair := errors_named(next, found, None)) is not None:
            number, image = pair
            shape = shape or image.shape
            if image.shape != shape:
                raise VideoError("the picture turns within the clip")
            missing.discard(number)
            yield number, image
        if missing:
            raise VideoError(
                f"frame {min(missing)} of {self.info.num_frames} cannot be decoded "
                f"({len(missing)} such)"
            )

    def inspect(self) -> VideoReport:
        """Decodes every frame. Raises VideoError where there is none."""
        frames, size, damage = self._decode_all(strict=True)
        if damage:  # a lenient decoder tells how many frames can be had of it
            frames, size, _ = self._decode_all(strict=False)
        if not frames:
            raise VideoError(damage or "has no frame that can be decoded")
        header = self._stream.frames
        remark = ""
        if header and header != frames and not damage:
            remark = f"the header says {header} frames"
        return VideoReport(frames, self.info.fps, size[1], size[0], damage, remark)

    def _decode_all(self, *, strict: bool) -> tuple[int, tuple[int, int], str]:
        """(frames, (height, width) of the first, the first damage)

        The damage is what is wrong with the first coded frame that does not decode; empty if all
        do.
        """
        self.close()
        self._open(strict=strict)
        frames = 0
        size = (0, 0)
        damage = ""
        for position, packet in enumerate(self._container.demux(self._stream)):
            try:
                decoded = packet.decode()
            except av.FFmpegError as e:
                decoded = []
                damage = damage or f"coded frame {position}: {reason(e)}"
            for frame in decoded:
                if frame.is_corrupt:
                    damage = damage or f"coded frame {position}: corrupt"
                frames += 1
                if frames == 1:
                    size = self._image(frame).shape[:2]
        return frames, size, damage

    def close(self) -> None:
        self._container.close()

    def _open(self, *, strict: bool = True) -> None:
        try:
            file = self._path if member_of(self._path) is None else open_bytes(self._path)
            self._container = av.open(file, "r", **READABLE_TAGS)
        except DAMAGE as e:
            raise VideoError(reason(e)) from e
        stream = self._container.streams.best("video")
        if stream is None:
            self._container.close()
            raise VideoError("has no video stream")
        stream.codec_context.thread_count = 1
        if strict:
            stream.codec_context.options = {"err_detect": "explode"}
        self._stream: Any = stream  # PyAV's types name every kind of stream
        codec: Any = stream.codec_context
        self._picture = (codec.width or None, codec.height or None)

    def _scan(self) -> Packets:
        packets = Packets.scan(self._container, self._stream)
        if FIELDS in packets.remarks:
            stamps = list(self._stamps_of_frames())
            known = {stamp for stamp in stamps if stamp is not None}
            # None, or one that comes again, or of no use: frames are counted.
            if len(known) < len(stamps) or COUNTED & set(packets.remarks):
                return dataclasses.replace(packets, pts=[], counted=len(stamps))
            keyframes = [key for key in packets.keyframes if key[0] in known]
            return dataclasses.replace(packets, pts=sorted(known), keyframes=keyframes)
        if packets.pts:
            return packets
        return dataclasses.replace(packets, counted=sum(1 for _ in self._frames_from_start()))

    def _stamps_of_frames(self) -> Iterator[int | None]:
        """Of all frames, whole or not, by decoding them."""
        self.close()
        self._open(strict=False)
        for packet in self._container.demux(self._stream):
            with contextlib.suppress(av.FFmpegError):
                yield from (frame.pts for frame in packet.decode())
        self.close()
        self._open()

    def _image(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3], upright; where the picture's size changes, at that of the header."""
        return upright(frame, *self._picture)

    # -- frames named by their time stamps

    def _by_time(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        keyframes = [pts for pts, _ in self.packets.keyframes]
        index_of = {self.packets.pts[i]: i for i in wanted}
        # By the last keyframe that is shown no later: wanted time stamps.
        groups: dict[int, list[int]] = {}
        for pts in index_of:
            groups.setdefault(bisect_right(keyframes, pts) - 1, []).append(pts)
        for keyframe, stamps in sorted(groups.items()):
            left = set(stamps)
            for start in (keyframe, keyframe - 1, keyframe - 2, None):  # None: from the very start
                if start is not None and start < 0:
                    continue
                for pts, image in self._decode_group(start, set(stamps)):
                    if pts in left:
                        left.remove(pts)
                        yield index_of[pts], image
                if not left:
                    break

    def _decode_group(
        self, keyframe: int | None, stamps: set[int]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Decodes from a keyframe until all `stamps` are found, or clearly will not be."""
        codec = self._stream.codec_context
        # The second field of a wanted frame has a stamp of its own.
        skips = FIELDS not in self.packets.remarks
        damage = _Damage(set() if skips else set(self.packets.pts))
        found: set[int] = set()
        is_first = True
        late = 0
        for packet in self._packets_from(keyframe):
            needed = packet.is_keyframe or packet.pts in stamps or not skips
            codec.skip_frame = "DEFAULT" if needed else "NONREF"
            for frame in damage.decode(packet):
                shown_later = frame.pts is not None and frame.pts > min(stamps)
                if is_first and keyframe is not None and shown_later:
                    return  # the seek went too far
                is_first = False
                if damage.is_whole(frame) and frame.pts in stamps:
                    found.add(frame.pts)
                    yield frame.pts, self._image(frame)
                # Frames come out in time order: well past the last wanted one, what is missing
                # will not come.
                late += frame.pts is not None and frame.pts > max(stamps)
            if len(found) == len(stamps) or late > LATE_FRAMES:
                break

    def _packets_from(self, keyframe: int | None) -> Iterable[av.Packet]:
        if keyframe is None:
            self.close()
            self._open()
            return self._container.demux(self._stream)
        pts, dts = self.packets.keyframes[keyframe]
        # Formats differ in which of the two they seek by; with the wrong one they land in another
        # group.
        for target in (pts, dts):
            self._container.seek(target, stream=self._stream, backward=True)
            packets = self._container.demux(self._stream)
            first = next(packets)
            if first.pts == pts:
                break
        return itertools.chain([first], packets)

    # -- frames named by their position

    def _by_count(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        rest = set(wanted)
        if self._sequence is None or self._position > wanted[0]:
            self._sequence = self._frames_from_start()
            self._position = 0
        for frame in self._sequence:
            number = self._position
            self._position += 1
            if number in rest and frame is not None:
                yield number, self._image(frame)
            if self._position > wanted[-1]:
                break

    def _frames_from_start(self) -> Iterator[av.VideoFrame | None]:
        """None for a frame that is concealed."""
        self.close()
        self._open()
        concealed = False
        for packet in self._container.demux(self._stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                concealed = True  # the next ones are counted on
                continue
            for frame in frames:
                concealed = frame.is_corrupt or (concealed and not frame.key_frame)
                yield None if concealed else frame


def upright(frame: av.VideoFrame, width: int | None, height: int | None) -> np.ndarray:
    """uint8 [H, W, 3], at that size (None: its own) before it is turned."""
    # One thread: PyAV would take every core, in each of many workers.
    image = frame.reformat(width, height, format="rgb24", threads=1).to_ndarray()
    quarter_turns = round(frame.rotation / 90)
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns % 4 else image


class _Damage:
    """Which frames of a stream are whole, from one keyframe to the next.

    A packet that does not decode spoils what follows it in the file. Leading packets, which follow
    a keyframe in the file but are shown before it, spoil other leading ones only.
    """

    def __init__(self, frames: set[int]):
        """frames: time stamps of all frames where they are coded field by field; else empty."""
        self._frames = frames
        self._first_field: int | None = None  # of the frame whose second field may follow
        self._key_pts = -math.inf
        self._broken = False
        self._leading_broken = False
        self._spoiled: set[int | None] = set()  # time stamps
        self._concealed = False  # in the order of frames, from one marked corrupt

    def decode(self, packet: Any) -> list[Any]:
        """The frames that the packet completes; none if it does not decode."""
        if packet.is_keyframe and packet.pts is not None:
            self._key_pts = packet.pts
            self._broken = False
            self._leading_broken = False
        leads = packet.pts is not None and packet.pts < self._key_pts
        try:
            frames = packet.decode()
        except av.FFmpegError:
            frames = []
            self._broken = self._broken or not leads
            self._leading_broken = True
        if packet.pts in self._frames:
            self._first_field = packet.pts
        if self._broken or (self._leading_broken and leads):
            self._spoiled |= {packet.pts, self._first_field}
        return frames

    def is_whole(self, frame: Any) -> bool:
        """To be asked of every frame, in order."""
        self._concealed = frame.is_corrupt or (self._concealed and not frame.key_frame)
        return frame.pts not in self._spoiled and not self._concealed

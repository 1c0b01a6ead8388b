"""Frames with PyAV: exact on every kind of file that was tried, and the reference for the other
readers.

For the wanted frames of one group of pictures it seeks to the group's keyframe and decodes up to
the last of them; frames that are neither wanted nor needed by others (non-reference B frames) are
not decoded at all. Files whose time stamps do not name the frames (AVI with reordered frames, for
one) are decoded from the start and counted.

FFmpeg conceals damage: it shows something for a frame that it could not decode, and for those that
build on it. Those are not the video's frames. They are an error here, up to the next keyframe.
"""

import dataclasses
import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np

from hiera_video.data.decode.packets import DAMAGE, Packets, errors_named, reason
from hiera_video.system.errors import VideoError


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
        # frames by their position, and the next one's
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
        wanted = sorted({int(i) for i in indices})
        if not wanted or wanted[0] < 0 or wanted[-1] >= self.info.num_frames:
            raise IndexError(
                f"frames {wanted[:1]} to {wanted[-1:]} of a video of {self.info.num_frames} frames"
            )
        images = errors_named(self._by_time if self.packets.pts else self._by_count, wanted)
        missing = [i for i in wanted if i not in images]
        if missing:
            raise VideoError(
                f"frame {missing[0]} of {self.info.num_frames} cannot be decoded ({len(missing)} "
                "such)"
            )
        if len({image.shape for image in images.values()}) > 1:
            raise VideoError("the size of the picture changes within the clip")
        return np.stack([images[int(i)] for i in indices])

    def inspect(self) -> VideoReport:
        """Decodes every frame. Raises VideoError where there is none."""
        frames, size, damage = self._decode_all(strict=True)
        if damage:  # a lenient decoder tells how many frames can be had of it
            frames, size, _ = self._decode_all(strict=False)
        if not frames:
            raise VideoError(damage or "has no frame that can be decoded")
        header = self._stream.frames
        remark = (
            f"the header says {header} frames" if header and header != frames and not damage else ""
        )
        return VideoReport(frames, self.info.fps, size[1], size[0], damage, remark)

    def _decode_all(self, *, strict: bool) -> tuple[int, tuple[int, int], str]:
        """(frames, (height, width) of the first, what is wrong with the first coded frame that does
        not decode)
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
                    size = _image(frame).shape[:2]
        return frames, size, damage

    def close(self) -> None:
        self._container.close()

    def _open(self, *, strict: bool = True) -> None:
        try:
            self._container = av.open(self._path, metadata_errors="replace")
        except DAMAGE as e:
            raise VideoError(reason(e)) from e
        stream = self._container.streams.best("video")
        if stream is None:
            self._container.close()
            raise VideoError("has no video stream")
        stream.codec_context.thread_count = 1
        if strict:
            stream.codec_context.options = {"err_detect": "explode"}
        self._stream = stream

    def _scan(self) -> Packets:
        packets = Packets.scan(self._container, self._stream)
        if packets.pts:
            return packets
        return dataclasses.replace(packets, counted=sum(1 for _ in self._frames_from_start()))

    # -- frames named by their time stamps

    def _by_time(self, wanted: list[int]) -> dict[int, np.ndarray]:
        keyframes = [pts for pts, _ in self.packets.keyframes]
        index_of = {self.packets.pts[i]: i for i in wanted}
        # the last keyframe that is shown no later -> wanted time stamps
        groups: dict[int, list[int]] = {}
        for pts in index_of:
            groups.setdefault(bisect_right(keyframes, pts) - 1, []).append(pts)
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

    def _decode_group(self, keyframe: int | None, stamps: set[int]) -> dict[int, np.ndarray]:
        """Decodes from a keyframe until all `stamps` are found, or until it is clear that they will
        not be.
        """
        packets = self._packets_from(keyframe)
        codec = self._stream.codec_context
        last = max(stamps)
        found = {}
        first = True
        late = 0
        # in the order of packets: from one that does not decode to the next keyframe
        key_pts = -math.inf
        damaged = set()
        broken = leading_broken = False
        # in the order of frames: from one that is marked corrupt to the next keyframe
        concealed = False
        for packet in packets:
            codec.skip_frame = "DEFAULT" if packet.is_keyframe or packet.pts in stamps else "NONREF"
            if packet.is_keyframe and packet.pts is not None:
                key_pts = packet.pts
                broken = False
                leading_broken = False
            # Leading: after a keyframe in the file, shown before it. Only others that lead may
            # build on it.
            leads = packet.pts is not None and packet.pts < key_pts
            try:
                frames = packet.decode()
            except av.FFmpegError:
                frames = []
                broken = broken or not leads
                leading_broken = True
            if broken or (leading_broken and leads):
                damaged.add(packet.pts)
            for frame in frames:
                if (
                    first
                    and keyframe is not None
                    and frame.pts is not None
                    and frame.pts > min(stamps)
                ):
                    return {}  # the seek went too far
                first = False
                concealed = frame.is_corrupt or (concealed and not frame.key_frame)
                if frame.pts in stamps and frame.pts not in damaged and not concealed:
                    found[frame.pts] = _image(frame)
                # Frames come out in time order: well past the last wanted one, what is missing will
                # not come.
                late += frame.pts is not None and frame.pts > last
            if len(found) == len(stamps) or late > 16:
                break
        return found

    def _packets_from(self, keyframe: int | None) -> Iterable[av.Packet]:
        if keyframe is None:
            self.close()
            self._open()
            return self._container.demux(self._stream)
        pts, dts = self.packets.keyframes[keyframe]
        # Formats differ in which of the two they seek by. By the wrong one they land a whole group
        # too early, or too late.
        for target in (pts, dts):
            self._container.seek(target, stream=self._stream, backward=True)
            packets = self._container.demux(self._stream)
            first = next(packets)
            if first.pts == pts:
                break
        return itertools.chain([first], packets)

    # -- frames named by their position

    def _by_count(self, wanted: list[int]) -> dict[int, np.ndarray]:
        images = {}
        rest = set(wanted)
        if self._sequence is None or self._position > wanted[0]:
            self._sequence = self._frames_from_start()
            self._position = 0
        for frame in self._sequence:
            if self._position in rest and frame is not None:
                images[self._position] = _image(frame)
            self._position += 1
            if self._position > wanted[-1]:
                break
        return images

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


def _image(frame: av.VideoFrame) -> np.ndarray:
    # One thread: PyAV would take every core, in each of many workers.
    image = frame.reformat(format="rgb24", threads=1).to_ndarray()
    quarter_turns = round(frame.rotation / 90)
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns % 4 else image

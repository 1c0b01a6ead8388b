"""Frames of a video file, by index, with one of three decoders.

    with open_video(path, "auto") as video:
        frames = video.get(indices)            # uint8 [len(indices), H, W, 3], RGB, upright

Frame k is the k-th frame that the file presents, in time order; all readers agree on it. A scan of
the packets (packets.py) tells how many there are and which decoders read the file rightly: decord
is off by frames on edit lists, open groups of pictures and some AVI, and cannot open AV1. A file
that the chosen decoder reads wrongly goes to PyAV.

`auto` is PyAV: exact everywhere, and the fastest on what data sets are made of
(docs/benchmarks.md).
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hiera_video.data.decode.packets import Manifest, Packets, VideoInfo, errors_named
from hiera_video.data.decode.pyav_reader import PyAVReader, VideoReport
from hiera_video.system.members import ffmpeg_name


class VideoReader(Protocol):
    name: str
    info: VideoInfo

    def get(self, indices: Sequence[int] | np.ndarray) -> np.ndarray: ...
    def each(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]: ...
    def close(self) -> None: ...


class open_video:
    """A context manager that gives the reader for `path`, to be used in the same process.

    Raises VideoError.
    """

    def __init__(
        self, path: str | Path, decoder: str = "auto", *, manifest: Manifest | None = None
    ):
        known = ("auto", "pyav", *OTHERS)
        if decoder not in known:
            raise ValueError(f"decoder={decoder!r} must be one of {', '.join(known)}")
        self._reader = _reader(str(path), decoder, manifest)

    def __enter__(self) -> VideoReader:
        return self._reader

    def __exit__(self, *_: object) -> None:
        self._reader.close()


def inspect_video(path: str | Path) -> VideoReport:
    """Decodes every frame. Raises VideoError where there is none."""
    reader = PyAVReader(str(path))
    try:
        return errors_named(reader.inspect)
    finally:
        reader.close()


def missing_decoder(decoder: str) -> str:
    """Why `decoder` cannot be used here; empty if it can."""
    if decoder in ("auto", "pyav"):
        return ""
    if find_spec(decoder) is None:
        return f"{decoder} is not installed"
    try:
        __import__(decoder)
    except (ImportError, OSError, RuntimeError) as e:  # torchcodec: without a system FFmpeg
        return f"{decoder} does not load: {(str(e).strip().splitlines() or ['?'])[0]}"
    return ""


def _reader(path: str, decoder: str, manifest: Manifest | None) -> VideoReader:
    packets = manifest.find(path) if manifest else None
    pyav = None
    if packets is None:
        pyav = PyAVReader(path)
        packets = pyav.packets
        if manifest:
            manifest.add(path, packets)
    if decoder in OTHERS and not packets.unsafe(decoder):
        other = OTHERS[decoder].open(path, packets)
        if other is not None:
            if pyav is not None:
                pyav.close()
            return other
    return pyav or PyAVReader(path, packets)


class DecordReader:
    """decord, opened from a path, one thread, its bridge left alone."""

    name = "decord"

    def __init__(
        self, reader: Any, path: str, packets: Packets, errors: tuple[type[Exception], ...]
    ):
        self._reader = reader
        self._path = path
        self._packets = packets
        self._errors = errors
        self.info = packets.info

    @classmethod
    def open(cls, path: str, packets: Packets) -> "DecordReader | None":
        """None where decord is missing, cannot open the file, or counts other frames."""
        try:
            import decord
        except ImportError:
            return None
        errors = (RuntimeError, decord.DECORDError, decord.DECORDLimitReachedError)
        try:
            # Not one frame may be replaced by its neighbour, which decord does without a word.
            reader = decord.VideoReader(ffmpeg_name(path), num_threads=1, fault_tol=1e-6)
        except errors:
            return None
        return (
            cls(reader, path, packets, errors) if len(reader) == packets.info.num_frames else None
        )

    def get(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [len(indices), H, W, 3]. Raises VideoError, IndexError."""
        unique, back = _unique(indices, self.info.num_frames)
        try:
            frames = self._reader.get_batch(unique.tolist())
        except self._errors:
            # It gives up on frames that are whole, as soon as its look-ahead meets a damaged one.
            return _with_pyav(self._path, self._packets, indices)
        # PyTorchVideo switches decord's bridge to torch for the whole process when it is imported.
        frames = frames.asnumpy() if hasattr(frames, "asnumpy") else frames.numpy()
        return frames[back]

    def each(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """As PyAVReader's."""
        return _at_once(self, indices)

    def close(self) -> None:
        del self._reader


class TorchCodecReader:
    """torchcodec in its exact mode, one thread."""

    name = "torchcodec"

    def __init__(self, decoder: Any, path: str, packets: Packets):
        self._decoder = decoder
        self._path = path
        self._packets = packets
        self.info = packets.info

    @classmethod
    def open(cls, path: str, packets: Packets) -> "TorchCodecReader | None":
        """None where torchcodec does not load, cannot open the file, or counts other frames."""
        try:
            from torchcodec.decoders import VideoDecoder

            decoder = VideoDecoder(
                ffmpeg_name(path),
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode="exact",
            )
        except (ImportError, OSError, RuntimeError, ValueError):
            return None
        return cls(decoder, path, packets) if len(decoder) == packets.info.num_frames else None

    def get(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [len(indices), H, W, 3]. Raises VideoError, IndexError."""
        unique, back = _unique(indices, self.info.num_frames)
        try:
            frames = self._decoder.get_frames_at(unique.tolist()).data
        except (RuntimeError, IndexError):  # damaged, here or before
            return _with_pyav(self._path, self._packets, indices)
        return frames.numpy()[back]

    def each(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """As PyAVReader's."""
        return _at_once(self, indices)

    def close(self) -> None:
        del self._decoder


OTHERS: dict[str, Any] = {"decord": DecordReader, "torchcodec": TorchCodecReader}


def _at_once(
    reader: VideoReader, indices: Sequence[int] | np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """Of one decoder, all of them: where it gives up, every frame is PyAV's."""
    numbers = sorted({int(i) for i in indices})
    yield from zip(numbers, reader.get(numbers))


def _unique(indices: Sequence[int] | np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """(sorted indices without repeats, where each given one is among them). Raises IndexError."""
    unique, back = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    if not len(unique) or unique[0] < 0 or unique[-1] >= num_frames:
        raise IndexError(f"frames {unique[:1]} to {unique[-1:]} of a video of {num_frames} frames")
    return unique, back


def _with_pyav(path: str, packets: Packets, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    reader = PyAVReader(path, packets)
    try:
        return reader.get(indices)
    finally:
        reader.close()

"""Frames of small videos, decoded once: a folder that all processes and later runs read.

For sets that are read hundreds of times and whose frames fit a disk or, better, the memory that the
system caches files in. It is a cache: whatever is wrong with it, videos are decoded as always, and
samples are the same with and without it.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from hiera_video.data.decode.packets import VideoInfo, stamp
from hiera_video.data.decode.process import BoundedReader, DecodeFailure
from hiera_video.system.errors import VideoError
from hiera_video.system.files import written_whole
from hiera_video.system.tensors import save_file

MOST_BYTES = 256 << 20  # of a video's frames
MEASURED_EVERY = 64 << 20  # bytes that a process writes


class FrameCache:
    """A folder of at most about `limit_gib`, over all processes that write to it. Picklable."""

    def __init__(self, folder: str | Path, *, limit_gib: float):
        self._folder = Path(folder)
        self._limit = limit_gib * 2**30
        self._left = 0.0  # bytes that may be written before the folder is measured again
        self._refused: set[str] = set()  # videos that do not go in

    def find(self, path: str) -> "CachedReader | None":
        """A reader of the video's frames, if they are here and the file has not changed since."""
        try:
            return CachedReader(self._file(path))
        except (OSError, SafetensorError, KeyError):
            return None

    def add(self, path: str, video: BoundedReader) -> bool:
        """Decodes the whole video and keeps its frames, if they are few enough.

        Returns whether the reader can still be used: its process may have been killed on the way.
        """
        if path in self._refused:
            return True
        self._refused.add(path)
        try:
            size = video.get([0]).nbytes * video.info.num_frames
            if size > MOST_BYTES or not self._has_room(size):
                return True
            frames = video.get(np.arange(video.info.num_frames))
            self._write(path, frames, video.info)
        except DecodeFailure:
            return False
        except (OSError, SafetensorError, VideoError):
            return True
        self._refused.discard(path)
        return True

    def _has_room(self, size: int) -> bool:
        if self._left < size:
            used = 0
            with contextlib.suppress(OSError):
                used = sum(entry.stat().st_size for entry in os.scandir(self._folder))
            # Others write, too: what is left is looked up again before long.
            self._left = min(self._limit - used, max(size, MEASURED_EVERY))
        return self._left >= size

    def _write(self, path: str, frames: np.ndarray, info: VideoInfo) -> None:
        tensors = {
            "frames": torch.from_numpy(frames),
            "times": torch.from_numpy(info.times.astype(np.float64)),
            "fps": torch.tensor([info.fps], dtype=torch.float64),
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        with written_whole(self._file(path), shared=True) as temporary:
            save_file(tensors, temporary)
        self._left -= frames.nbytes

    def _file(self, path: str) -> Path:
        key = f"{os.path.abspath(path)} {stamp(path)}".encode(errors="surrogateescape")
        return self._folder / f"{hashlib.sha256(key).hexdigest()[:32]}.safetensors"


class CachedReader:
    """A video's frames in a cache's file; as a BoundedReader, and nothing is decoded."""

    name = "cache"

    def __init__(self, file: Path):
        """Raises OSError, SafetensorError, KeyError."""
        # It stays mapped, whatever becomes of the file's name.
        self._content: Any = safe_open(file, "pt").__enter__()
        times = self._content.get_tensor("times").numpy()
        self.info = VideoInfo(len(times), float(self._content.get_tensor("fps")[0]), times)

    def get(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [len(indices), H, W, 3]"""
        indices = np.asarray(indices, dtype=np.int64)
        first = int(indices.min())
        part = self._content.get_slice("frames")[first : int(indices.max()) + 1]
        return part.numpy()[indices - first]

    def parts(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[list[int], np.ndarray]]:
        """All at once: they are small."""
        numbers = np.unique(np.asarray(indices, dtype=np.int64))
        yield numbers.tolist(), self.get(numbers)

    def close(self) -> None:
        self._content.__exit__(None, None, None)

    def __enter__(self) -> "CachedReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""Frames of small videos, decoded once: a folder that all processes and later runs read.

For sets that are read hundreds of times and whose frames fit a disk or, better, the memory that the
system caches files in. It is a cache: whatever is wrong with it, videos are decoded as always, and
samples are the same with and without it.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hiera_video.data.decode.packets import VideoInfo, stamp
from hiera_video.data.decode.process import BoundedReader
from hiera_video.system.errors import VideoError
from hiera_video.system.files import written_whole

MOST_BYTES = 256 << 20  # of a video's frames


class FrameCache:
    """A folder of at most about `limit_gib`. Picklable."""

    def __init__(self, folder: str | Path, *, limit_gib: float):
        self._folder = Path(folder)
        self._left = limit_gib * 2**30
        self._measured = False

    def find(self, path: str) -> "CachedReader | None":
        """A reader of the video's frames, if they are here and the file has not changed since."""
        try:
            return CachedReader(self._file(path))
        except (OSError, SafetensorError, KeyError):
            return None

    def add(self, path: str, video: BoundedReader) -> None:
        """Decodes the whole video and keeps its frames, if they are few enough."""
        info = video.info
        if not self._measured:
            with contextlib.suppress(OSError):
                self._left -= sum(entry.stat().st_size for entry in os.scandir(self._folder))
            self._measured = True
        with contextlib.suppress(OSError, SafetensorError, VideoError):
            size = video.get([0]).nbytes * info.num_frames
            if size > min(MOST_BYTES, self._left):
                return
            tensors = {
                "frames": torch.from_numpy(video.get(np.arange(info.num_frames))),
                "times": torch.from_numpy(info.times.astype(np.float64)),
                "fps": torch.tensor([info.fps], dtype=torch.float64),
            }
            self._folder.mkdir(parents=True, exist_ok=True)
            with written_whole(self._file(path), shared=True) as temporary:
                save_file(tensors, temporary)
            self._left -= size

    def _file(self, path: str) -> Path:
        key = f"{os.path.abspath(path)} {stamp(path)}".encode(errors="surrogateescape")
        return self._folder / f"{hashlib.sha256(key).hexdigest()[:32]}.safetensors"


class CachedReader:
    """A video's frames in a cache's file; as a BoundedReader, and nothing is decoded."""

    name = "cache"

    def __init__(self, file: Path):
        """Raises OSError, SafetensorError, KeyError."""
        with safe_open(file, "pt") as f:
            times = f.get_tensor("times").numpy()
            self.info = VideoInfo(len(times), float(f.get_tensor("fps")[0]), times)
        self._file = file

    def get(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [len(indices), H, W, 3]. Raises VideoError."""
        indices = np.asarray(indices, dtype=np.int64)
        first = int(indices.min())
        try:
            with safe_open(self._file, "pt") as f:
                part = f.get_slice("frames")[first : int(indices.max()) + 1]
        except (OSError, SafetensorError) as e:
            raise VideoError(f"{self._file}: {e}") from e
        return part.numpy()[indices - first]

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> "CachedReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

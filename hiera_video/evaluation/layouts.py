"""How features lie on the disk: a safetensors file a video, an array a video, or many in a file.

A layout writes one video at a time, whole or out of parts that are safetensors files of some of its
windows each. A Place is what a manifest says of a row.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hiera_video.data.lists import VideoList
from hiera_video.evaluation.detector_files import (
    SUFFIX,
    join_npy,
    rows_of_npy,
    sidecar_of,
    video_ids,
    write_npy,
    write_sidecar,
)
from hiera_video.evaluation.joining import join
from hiera_video.system.files import written_whole
from hiera_video.system.tensors import save_file

ARRAYS = ("actionformer", "opentad")
PARTS = ".parts"
WHOLE = "whole"  # folder in it: of videos that wait to be packed
NAME_BYTES = 150  # of a video's name in a file's name
# Of a packed file: the rows of the list that it holds, and how many windows each has.
ROWS = "rows"
WINDOWS = "windows"


class Place(NamedTuple):
    """Where a video's features are."""

    file: str
    windows: int
    first: int = 0  # window of the file


class Layout(Protocol):
    def place(self, row: int) -> Place | None:
        """None where the row is not there, or not whole."""

    def write(self, row: int, tensors: dict[str, Tensor], *, fps: float, frames: int) -> None: ...

    def join(self, row: int, parts: list[Path], *, fps: float, frames: int) -> None: ...

    def take_up(self, rows: Sequence[int]) -> None:
        """What an earlier run, or another rank, has left of `rows`."""

    def finish(self) -> None:
        """Nothing more is written."""


class FileEach:
    """`<row>_<name>.safetensors`: `features [windows, dim]`, `times [windows, 2]` in seconds, and
    `stage1..4` where the model gives them.
    """

    def __init__(self, folder: Path, videos: VideoList):
        self._folder = folder
        self._videos = videos

    def place(self, row: int) -> Place | None:
        try:
            count = rows_of(self._folder / self._name(row))
        except (OSError, SafetensorError):
            return None
        return Place(self._name(row), count) if count else None

    def write(self, row: int, tensors: dict[str, Tensor], *, fps: float, frames: int) -> None:
        write_tensors(self._folder / self._name(row), tensors)

    def join(self, row: int, parts: list[Path], *, fps: float, frames: int) -> None:
        join(parts, self._folder / self._name(row))

    def take_up(self, rows: Sequence[int]) -> None:
        pass

    def finish(self) -> None:
        pass

    def _name(self, row: int) -> str:
        """Its row, which no other has, and what a file system surely takes of its own name."""
        stem = Path(self._videos.written(row)).stem.encode(errors="replace").replace(b"?", b"_")
        return f"{row:06d}_{stem[:NAME_BYTES].decode(errors='ignore')}.safetensors"


class ArrayEach:
    """`<video id>.npy` and what is known of it beside it (detector_files.py)."""

    def __init__(self, folder: Path, videos: VideoList):
        """Raises UserError where two videos have one id."""
        self._folder = folder
        self._ids = video_ids(videos)

    def place(self, row: int) -> Place | None:
        file = self._file(row)
        try:
            return Place(file.name, rows_of_npy(file)) if sidecar_of(file).exists() else None
        except (OSError, ValueError):
            return None

    def write(self, row: int, tensors: dict[str, Tensor], *, fps: float, frames: int) -> None:
        features = tensors["features"]
        write_npy(self._file(row), features)
        write_sidecar(self._file(row), fps=fps, frames=frames, rows=len(features))

    def join(self, row: int, parts: list[Path], *, fps: float, frames: int) -> None:
        count = sum(map(rows_of, parts))
        join_npy(parts, self._file(row), count)
        write_sidecar(self._file(row), fps=fps, frames=frames, rows=count)

    def take_up(self, rows: Sequence[int]) -> None:
        pass

    def finish(self) -> None:
        pass

    def _file(self, row: int) -> Path:
        return self._folder / f"{self._ids[row]}{SUFFIX}"


class Packed:
    """`packed_<row>.safetensors`, of many videos each, one after the other: what FileEach writes of
    them, and `rows [videos]` and `windows [videos]`.

    Videos wait in files of their own until there are enough of them; which ones come together is
    a matter of when they were done. The row in the name is the first one, and no other's.
    """

    def __init__(self, folder: Path, size: int):
        """size: bytes of a file, about."""
        self._folder = folder
        self._size = size
        self._waiting: dict[int, Path] = {}
        self._bytes = 0
        self._places: dict[int, Place] = {}

    def place(self, row: int) -> Place | None:
        return self._places.get(row)

    def write(self, row: int, tensors: dict[str, Tensor], *, fps: float, frames: int) -> None:
        write_tensors(self._new(row), tensors | _own(row, len(tensors["times"])))
        self._wait(row)

    def join(self, row: int, parts: list[Path], *, fps: float, frames: int) -> None:
        own = parts[0].parent / "own.safetensors"
        write_tensors(own, _own(row, sum(map(rows_of, parts))))
        join([own, *parts], self._new(row))
        self._wait(row)

    def take_up(self, rows: Sequence[int]) -> None:
        for file in sorted(self._folder.glob("packed_*.safetensors")):
            with contextlib.suppress(SafetensorError, OSError):
                self._places |= _places_in(file)
        for row in rows:  # what a kill has left of a file that was being written
            (self._folder / f".{self._name(row)}").unlink(missing_ok=True)
            (self._waiting_room / f".{row:06d}.safetensors").unlink(missing_ok=True)
        left = {int(file.stem): file for file in self._waiting_room.glob("[0-9]*.safetensors")}
        for row in rows:
            if row in self._places and row in left:
                left[row].unlink()  # the kill came just after its file was packed
            elif row in left and _is_whole(left[row]):
                self._wait(row)

    def finish(self) -> None:
        self._pack()

    @property
    def _waiting_room(self) -> Path:
        return self._folder / PARTS / WHOLE

    def _name(self, first: int) -> str:
        return f"packed_{first:06d}.safetensors"

    def _new(self, row: int) -> Path:
        self._waiting_room.mkdir(parents=True, exist_ok=True)
        return self._waiting_room / f"{row:06d}.safetensors"

    def _wait(self, row: int) -> None:
        file = self._new(row)
        self._waiting[row] = file
        self._bytes += file.stat().st_size
        self._places[row] = Place(file.name, rows_of(file))
        if self._bytes >= self._size:
            self._pack()

    def _pack(self) -> None:
        if not self._waiting:
            return
        files = list(self._waiting.values())
        target = self._folder / self._name(next(iter(self._waiting)))
        join(files, target)
        self._places |= _places_in(target)
        for file in files:
            file.unlink()
        self._waiting = {}
        self._bytes = 0


def _own(row: int, windows: int) -> dict[str, Tensor]:
    return {ROWS: torch.tensor([row]), WINDOWS: torch.tensor([windows])}


def _places_in(file: Path) -> dict[int, Place]:
    """By row. Raises OSError, SafetensorError."""
    with safe_open(file, "pt") as f:
        rows = f.get_tensor(ROWS).tolist()
        windows = f.get_tensor(WINDOWS)
    firsts = (windows.cumsum(0) - windows).tolist()
    return {
        row: Place(file.name, count, first)
        for row, count, first in zip(rows, windows.tolist(), firsts)
    }


def _is_whole(file: Path) -> bool:
    try:
        return rows_of(file) > 0
    except (OSError, SafetensorError):
        return False


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    with written_whole(file) as temporary:
        save_file(tensors, temporary)


def rows_of(file: Path) -> int:
    """Raises OSError, SafetensorError."""
    with safe_open(file, "pt") as f:
        return f.get_slice("times").get_shape()[0]

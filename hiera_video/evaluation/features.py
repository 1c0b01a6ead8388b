"""Features of the videos of a list, and a manifest of them.

A video of any length comes in chunks, each written to a part at once; parts are joined, byte by
byte, when the last one is there. What is on the disk is not computed again: a killed run goes on at
the next chunk.
"""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hiera_video.data.dataset import Batch
from hiera_video.data.lists import VideoList
from hiera_video.evaluation.joining import average
from hiera_video.evaluation.layouts import (
    ARRAYS,
    PARTS,
    ArrayEach,
    FileEach,
    Layout,
    Packed,
    rows_of,
    write_tensors,
)
from hiera_video.system.distributed import World
from hiera_video.system.files import write_csv

DTYPES = {"float32": torch.float32, "float16": torch.float16}
COLUMNS = ("path", "file", "num_clips", "status")


class FeatureFiles:
    """A consumer of evaluate(): writes what a layout (layouts.py) makes of each video.

    average: one row a video, the mean over its clips; its time is the video's. pack_bytes: size of
    a packed file, about.
    """

    def __init__(
        self,
        folder: Path,
        videos: VideoList,
        *,
        layout: str = "files",
        dtype: str = "float32",
        average: bool = False,
        pack_bytes: int = 1 << 28,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.videos = videos
        self.dtype = DTYPES[dtype]
        self.average = average
        self.layout: Layout = FileEach(folder, videos)
        self.is_packed = layout == "packed"
        if self.is_packed:
            self.layout = Packed(folder, pack_bytes)
        elif layout in ARRAYS:
            self.layout = ArrayEach(folder, videos)
        self.status: dict[int, str] = {}  # of the rows that were tried in this process

    def take_up(self, rows: Sequence[int]) -> list[int]:
        """Takes up what earlier runs have left of `rows`; returns those that are left to do."""
        self.layout.take_up(rows)
        for folder in (self.folder / PARTS).glob("[0-9]*"):
            # A kill may have come between the join and the end of the parts.
            if self.layout.place(int(folder.name)):
                shutil.rmtree(folder, ignore_errors=True)
        return [row for row in rows if not self.layout.place(row)]

    def clips_done(self, row: int) -> int:
        """How many of a video's first clips need not be computed again.

        The last part is computed again: what it completes may not have been joined.
        """
        done = 0
        for part in self._parts(row)[:-1]:
            if int(part.stem) != done:
                break
            try:
                done += rows_of(part)
            except (OSError, SafetensorError):
                break
        return done

    def update(self, batch: Batch, out: dict[str, Tensor]) -> None:
        row = int(batch["index"])
        times = batch["times"][0]
        tensors = {name: value[0].to(self.dtype).contiguous() for name, value in out.items()}
        tensors |= {"times": torch.from_numpy(times)}
        known = {"fps": batch["fps"], "frames": batch["frames"]}
        total = batch["total"]
        if batch["first"] == 0 and len(times) == total:
            whole = average([tensors]) if self.average else tensors
            self.layout.write(row, whole, **known)
        else:
            folder = self.folder / PARTS / f"{row:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            write_tensors(folder / f"{batch['first']:08d}.safetensors", tensors)
            if batch["first"] + len(times) < total:
                return
            parts = self._parts(row)
            if self.average:
                self.layout.write(row, average(load_file(part) for part in parts), **known)
            else:
                self.layout.join(row, parts, **known)
            shutil.rmtree(folder, ignore_errors=True)  # another job may be clearing it
        self.status[row] = "ok"

    def missing(self, row: int, reason: str) -> None:
        shutil.rmtree(self.folder / PARTS / f"{row:06d}", ignore_errors=True)
        self.status[row] = reason

    def finish(self, world: World, rows: list[int], file: Path) -> None:
        """Ends the layout's work; rank 0 writes the manifest: the rows, in list order."""
        self.layout.finish()
        status = {row: s for part in world.gather(self.status) for row, s in part.items()}
        if not world.is_main:
            return
        self.layout.take_up(rows)
        lines = []
        for row in rows:
            said = status.get(row, "ok")
            place = self.layout.place(row) if said == "ok" else None
            line: list[Any] = [self.videos.written(row), "", 0, said]
            if place is not None:
                line[1:3] = place.file, place.windows
            elif said == "ok":
                line[3] = "its file is not there"  # yet: storage may show it late
            lines.append([*line, place.first if place else 0] if self.is_packed else line)
        write_manifest(file, lines, packed=self.is_packed)

    def _parts(self, row: int) -> list[Path]:
        return sorted((self.folder / PARTS / f"{row:06d}").glob("[0-9]*.safetensors"))


def write_manifest(file: Path, lines: Sequence[Sequence], *, packed: bool = False) -> None:
    """lines: a value for each of COLUMNS, of packed files for `first`, too."""
    columns = (*COLUMNS, "first") if packed else COLUMNS
    write_csv(file, [columns, *lines], shared=True)


def read_manifest(folder: Path) -> list[dict[str, str]]:
    """Its rows. Raises OSError."""
    with open(folder / "manifest.csv", newline="", errors="surrogateescape") as f:
        return list(csv.DictReader(f))

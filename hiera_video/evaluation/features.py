"""Files of features: one safetensors a video, and a manifest.

A video of any length comes in chunks, each written to a part at once; parts are joined, byte by
byte, when the last one is there. What is on the disk is not computed again: a killed run goes on at
the next chunk.
"""

import csv
import json
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from hiera_video.data.dataset import Batch
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
from hiera_video.system.distributed import World
from hiera_video.system.files import written_whole
from hiera_video.system.tensors import save_file

DTYPES = {"float32": torch.float32, "float16": torch.float16}
PARTS = ".parts"
NAME_BYTES = 150  # of a video's name in a file's name


class FeatureFiles:
    """A consumer of evaluate(): writes a file a video.

    It holds `features [clips, dim]`, `times [clips, 2]` in seconds, and `stage1..4` where the model
    gives them. average: one row a video, the mean over its clips; its time is the video's.
    arrays: `<video id>.npy` in their place (detector_files.py).
    """

    def __init__(
        self,
        folder: Path,
        videos: VideoList,
        *,
        dtype: str = "float32",
        average: bool = False,
        arrays: bool = False,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.videos = videos
        self.dtype = DTYPES[dtype]
        self.average = average
        self.ids = video_ids(videos) if arrays else None
        self.status: dict[int, str] = {}  # of the rows that were tried in this process

    def name(self, row: int) -> str:
        """Its row, which no other has, and what a file system surely takes of its own name."""
        if self.ids is not None:
            return f"{self.ids[row]}{SUFFIX}"
        stem = Path(self.videos.written(row)).stem.encode(errors="replace").replace(b"?", b"_")
        return f"{row:06d}_{stem[:NAME_BYTES].decode(errors='ignore')}.safetensors"

    def is_done(self, row: int) -> bool:
        try:
            return self.rows_of(row) > 0
        except (OSError, SafetensorError, ValueError):
            return False

    def rows_of(self, row: int) -> int:
        """Raises OSError; SafetensorError or ValueError where it is not whole."""
        file = self.folder / self.name(row)
        if self.ids is None:
            return _rows_of(file)
        return rows_of_npy(file) if sidecar_of(file).exists() else 0

    def clear_leftovers(self) -> None:
        """Parts of videos that are done: a kill may have come between the join and their end."""
        for folder in (self.folder / PARTS).glob("[0-9]*"):
            if self.is_done(int(folder.name)):
                shutil.rmtree(folder, ignore_errors=True)

    def clips_done(self, row: int) -> int:
        """How many of a video's first clips need not be computed again.

        The last part is computed again: what it completes may not have been joined.
        """
        done = 0
        for part in self._parts(row)[:-1]:
            if int(part.stem) != done:
                break
            try:
                done += _rows_of(part)
            except (OSError, SafetensorError):
                break
        return done

    def update(self, batch: Batch, out: dict[str, Tensor]) -> None:
        row = int(batch["index"])
        times = batch["times"][0]
        tensors = {name: value[0].to(self.dtype).contiguous() for name, value in out.items()}
        tensors |= {"times": torch.from_numpy(times)}
        file = self.folder / self.name(row)
        total = batch["total"]
        if batch["first"] == 0 and len(times) == total:
            if self.ids is not None:
                write_npy(file, tensors["features"])
            else:
                _write(file, average([tensors]) if self.average else tensors)
        else:
            folder = self.folder / PARTS / f"{row:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / f"{batch['first']:08d}.safetensors", tensors)
            if batch["first"] + len(times) < total:
                return
            if self.ids is not None:
                join_npy(self._parts(row), file, total)
            elif self.average:
                _write(file, average(load_file(part) for part in self._parts(row)))
            else:
                join(self._parts(row), file)
            shutil.rmtree(folder, ignore_errors=True)  # another job may be clearing it
        if self.ids is not None:
            write_sidecar(file, fps=batch["fps"], frames=batch["frames"], rows=total)
        self.status[row] = "ok"

    def missing(self, row: int, reason: str) -> None:
        shutil.rmtree(self.folder / PARTS / f"{row:06d}", ignore_errors=True)
        self.status[row] = reason

    def write_manifest(self, world: World, rows: list[int], file: Path) -> None:
        """`path,file,num_clips,status`, in list order; written last, by rank 0."""
        status = {row: s for part in world.gather(self.status) for row, s in part.items()}
        if not world.is_main:
            return
        lines = []
        for row in rows:
            good = status.get(row, "ok") == "ok"
            clips = self.rows_of(row) if good else 0
            lines.append(
                [
                    self.videos.written(row),
                    self.name(row) if good else "",
                    clips,
                    status.get(row, "ok"),
                ]
            )
        write_manifest(file, lines)

    def _parts(self, row: int) -> list[Path]:
        return sorted((self.folder / PARTS / f"{row:06d}").glob("[0-9]*.safetensors"))


def average(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One row of each tensor: the mean over all rows of all parts.

    `times` goes from the beginning of the first row to the end of the last.
    """
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    spans: list[Tensor] = []
    count = 0
    for part in parts:
        spans.append(part["times"])
        count += len(part["times"])
        for name, tensor in part.items():
            of_part = tensor.double().sum(0, keepdim=True)
            sums[name] = sums[name] + of_part if name in sums else of_part
            dtypes[name] = tensor.dtype
    means = {name: (total / count).to(dtypes[name]) for name, total in sums.items()}
    means["times"] = torch.stack([spans[0][0, 0], spans[-1][-1, 1]])[None]
    return means


def join(parts: list[Path], file: Path) -> None:
    """Writes the tensors of all parts one after the other, along their first dimension.

    One tensor of one part is held at a time. The result is what safetensors itself would write.
    """
    header: dict[str, _Joined] = {}
    for part in parts:
        for name, (dtype, shape, begin, end) in _layout(part).items():
            joined = header.setdefault(name, _Joined(dtype, shape[1:]))
            joined.rows += shape[0]
            joined.bytes += end - begin
            joined.places.append((part, begin, end))
    # Wide elements first, as the format's own writer has it, so that each tensor is aligned.
    order = sorted(header, key=lambda name: (-header[name].bits, name))
    offset = 0
    entries = {}
    for name in order:
        joined = header[name]
        entries[name] = {
            "dtype": joined.dtype,
            "shape": [joined.rows, *joined.row_shape],
            "data_offsets": [offset, offset + joined.bytes],
        }
        offset += joined.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(file) as temporary, open(temporary, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            for part, begin, end in header[name].places:
                with open(part, "rb") as f:
                    f.seek(begin)
                    out.write(f.read(end - begin))


@dataclass
class _Joined:
    """A tensor that is put together of several files."""

    dtype: str  # of the format, such as F32
    row_shape: list[int]
    rows: int = 0
    bytes: int = 0
    places: list[tuple[Path, int, int]] = field(default_factory=list)  # file, first byte, last + 1

    @property
    def bits(self) -> int:
        """Of an element."""
        return int("".join(filter(str.isdigit, self.dtype)))


def write_manifest(file: Path, lines: list[list]) -> None:
    with (
        written_whole(file, shared=True) as temporary,
        open(temporary, "w", newline="", errors="surrogateescape") as f,
    ):
        writer = csv.writer(f)
        writer.writerow(["path", "file", "num_clips", "status"])
        writer.writerows(lines)


def read_manifest(folder: Path) -> list[dict[str, str]]:
    """Its rows. Raises OSError."""
    with open(folder / "manifest.csv", newline="", errors="surrogateescape") as f:
        return list(csv.DictReader(f))


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    with written_whole(file) as temporary:
        save_file(tensors, temporary)


def _rows_of(file: Path) -> int:
    with safe_open(file, "pt") as f:
        return f.get_slice("times").get_shape()[0]


def _layout(file: Path) -> dict[str, tuple[str, list[int], int, int]]:
    """{tensor: (dtype, shape, first byte, last byte + 1 in the file)}

    The format: github.com/huggingface/safetensors.
    """
    with open(file, "rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(length))
    start = 8 + length
    return {
        name: (e["dtype"], e["shape"], start + e["data_offsets"][0], start + e["data_offsets"][1])
        for name, e in header.items()
        if name != "__metadata__"
    }

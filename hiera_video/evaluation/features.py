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
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiera_video.data.dataset import Batch
from hiera_video.data.lists import VideoList
from hiera_video.system.distributed import World
from hiera_video.system.files import written_whole

DTYPES = {"float32": torch.float32, "float16": torch.float16}
PARTS = ".parts"
NAME_BYTES = 150  # of a video's name in a file's name


class FeatureFiles:
    """A consumer of evaluate(): `features [clips, dim]`, `times [clips, 2]` in seconds, and
    `stageN` where asked for.

    average: one row a video, the mean over its clips; its time is the video's.
    """

    def __init__(
        self, folder: Path, videos: VideoList, *, dtype: str = "float32", average: bool = False
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.videos = videos
        self.dtype = DTYPES[dtype]
        self.average = average
        self.status: dict[int, str] = {}  # of the rows that were tried in this process

    def name(self, row: int) -> str:
        """Its row, which no other has, and what a file system surely takes of its own name."""
        stem = Path(self.videos.written(row)).stem.encode(errors="replace").replace(b"?", b"_")
        return f"{row:06d}_{stem[:NAME_BYTES].decode(errors='ignore')}.safetensors"

    def is_done(self, row: int) -> bool:
        try:
            return _rows_of(self.folder / self.name(row)) > 0
        except (OSError, SafetensorError):
            return False

    def clear_leftovers(self) -> None:
        """Parts of videos that are done: a kill may have come between the join and their end."""
        for folder in (self.folder / PARTS).glob("[0-9]*"):
            if self.is_done(int(folder.name)):
                shutil.rmtree(folder, ignore_errors=True)

    def clips_done(self, row: int) -> int:
        """How many of its first clips need not be computed again. The last part is: it may be what
        sets off the join.
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
        whole = self.folder / self.name(row)
        if batch["first"] == 0 and len(times) == batch["total"]:
            _write(whole, average([tensors]) if self.average else tensors)
        else:
            folder = self.folder / PARTS / f"{row:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / f"{batch['first']:08d}.safetensors", tensors)
            if batch["first"] + len(times) < batch["total"]:
                return
            if self.average:
                _write(whole, average(load_file(part) for part in self._parts(row)))
            else:
                join(self._parts(row), whole)
            shutil.rmtree(folder, ignore_errors=True)  # another job may be clearing it
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
            clips = _rows_of(self.folder / self.name(row)) if good else 0
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
    """One row of each tensor: the mean over all rows of all parts; of the times, from the first to
    the last.
    """
    sums: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    count = 0
    first = None
    last = None
    for part in parts:
        times = part["times"]
        count = count + len(times)
        first = times[0, 0] if first is None else first
        last = times[-1, 1]
        for name, t in part.items():
            sums[name] = sums.get(name, 0) + t.double().sum(0, keepdim=True)
            kinds[name] = t.dtype
    means = {name: (total / count).to(kinds[name]) for name, total in sums.items()}
    return means | {"times": torch.stack([first, last])[None]}


def join(parts: list[Path], file: Path) -> None:
    """Writes the tensors of all parts, one after the other along their first dimension, holding one
    part at a time.
    """
    header: dict[str, dict] = {}
    for part in parts:
        for name, (dtype, shape, begin, end) in _layout(part).items():
            entry = header.setdefault(
                name, {"dtype": dtype, "shape": [0, *shape[1:]], "size": 0, "from": []}
            )
            entry["shape"][0] += shape[0]
            entry["size"] += end - begin
            entry["from"].append((part, begin, end))
    # Wide elements first, as the format's own writer has it, so that each tensor is aligned.
    order = sorted(
        header, key=lambda name: (-int("".join(filter(str.isdigit, header[name]["dtype"]))), name)
    )
    offset = 0
    entries = {}
    for name in order:
        size = header[name]["size"]
        entries[name] = {k: header[name][k] for k in ("dtype", "shape")} | {
            "data_offsets": [offset, offset + size]
        }
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(file) as temporary, open(temporary, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            for part, begin, end in header[name]["from"]:
                with open(part, "rb") as f:
                    f.seek(begin)
                    out.write(f.read(end - begin))


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
    (github.com/huggingface/safetensors, Format)
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

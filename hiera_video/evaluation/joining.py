"""Safetensors files of one kind, put together without holding them in memory."""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hiera_video.system.files import written_whole


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

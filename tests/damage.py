"""Damaged variants of videos, the same ones every time."""

import random
import struct
from pathlib import Path


def _truncated(content, rng, _):
    return content[: rng.randrange(len(content))]


def _flipped(content, rng, where):
    content = bytearray(content)
    count = 2 ** rng.randrange(11)
    for _ in range(count):
        content[rng.randrange(*where)] ^= 1 << rng.randrange(8)
    return bytes(content)


def _header_flipped(content, rng, _):
    return _flipped(content, rng, _header(content))


def _data_flipped(content, rng, _):
    start, end = _header(content)
    return _flipped(
        content,
        rng,
        (0, start) if start > len(content) // 2 else (min(end, len(content) - 1), len(content)),
    )


def _zeroed(content, rng, _):
    start = rng.randrange(len(content))
    size = min(rng.choice((64, 4096, 65536)), len(content) - start)
    return content[:start] + bytes(size) + content[start + size :]


def _edit_list(content, rng, other):
    """Shorter, or shifted; a file without one gets its header flipped."""
    at = content.find(b"elst")
    if at < 0:
        return _header_flipped(content, rng, other)
    field = at + 12 + 4 * rng.randrange(2)  # duration, or media time
    (value,) = struct.unpack(">i", content[field : field + 4])
    changed = int(value * rng.random()) if rng.random() < 0.5 else value + rng.randrange(1, 20000)
    return content[:field] + struct.pack(">i", changed) + content[field + 4 :]


def _swapped(content, rng, other):
    """The header of another file."""
    (start, end) = _header(content)
    (s, e) = _header(other)
    return content[:start] + other[s:e] + content[end:]


KINDS = (_truncated, _header_flipped, _data_flipped, _zeroed, _edit_list, _swapped)


def _header(content):
    """Where an MP4's `moov` lies; else the first 4 KB."""
    at = content.find(b"moov")
    if at < 4:
        return 0, min(4096, len(content))
    (size,) = struct.unpack(">I", content[at - 4 : at])
    return at - 4, min(at - 4 + max(size, 8), len(content))


def damaged_files(sources, folder, count):
    """`count` files in `folder`, of every kind of damage and every source in turn."""
    sources = sorted(sources)
    files = []
    contents = [Path(s).read_bytes() for s in sources]
    for k in range(count):
        rng = random.Random(k)
        i = rng.randrange(len(sources))
        kind = KINDS[k % len(KINDS)]
        file = folder / f"{k:03d}{kind.__name__}{Path(sources[i]).suffix}"
        file.write_bytes(kind(contents[i], rng, contents[rng.randrange(len(contents))]))
        files.append(file)
    return files

"""Videos that lie in a tar, read where they are: `shards/000003.tar#1536+93021`.

Such a path is the tar's, the offset of the video in it, and its length in bytes. Object stores and
parallel file systems suffer from many small files; a process opens each tar once.
"""

import io
import os
import re
from typing import NamedTuple

MOST_OPEN = 64  # tars of a process
_PATH = re.compile(r"(.+)#(\d+)\+(\d+)\Z", re.DOTALL)


class Member(NamedTuple):
    file: str
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.file}#{self.offset}+{self.length}"


def member_of(path: str) -> Member | None:
    """None for a path that is a file of its own."""
    found = _PATH.match(path)
    return Member(found[1], int(found[2]), int(found[3])) if found else None


def file_of(path: str) -> str:
    """The file itself, or the tar that it lies in."""
    member = member_of(path)
    return path if member is None else member.file


def ffmpeg_name(path: str) -> str:
    """For decoders that take a name alone."""
    member = member_of(path)
    if member is None:
        return path
    end = member.offset + member.length
    return f"subfile,,start,{member.offset},end,{end},,:{os.path.abspath(member.file)}"


def open_bytes(path: str) -> io.RawIOBase:
    """The video's bytes. Raises OSError."""
    member = member_of(path)
    return open(path, "rb", buffering=0) if member is None else MemberFile(member)


class MemberFile(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, member: Member):
        """Raises OSError."""
        self._member = member
        self._tar = _OPEN.get(member.file)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._member.length}
        self._position = max(start[whence] + offset, 0)
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(self._member.length - self._position, 0)
        size = left if size < 0 else min(size, left)
        try:
            data = os.pread(self._tar.descriptor, size, self._member.offset + self._position)
        except OSError:
            _OPEN.clear()  # the next attempt opens the file anew
            raise
        self._position += len(data)
        return data


class _OpenTars:
    """Descriptors of the tars that were read last, each opened once."""

    def __init__(self) -> None:
        self._tars: dict[str, _Tar] = {}

    def get(self, file: str) -> "_Tar":
        """Raises OSError."""
        if file not in self._tars or self._tars[file].is_gone():
            # Those that were removed since would keep their place on the disk.
            self._tars = {name: tar for name, tar in self._tars.items() if not tar.is_gone()}
            while len(self._tars) >= MOST_OPEN:
                del self._tars[next(iter(self._tars))]
            self._tars[file] = _Tar(file)
        return self._tars[file]

    def clear(self) -> None:
        self._tars.clear()


class _Tar:
    def __init__(self, file: str):
        self.descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def is_gone(self) -> bool:
        try:
            return os.fstat(self.descriptor).st_nlink == 0
        except OSError:
            return True

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


_OPEN = _OpenTars()

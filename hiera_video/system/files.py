"""Files that are whole or not there, and paths that may be elsewhere (remote.py)."""

import contextlib
import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hiera_video.system.members import file_of, member_of
from hiera_video.system.remote import RemoteFiles
from hiera_video.system.stores import exists_remotely, is_remote, size_of_remote


def join(root: str | Path, path: str | Path) -> str:
    """`path` under `root`, unless it is absolute or remote."""
    return str(path) if is_remote(path) else os.path.join(root, path)


def local(path: str | Path) -> str:
    """Where the file lies on this machine; a remote one is fetched first. Raises OSError.

    For lists and weights, which may change under their name; videos are fetched where they are
    decoded.
    """
    return RemoteFiles().fetch(str(path), anew=True) if is_remote(path) else str(path)


def size_of(path: str) -> int:
    """Bytes of a video. Raises OSError."""
    member = member_of(path)
    if member is not None:
        return member.length
    return size_of_remote(path) if is_remote(path) else os.path.getsize(path)


@contextlib.contextmanager
def written_whole(file: Path, *, shared: bool = False) -> Iterator[Path]:
    """A name beside `file` to write under; it becomes `file` when the block ends without an error.

    shared: several jobs may write the file at one time.
    """
    writer = f".{os.uname().nodename}.{os.getpid()}" if shared else ""
    temporary = file.with_name(f".{file.name}{writer}")
    try:
        yield temporary
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(file: Path, content: dict, *, shared: bool = False) -> None:
    """Writes the file whole. shared: several jobs may write it at one time."""
    with written_whole(file, shared=shared) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes the file whole, in UTF-8; a name that is not is written with its odd bytes escaped."""
    with written_whole(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_csv(file: Path, rows: Iterable[Sequence], *, shared: bool = False) -> None:
    """Writes the file whole; names of files are the bytes that they were."""
    with (
        written_whole(file, shared=shared) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as f,
    ):
        csv.writer(f).writerows(rows)


def sha256_of(file: str | Path) -> str:
    """Of a file on this machine."""
    digest = hashlib.sha256()
    with open(file, "rb") as f:
        while part := f.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def exists(path: str | Path) -> bool:
    """Raises OSError for a remote path of which it cannot be told."""
    file = file_of(str(path))
    return exists_remotely(file) if is_remote(file) else os.path.exists(file)

"""A file of a server, once and under its own name: whole, or not there."""

import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from hiera_video.system.remote import append_all, is_still, retried
from hiera_video.system.stores import version_of

LINE_S = 30.0  # between two lines of a log


def download(url: str, file: Path) -> bool:
    """Fetches the file, unless it is there. Tells on stderr how it gets on. Raises OSError.

    Returns whether it was fetched by this process.

    A transfer that breaks off, or is killed, goes on where it was, as long as the server has the
    same content. Of several processes one fetches, and the others wait for it.
    """
    if file.exists():
        return False
    version = retried(partial(version_of, url))
    file.parent.mkdir(parents=True, exist_ok=True)
    tag = hashlib.sha256(f"{url} {version.tag}".encode()).hexdigest()[:8]
    with _held(file.with_name(f".{file.name}.{tag}")) as (name, target):
        if file.exists():  # another process was first
            name.unlink(missing_ok=True)
            return False
        with _Shown(target, file.name, version.size) as shown:
            append_all(url, None, shown)
        came = target.tell()
        if version.size and came != version.size:
            name.unlink()
            raise ConnectionError(f"{url} gave {came} bytes of {version.size}")
        name.replace(file)
    return True


@contextmanager
def _held(unfinished: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """The unfinished file, for this process alone, at its end; and its name.

    Where files cannot be locked it is one of this process's own, begun anew, and gone afterwards.
    """
    while True:
        with open(unfinished, "ab") as target:
            try:
                fcntl.flock(target, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                unfinished.unlink()
                break
            if is_still(unfinished, target):
                target.seek(0, os.SEEK_END)  # another process may have added to it
                yield unfinished, target
                return
    alone = unfinished.with_name(f"{unfinished.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        with open(alone, "wb") as own:
            yield alone, own
    finally:
        alone.unlink(missing_ok=True)


class _Shown:
    """A target (stores.py) that shows how it grows: a bar on a terminal, else lines."""

    def __init__(self, file: BinaryIO, name: str, size: int):
        self._file = file
        self._name = name
        self._size = size
        self._last_line = time.monotonic()
        self._bar = tqdm(
            total=size or None,
            initial=file.tell(),
            desc=name,
            unit="B",
            unit_scale=True,
            disable=None,
        )

    def __enter__(self) -> "_Shown":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        self._bar.update(len(data))
        if self._bar.disable and time.monotonic() - self._last_line > LINE_S:
            self._last_line = time.monotonic()
            print(f"{self._name}: {self.tell()} of {self._size} bytes", file=sys.stderr, flush=True)

    def restart(self) -> None:
        self._file.truncate(0)
        self._file.seek(0)
        self._bar.reset(total=self._size or None)

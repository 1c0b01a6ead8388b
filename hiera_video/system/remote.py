"""Files that lie elsewhere (stores.py): fetched once, to a folder of bounded size.

A file is written under a temporary name while it comes. A transfer that breaks off goes on where
it was; a server that fails is asked again. Processes of a machine share the folder: one fetches a
file, and the others wait for it. Where the folder is full, what was used longest ago goes first,
and never what is open.
"""

import contextlib
import fcntl
import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from hiera_video.system.members import Member, file_of, member_of
from hiera_video.system.storage import is_away
from hiera_video.system.stores import (
    CHUNK,
    Target,
    append,
    handlers,
    has_handler,
    named,
    version_of,
    version_of_tar,
)

T = TypeVar("T")
PAUSES_S = (0.2, 1.0)  # before a server that fails is asked again; who decodes waits longer
WAIT_S = 0.2  # between two looks at what another process fetches
MEASURED_S = 30.0  # for which the folder's size is believed
IN_USE_S = 3600.0  # what was used since then does not make room for a whole tar
LEFT = 0.9  # of the limit, when room is made


class FolderError(ConnectionError):
    """The folder does not take what is fetched: no fault of the file, nor of its store."""


class Partial:
    """A file that is not whole yet. Raises FolderError where the folder does not take it."""

    def __init__(self, file: BinaryIO, folder: Path):
        self._file = file
        self._folder = folder

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: bytes) -> None:
        with _in_folder(self._folder, "what comes"):
            self._file.write(data)
            self._file.flush()

    def restart(self) -> None:
        self._file.truncate(0)
        self._file.seek(0)


def default_folder() -> Path:
    """Of this user, on this machine; of all runs."""
    return Path(tempfile.gettempdir()) / f"hiera_video_{os.getuid()}" / "fetched"


def append_all(path: str, member: Member | None, target: Target) -> None:
    """What is still missing of the file. Raises OSError, after some attempts."""
    retried(partial(append, path, member, target), target)


def retried(work: Callable[[], T], target: Target | None = None) -> T:
    """What `work` returns, asked again where a store fails. Raises OSError.

    target: what it writes to; as long as that grows, there are more attempts.
    """
    pauses = iter(PAUSES_S)
    while True:
        before = target.tell() if target is not None else 0
        try:
            return work()
        except FolderError:
            raise
        except OSError as e:
            if not is_away(e):
                raise
            if target is not None and target.tell() - before >= CHUNK:  # it was going well
                pauses = iter(PAUSES_S)
            pause = next(pauses, None)
            if pause is None:
                raise
            time.sleep(pause)


class RemoteFiles:
    """A folder of fetched files of about `limit_gib`. Picklable."""

    def __init__(self, folder: str | Path | None = None, *, limit_gib: float = 20.0):
        self.folder = Path(folder) if folder else default_folder()
        self.limit = int(limit_gib * 2**30)
        self._used = (0, 0)  # bytes, and those that were used of late
        self._measured = -math.inf

    def fetch(self, path: str, *, anew: bool = False) -> str:
        """Where the file lies on this machine. Raises OSError.

        anew: if its content has changed since it was fetched, it is fetched again. Of a video in a
        tar all of the tar is fetched if there is room for it, and else the video alone.
        """
        member = member_of(path)
        file = path if member is None else member.file
        if has_handler(file):
            with named(path):
                place = handlers().get_local_path(file)
            return place if member is None else str(member._replace(file=place))
        if member is None:
            return str(self._fetched(path, tag=version_of(path).tag if anew else ""))
        version = version_of_tar(file)
        if self._file(file, version.tag).exists() or self._has_room(version.size):
            return str(member._replace(file=str(self._fetched(file, tag=version.tag))))
        return str(self._fetched(path, member, tag=version.tag))

    @contextlib.contextmanager
    def held(self, path: str) -> Iterator[str]:
        """As `fetch`; the file stays inside the block."""
        if has_handler(path):  # it keeps its files itself
            yield self.fetch(path)
            return
        with contextlib.ExitStack() as stack:
            while True:
                place = self.fetch(path)
                name = file_of(place)
                with contextlib.suppress(FileNotFoundError):
                    file = stack.enter_context(open(name, "rb"))
                    fcntl.flock(file, fcntl.LOCK_SH)
                    if is_still(Path(name), file):  # else it went before it was held
                        break
            yield place

    def _fetched(self, path: str, member: Member | None = None, *, tag: str = "") -> Path:
        """member: the part of a tar that `path` is."""
        final = self._file(path, tag)
        partial = final.with_name(f".{final.name}")
        while not _touch(final):
            with contextlib.ExitStack() as stack:
                with _in_folder(self.folder, path):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    target = stack.enter_context(open(partial, "ab"))
                if not _locked(target, self.folder):
                    _wait_for(partial, self.folder)
                # The one that held it before may have given it its name, or removed it.
                elif is_still(partial, target) and not final.exists():
                    content = Partial(target, self.folder)
                    if not tag:  # what a killed process has left may be of another content
                        content.restart()
                    self._copy(path, member, content)
                    with _in_folder(self.folder, path):
                        partial.replace(final)
                    self._evict(final.stat().st_size, but=final)
        return final

    def _copy(self, path: str, member: Member | None, target: Partial) -> None:
        """Raises OSError, after some attempts."""
        try:
            append_all(path, member, target)
        except FolderError:  # once: the disk may hold less than the limit
            self._remove_to(sum(size for _, size, _ in self._files()) // 2)
            append_all(path, member, target)

    def _has_room(self, size: int) -> bool:
        """Without removing what was used of late."""
        self._measure()
        return self._used[1] + size <= self.limit

    def _evict(self, added: int, but: Path) -> None:
        self._used = (self._used[0] + added, self._used[1] + added)
        self._measure()
        if self._used[0] > self.limit:
            self._remove_to(int(LEFT * self.limit), but=but)

    def _measure(self) -> None:
        """Other processes write, too. Not every time: many small files take long to look at."""
        if time.monotonic() - self._measured > MEASURED_S:
            files = self._files()
            recent = sum(size for used, size, _ in files if time.time() - used < IN_USE_S)
            self._used = (sum(size for _, size, _ in files), recent)
            self._measured = time.monotonic()

    def _files(self) -> list[tuple[float, int, Path]]:
        """(when it was used, bytes, the file)"""
        files = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    files.append((status.st_atime, status.st_size, Path(entry.path)))
        return files

    def _remove_to(self, most: int, but: Path | None = None) -> None:
        """Removes what was used longest ago, until the rest is within that many bytes."""
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total <= most:
                break
            if file == but:
                continue
            with contextlib.suppress(OSError), open(file, "r+b") as held:
                if _locked(held, self.folder):
                    file.unlink()
                    total -= size
        self._used = (total, min(total, self._used[1]))

    def _file(self, path: str, tag: str) -> Path:
        suffix = "" if "#" in path else Path(path.split("?")[0]).suffix
        named = f"{path} {tag}".encode(errors="surrogateescape")
        name = hashlib.sha256(named).hexdigest()[:40]
        return self.folder / f"{name}{suffix if len(suffix) < 10 else ''}"


@contextlib.contextmanager
def _in_folder(folder: Path, what: str) -> Iterator[None]:
    """Errors of the folder as FolderError."""
    try:
        yield
    except FolderError:
        raise
    except OSError as e:
        message = f"cannot keep {what} in {folder} (data.remote_cache): {e.strerror or e}"
        raise FolderError(message) from e


def _touch(file: Path) -> bool:
    """Notes that the file is used now; False if it is not there. Its own time stays."""
    try:
        os.utime(file, (time.time(), file.stat().st_mtime))
    except FileNotFoundError:
        return False
    return True


def _locked(file: Any, folder: Path) -> bool:
    """Whether this process has the file for itself, until it is closed. Raises FolderError."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as e:  # a file system that knows no locks
        message = f"files in {folder} (data.remote_cache) cannot be locked: {e.strerror}"
        raise FolderError(message) from e
    return True


def is_still(path: Path, file: BinaryIO) -> bool:
    """Whether the name is that of the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _wait_for(partial: Path, folder: Path) -> None:
    """Until another process has the file.

    What has come is read: who measures how this process gets on sees that something comes.
    """
    with contextlib.suppress(FileNotFoundError), open(partial, "r+b", buffering=0) as file:
        while not _locked(file, folder):
            while file.read(CHUNK):
                pass
            time.sleep(WAIT_S)

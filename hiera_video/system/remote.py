"""Files that lie elsewhere: fetched once, to a folder of bounded size. Nobody else imports iopath.

`http(s)://` works as it is, and so does what fsspec knows (`s3://` with s3fs installed, `gs://`
with gcsfs, ..). Handlers of one's own are registered with
`iopath.common.file_io.g_pathmgr.register_handler`, in a module that `data.path_handlers` names;
they come first, and keep what they fetch where they like.

A file is written under a temporary name while it comes. A transfer that breaks off goes on where
it was; a server that fails is asked again. Processes of a machine share the folder: one fetches a
file, and the others wait for it. Where the folder is full, what was used longest ago goes first,
and never what is open.
"""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import io
import math
import os
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.error import HTTPError

from hiera_video.system.members import Member, file_of, member_of
from hiera_video.system.storage import is_away

SILENT_S = 20.0  # that a server may send nothing
PAUSES_S = (0.2, 1.0)  # before a server that fails is asked again; who decodes waits longer
CHUNK = 1 << 20
BLOCK = 4 << 20  # that is asked of an object store at a time
WAIT_S = 0.2  # between two looks at what another process fetches
MEASURED_S = 30.0  # for which the folder's size is believed
IN_USE_S = 3600.0  # what was used since then does not make room for a whole tar
LEFT = 0.9  # of the limit, when room is made
HTTP = ("http://", "https://")


class FolderError(ConnectionError):
    """The folder does not take what is fetched: no fault of the file, nor of its store."""


class Version(NamedTuple):
    """Of a remote file: its size in bytes, and what changes with its content."""

    size: int
    tag: str


def is_remote(path: str | Path) -> bool:
    return "://" in str(path)


def default_folder() -> Path:
    """Of this user, on this machine; of all runs."""
    return Path(tempfile.gettempdir()) / f"hiera_video_{os.getuid()}" / "fetched"


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
        if _has_handler(file):
            with _named(path):
                place = _handlers().get_local_path(file)
            return place if member is None else str(member._replace(file=place))
        if member is None:
            return str(self._fetched(path, tag=version_of(path).tag if anew else ""))
        version = _version_of_tar(file)
        if self._file(file, version.tag).exists() or self._has_room(version.size):
            return str(member._replace(file=str(self._fetched(file, tag=version.tag))))
        return str(self._fetched(path, member, tag=version.tag))

    @contextlib.contextmanager
    def held(self, path: str) -> Iterator[str]:
        """As `fetch`; the file stays inside the block."""
        if _has_handler(path):  # it keeps its files itself
            yield self.fetch(path)
            return
        with contextlib.ExitStack() as stack:
            while True:
                place = self.fetch(path)
                name = file_of(place)
                with contextlib.suppress(FileNotFoundError):
                    file = stack.enter_context(open(name, "rb"))
                    fcntl.flock(file, fcntl.LOCK_SH)
                    if _is_still(Path(name), file):  # else it went before it was held
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
                elif _is_still(partial, target) and not final.exists():
                    if not tag:  # what a killed process has left may be of another content
                        target.truncate(0)
                        target.seek(0)
                    self._copy(path, member, target)
                    with _in_folder(self.folder, path):
                        partial.replace(final)
                    self._evict(final.stat().st_size, but=final)
        return final

    def _copy(self, path: str, member: Member | None, target: BinaryIO) -> None:
        """Raises OSError, after some attempts."""
        pauses = iter(PAUSES_S)
        made_room = False
        while True:
            before = target.tell()
            try:
                _append(path, member, target, self.folder)
                return
            except FolderError:
                if made_room:
                    raise
                made_room = True  # once: the disk may hold less than the limit
                self._remove_to(sum(size for _, size, _ in self._files()) // 2)
            except OSError as e:
                if not is_away(e):
                    raise
                if target.tell() - before >= CHUNK:  # it was going well
                    pauses = iter(PAUSES_S)
                pause = next(pauses, None)
                if pause is None:
                    raise
                time.sleep(pause)

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


def register_handlers(modules: tuple[str, ...]) -> None:
    """Imports modules that register handlers. Raises ImportError."""
    for module in modules:
        import_module(module)


def exists_remotely(path: str) -> bool:
    """Asks the store itself. Raises OSError where it cannot be told."""
    with _named(path):
        if _has_handler(path):
            return _handlers().exists(path)
        if not path.startswith(HTTP):
            return _fsspec(path).exists(path)
    try:
        version_of(path)
    except HTTPError as e:
        if is_away(e):
            raise
        return False
    return True


def size_of_remote(path: str) -> int:
    """Bytes. Raises OSError."""
    return version_of(path).size


def version_of(path: str) -> Version:
    """Raises OSError."""
    if path.startswith(HTTP):
        # One byte in place of HEAD, which some servers do not know.
        with _response(path, 0, 1) as response:
            headers = response.headers
            whole = headers.get("Content-Range", "").rpartition("/")[2]
            size = int(whole if whole.isdecimal() else headers.get("Content-Length", 0))
            return Version(size, f"{size} {headers.get('ETag')} {headers.get('Last-Modified')}")
    with _named(path):
        system = _fsspec(path)
        system.invalidate_cache()
        return Version(int(system.size(path)), str(system.ukey(path)))


@lru_cache(maxsize=4096)
def _version_of_tar(path: str) -> Version:
    """Asked once a process."""
    return version_of(path)


def _append(path: str, member: Member | None, target: BinaryIO, folder: Path) -> None:
    """What is still missing of the file. Raises OSError, the target then holding what came."""
    file = path if member is None else member.file
    first = 0 if member is None else member.offset
    start = first + target.tell()
    end = None if member is None else member.offset + member.length
    if file.startswith(HTTP):
        try:
            opened = _response(file, start, end)
        except HTTPError as e:
            if e.code != 416 or member is not None:
                raise
            target.truncate(0)  # more is here than there is of it now
            target.seek(0)
            raise ConnectionError(f"{file} has changed") from e
        with opened as response:
            if start and response.status != 206:  # it knows no parts
                if member is not None:
                    raise OSError(errno.EINVAL, f"{file}: its server sends no parts of files")
                target.truncate(0)
                target.seek(0)
            expected = response.headers.get("Content-Length")
            came = _pump(response, target, folder)
        if expected is not None and came < int(expected):
            raise ConnectionError(f"{path} broke off after {target.tell()} bytes")
        return
    with _named(path):
        system = _fsspec(file)
        if end is not None:
            part = system.cat_file(file, start=start, end=end)
            came = _pump(io.BytesIO(part), target, folder)
            if came < end - start:
                raise ConnectionError(f"{path} broke off after {target.tell()} bytes")
            return
        with system.open(file, "rb", block_size=BLOCK) as source:
            source.seek(start)
            _pump(source, target, folder)


def _pump(source: Any, target: BinaryIO, folder: Path) -> int:
    """Copies all of it; returns how many bytes came."""
    came = 0
    try:
        while part := source.read(CHUNK):
            with _in_folder(folder, "what comes"):
                target.write(part)
                target.flush()
            came += len(part)
    except http.client.HTTPException as e:
        raise ConnectionError(f"{type(e).__name__}: {e}") from e
    return came


def _response(url: str, start: int, end: int | None) -> Any:
    """Of the bytes from `start` to before `end`. Raises OSError."""
    headers = {"User-Agent": "hiera_video"}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    try:
        return urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=SILENT_S
        )
    except http.client.HTTPException as e:
        raise ConnectionError(f"{type(e).__name__}: {e}") from e
    except ValueError as e:  # no URL at all
        raise OSError(errno.EINVAL, f"{url}: {e}") from e


def _handlers() -> Any:
    # Imported here: every decoding process would wait for it.
    from iopath.common.file_io import g_pathmgr

    return g_pathmgr


def _has_handler(path: str) -> bool:
    known = _handlers()._path_handlers  # it has no public way to ask
    return any(path.startswith(prefix) for prefix in known)


def _fsspec(path: str) -> Any:
    """The file system that fsspec has for the path. Raises OSError."""
    import fsspec  # imported here, because it takes long

    prefix = path.split("://")[0]
    try:
        return fsspec.filesystem(prefix)
    except ImportError as e:  # its words say what to install
        raise OSError(errno.EINVAL, f"{prefix}://: {e}") from e
    except ValueError as e:
        message = f"no handler is registered for {prefix}://; see data.path_handlers"
        raise OSError(errno.EINVAL, message) from e


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Errors as OSError. What a library raises, or a store that refuses, is no fault of the file:
    others of the same store tell.
    """
    try:
        yield
    except PermissionError as e:
        raise ConnectionError(f"cannot fetch {path}: {e}") from e
    except OSError:
        raise
    except Exception as e:
        raise ConnectionError(f"cannot fetch {path}: {type(e).__name__}: {e}") from e


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


def _is_still(path: Path, file: BinaryIO) -> bool:
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

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
import os
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError

from iopath.common.file_io import g_pathmgr

from hiera_video.system.members import Member, member_of
from hiera_video.system.storage import is_away

SILENT_S = 20.0  # that a server may send nothing
PAUSES_S = (0.2, 1.0)  # before a server that fails is asked again; who decodes waits longer
CHUNK = 1 << 20
HTTP = ("http://", "https://")
WAIT_S = 0.2  # between two looks at what another process fetches
WHOLE_TAR = 1 / 8  # of the folder's limit: of larger tars only the video is fetched


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

    def fetch(self, path: str) -> str:
        """Where the file lies on this machine. Raises OSError.

        Of a video in a tar all of the tar is fetched, if it is small beside the limit.
        """
        member = member_of(path)
        file = path if member is None else member.file
        if _has_handler(file):
            with _named(path):
                place = g_pathmgr.get_local_path(file)
            return place if member is None else str(member._replace(file=place))
        if member is None:
            return str(self._fetched(path))
        tar = self._file(member.file)
        if tar.exists() or size_of_remote(member.file) <= self.limit * WHOLE_TAR:
            return str(member._replace(file=str(self._fetched(member.file))))
        return str(self._fetched(path, member))

    @contextlib.contextmanager
    def held(self, path: str) -> Iterator[str]:
        """As `fetch`; the file stays inside the block."""
        while True:
            place = self.fetch(path)
            member = member_of(place)
            with contextlib.suppress(FileNotFoundError):  # it went before it was held
                with open(place if member is None else member.file, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_SH)
                    yield place
                return

    def _fetched(self, path: str, member: Member | None = None) -> Path:
        """member: the part of a tar that `path` is."""
        final = self._file(path)
        partial = final.with_name(f".{final.name}")
        try:
            while not _touch(final):
                self.folder.mkdir(parents=True, exist_ok=True)
                with open(partial, "ab") as target:
                    if not _locked(target):
                        _wait_for(partial)
                    # The one that held it before may have given it its name, or removed it.
                    elif _is_still(partial, target) and not final.exists():
                        target.truncate(0)  # what a killed process has left
                        target.seek(0)
                        self._copy(path, member, target)
                        partial.replace(final)
                        self._evict(but=final)
        except OSError as e:
            if e.errno == errno.ENOSPC:
                raise ConnectionError(f"cannot keep {path} in {self.folder}: {e.strerror}") from e
            raise
        return final

    def _copy(self, path: str, member: Member | None, target: BinaryIO) -> None:
        """Raises OSError, after some attempts."""
        pauses = iter(PAUSES_S)
        while True:
            before = target.tell()
            try:
                _append(path, member, target)
                return
            except OSError as e:
                if not is_away(e) or e.errno == errno.ENOSPC:
                    raise
                if target.tell() - before >= CHUNK:  # it was going well
                    pauses = iter(PAUSES_S)
                pause = next(pauses, None)
                if pause is None:
                    raise
                time.sleep(pause)

    def _evict(self, but: Path) -> None:
        """Removes what was used longest ago, until the rest is within the limit."""
        files = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):
                status = entry.stat()
                files.append((status.st_atime, status.st_size, Path(entry.path)))
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total <= self.limit:
                return
            if file == but:
                continue
            with contextlib.suppress(OSError), open(file, "rb") as held:
                if _locked(held):
                    file.unlink()
                    total -= size

    def _file(self, path: str) -> Path:
        suffix = "" if "#" in path else Path(path.split("?")[0]).suffix
        name = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:40]
        return self.folder / f"{name}{suffix if len(suffix) < 10 else ''}"


def register_handlers(modules: tuple[str, ...]) -> None:
    """Imports modules that register handlers. Raises ImportError."""
    for module in modules:
        import_module(module)


def exists_remotely(path: str) -> bool:
    """Raises OSError where it cannot be told."""
    with _named(path):
        if _has_handler(path):
            return g_pathmgr.exists(path)
        if not path.startswith(HTTP):
            return _fsspec(path).exists(path)
    try:
        size_of_remote(path)
    except HTTPError as e:
        if is_away(e):
            raise
        return False
    return True


def size_of_remote(path: str) -> int:
    """Bytes. Raises OSError."""
    if path.startswith(HTTP):
        # One byte in place of HEAD, which some servers do not know.
        with _response(path, 0, 1) as response:
            whole = response.headers.get("Content-Range", "").rpartition("/")[2]
            return int(whole if whole.isdecimal() else response.headers.get("Content-Length", 0))
    with _named(path):
        return int(_fsspec(path).size(path))


def _append(path: str, member: Member | None, target: BinaryIO) -> None:
    """What is still missing of the file. Raises OSError, the target then holding what came."""
    file = path if member is None else member.file
    first = 0 if member is None else member.offset
    start = first + target.tell()
    end = None if member is None else member.offset + member.length
    if file.startswith(HTTP):
        with _response(file, start, end) as response:
            if start and response.status != 206:  # it knows no parts
                if member is not None:
                    raise OSError(errno.EINVAL, f"{file}: its server sends no parts of files")
                target.truncate(0)
                target.seek(0)
            expected = response.headers.get("Content-Length")
            came = _pump(response, target, None)
        if expected is not None and came < int(expected):
            raise ConnectionError(f"{path} broke off after {target.tell()} bytes")
        return
    with _named(path):
        with _fsspec(file).open(file, "rb") as source:
            source.seek(start)
            came = _pump(source, target, None if end is None else end - start)
        if end is not None and came < end - start:
            raise ConnectionError(f"{path} broke off after {target.tell()} bytes")


def _pump(source: Any, target: BinaryIO, most: int | None) -> int:
    """Copies up to `most` bytes; returns how many came."""
    came = 0
    try:
        while most is None or came < most:
            size = CHUNK if most is None else min(CHUNK, most - came)
            part = source.read(size)
            if not part:
                break
            target.write(part)
            came += len(part)
    except http.client.HTTPException as e:
        raise ConnectionError(f"{type(e).__name__}: {e}") from e
    finally:
        target.flush()
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


def _has_handler(path: str) -> bool:
    known = g_pathmgr._path_handlers  # it has no public way to ask
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
    """Errors as OSError. What a handler's own library raises is a fault of the storage."""
    try:
        yield
    except OSError:
        raise
    except Exception as e:
        raise ConnectionError(f"cannot fetch {path}: {type(e).__name__}: {e}") from e


def _touch(file: Path) -> bool:
    """Notes that the file is used now; False if it is not there. Its own time stays."""
    try:
        os.utime(file, (time.time(), file.stat().st_mtime))
    except FileNotFoundError:
        return False
    return True


def _locked(file: Any) -> bool:
    """Whether this process has the file for itself, until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: Path, file: BinaryIO) -> bool:
    """Whether the name is that of the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _wait_for(partial: Path) -> None:
    """Until another process has the file.

    What has come is read: who measures how this process gets on sees that something comes.
    """
    with contextlib.suppress(FileNotFoundError), open(partial, "rb", buffering=0) as file:
        while not _locked(file):
            while file.read(CHUNK):
                pass
            time.sleep(WAIT_S)

"""Stores that files lie in elsewhere: is a file there, which version, and its bytes. Nobody else
imports iopath.

`http(s)://` works as it is, and so does what fsspec knows (`s3://` with s3fs installed, `gs://`
with gcsfs, ..). Handlers of one's own are registered with
`iopath.common.file_io.g_pathmgr.register_handler`, in a module that `data.path_handlers` names;
they come first, and keep what they fetch where they like.
"""

import contextlib
import errno
import http.client
import io
import urllib.request
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.error import HTTPError

from hiera_video.system.members import Member
from hiera_video.system.storage import is_away

SILENT_S = 20.0  # that a server may send nothing
CHUNK = 1 << 20
BLOCK = 4 << 20  # that is asked of an object store at a time
HTTP = ("http://", "https://")


class Version(NamedTuple):
    """Of a remote file: its size in bytes, and what changes with its content."""

    size: int
    tag: str


class Target(Protocol):
    """What takes the bytes that come, and knows how many it has."""

    def tell(self) -> int: ...
    def write(self, data: bytes, /) -> object: ...
    def restart(self) -> None: ...


def is_remote(path: str | Path) -> bool:
    return "://" in str(path)


def register_handlers(modules: tuple[str, ...]) -> None:
    """Imports modules that register handlers. Raises ImportError."""
    for module in modules:
        import_module(module)


def exists_remotely(path: str) -> bool:
    """Asks the store itself. Raises OSError where it cannot be told."""
    with named(path):
        if has_handler(path):
            return handlers().exists(path)
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
    with named(path):
        system = _fsspec(path)
        system.invalidate_cache()
        return Version(int(system.size(path)), str(system.ukey(path)))


@lru_cache(maxsize=4096)
def version_of_tar(path: str) -> Version:
    """Asked once a process."""
    return version_of(path)


def append(path: str, member: Member | None, target: Target) -> None:
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
            target.restart()  # more is here than there is of it now
            raise ConnectionError(f"{file} has changed") from e
        with opened as response:
            if start and response.status != 206:  # it knows no parts
                if member is not None:
                    raise OSError(errno.EINVAL, f"{file}: its server sends no parts of files")
                target.restart()
            expected = response.headers.get("Content-Length")
            came = _pump(response, target)
        if expected is not None and came < int(expected):
            raise ConnectionError(f"{path} broke off after {target.tell()} bytes")
        return
    with named(path):
        system = _fsspec(file)
        if end is not None:
            part = system.cat_file(file, start=start, end=end)
            came = _pump(io.BytesIO(part), target)
            if came < end - start:
                raise ConnectionError(f"{path} broke off after {target.tell()} bytes")
            return
        with system.open(file, "rb", block_size=BLOCK) as source:
            source.seek(start)
            _pump(source, target)


def _pump(source: Any, target: Target) -> int:
    """Copies all of it; returns how many bytes came."""
    came = 0
    try:
        while part := source.read(CHUNK):
            target.write(part)
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


def handlers() -> Any:
    # Imported here: every decoding process would wait for it.
    from iopath.common.file_io import g_pathmgr

    return g_pathmgr


def has_handler(path: str) -> bool:
    known = handlers()._path_handlers  # it has no public way to ask
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
def named(path: str) -> Iterator[None]:
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

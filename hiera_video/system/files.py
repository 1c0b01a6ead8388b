"""Files that are whole or not there, and paths that may be elsewhere. Only here is iopath imported.

Lists, videos, class names and weights may be named by any path for which an iopath handler is
registered (`s3://..`, say); `https://` is. A file is fetched once, to iopath's cache, and read from
there. Handlers of one's own are registered with `iopath.common.file_io.g_pathmgr.register_handler`,
in a module that `data.path_handlers` names.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from iopath.common.file_io import HTTPURLHandler, PathManager, g_pathmgr

from hiera_video.system.members import file_of, member_of


def is_remote(path: str | Path) -> bool:
    return "://" in str(path)


def join(root: str | Path, path: str | Path) -> str:
    """`path` under `root`, unless it is absolute or remote."""
    return str(path) if is_remote(path) else os.path.join(root, path)


def local(path: str | Path) -> str:
    """Where the file lies on this machine; a remote one is fetched first. Raises OSError.

    Of a video in a tar the whole tar is fetched.
    """
    if not is_remote(path):
        return str(path)
    member = member_of(str(path))
    file = str(path) if member is None else member.file
    try:
        fetched = _manager(file).get_local_path(file)
        return fetched if member is None else str(member._replace(file=fetched))
    except OSError:
        raise
    except Exception as e:  # whatever the handler's own library raises
        raise OSError(f"cannot fetch {path}: {type(e).__name__}: {e}") from e


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
    """Writes the file whole."""
    with written_whole(file) as temporary:
        temporary.write_text(text)


def sha256_of(file: str | Path) -> str:
    """Of a file on this machine."""
    digest = hashlib.sha256()
    with open(file, "rb") as f:
        while part := f.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def exists(path: str | Path) -> bool:
    file = file_of(str(path))
    return _manager(file).exists(file) if is_remote(file) else os.path.exists(file)


def register_handlers(modules: tuple[str, ...]) -> None:
    """Imports modules that register handlers. Raises ImportError."""
    for module in modules:
        import_module(module)


def _manager(path: str | Path) -> PathManager:
    prefix = str(path).split("://")[0] + "://"
    known = g_pathmgr._path_handlers  # it has no public way to ask
    if prefix in ("http://", "https://") and not any(str(path).startswith(p) for p in known):
        g_pathmgr.register_handler(HTTPURLHandler())
    elif not any(str(path).startswith(p) for p in known):
        raise OSError(f"no handler is registered for {prefix}; see data.path_handlers")
    return g_pathmgr

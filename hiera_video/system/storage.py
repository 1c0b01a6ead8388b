"""Which errors are those of storage, that may come back, and not of a file."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import HTTPError, URLError

from hiera_video.system.errors import GOES_ON, Unavailable

NAMES = (
    "EIO ESTALE EBUSY ETIMEDOUT ENOTCONN EREMOTEIO ENXIO ENODEV EHOSTDOWN EHOSTUNREACH ENETDOWN "
    "ENETUNREACH ECONNABORTED ECONNREFUSED ECONNRESET EPIPE"
)
AWAY = {getattr(errno, name) for name in NAMES.split() if hasattr(errno, name)}  # not all, on macOS
FULL = {errno.ENOSPC, errno.EDQUOT}
# Statuses of HTTP, besides those from 500 on. Who may not read asks whether others can be read.
ASK_LATER = {401, 403, 408, 425, 429}


def is_away(error: BaseException) -> bool:
    """Whether storage failed; else the file is not there, may not be read, or cannot be named."""
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in ASK_LATER
    if isinstance(error, (URLError, ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno in AWAY:
        return True
    return error.__cause__ is not None and is_away(error.__cause__)


@contextmanager
def storage_limit() -> Iterator[None]:
    """Storage that fails, or is full, under what a run writes raises Unavailable, in one line."""
    try:
        yield
    except OSError as e:
        if not is_away(e) and e.errno not in FULL:
            raise
        raise Unavailable(f"storage failed: {e}; {GOES_ON}") from e

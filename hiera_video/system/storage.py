"""Which errors are those of storage, that may come back, and not of a file."""

import errno
from urllib.error import HTTPError, URLError

NAMES = (
    "EIO ESTALE EBUSY ETIMEDOUT ENOTCONN EREMOTEIO ENXIO ENODEV EHOSTDOWN EHOSTUNREACH ENETDOWN "
    "ENETUNREACH ECONNABORTED ECONNREFUSED ECONNRESET EPIPE"
)
AWAY = {getattr(errno, name) for name in NAMES.split() if hasattr(errno, name)}  # not all, on macOS
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

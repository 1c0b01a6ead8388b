"""Which errors are those of storage, that may come back, and not of a file."""

import errno
from urllib.error import HTTPError, URLError

AWAY = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.EREMOTEIO,
    errno.ENXIO,
    errno.ENODEV,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EPIPE,
}
ASK_LATER = {408, 425, 429}  # statuses of HTTP, besides those from 500 on


def is_away(error: BaseException) -> bool:
    """Whether storage failed; else the file is not there, may not be read, or cannot be named."""
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in ASK_LATER
    if isinstance(error, (URLError, ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno in AWAY:
        return True
    return error.__cause__ is not None and is_away(error.__cause__)

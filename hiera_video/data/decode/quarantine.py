"""Videos that hung or crashed their decoder, in a file, so that no later run pays for them again.

The file is `path,reason,stamp`, one occasion a line, appended to by every worker. A process does
not open a video again that failed it once; others try it until it has failed twice. A file that has
changed since (its size or time, the stamp) is a new one. Delete a video's lines to give it another
try.
"""

import csv
import io
import os
import time
from pathlib import Path

from hiera_video.data.decode.packets import stamp

OCCASIONS = 2  # of failure, from which on a video is refused to all
LOOKED_AT_EVERY_S = 5.0


class Quarantine:
    """Reasons by path. Without a file it lasts as long as the process."""

    def __init__(self, file: str | Path | None = None):
        self._file = None if file is None else Path(file)
        self._reasons: dict[tuple[str, str], list[str]] = {}  # by (path, stamp), of all occasions
        self._own: set[tuple[str, str]] = set()
        self._read_bytes = 0
        self._next_look = 0.0

    def reason(self, path: str) -> str | None:
        """Why `path` is not to be opened; None if it may be. The words of the first occasion."""
        self._read_news()
        if not self._reasons:
            return None
        key = _key(path)
        reasons = self._reasons.get(key, [])
        return reasons[0] if key in self._own or len(reasons) >= OCCASIONS else None

    def add(self, path: str, reason: str) -> None:
        key = _key(path)
        self._own.add(key)
        self._reasons.setdefault(key, []).append(reason)
        if self._file is None:
            return
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([key[0], reason, key[1]])
        content = line.getvalue().encode(errors="surrogateescape")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, content)  # one write: lines of several workers do not mix
        finally:
            os.close(descriptor)

    def _read_news(self) -> None:
        """What has been found since; a file that cannot be read now is read later."""
        if self._file is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOKED_AT_EVERY_S
        try:
            if self._file.stat().st_size == self._read_bytes:
                return
            content = self._file.read_bytes()
        except OSError:
            return
        self._read_bytes = len(content)
        self._reasons = {}
        for row in csv.reader(io.StringIO(content.decode(errors="surrogateescape"))):
            if len(row) == 3:
                self._reasons.setdefault((row[0], row[2]), []).append(row[1])


def _key(path: str) -> tuple[str, str]:
    return os.path.abspath(path), stamp(path)

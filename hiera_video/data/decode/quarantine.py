"""Videos that hung or crashed their decoder, in a file, so that no later run pays for them again.

The file is `path,reason,stamp,time`, one occasion a line, appended to by every worker. A process
does not open a video again that failed it once; others try it until it has failed on two occasions.
A file that has changed since (its size or time, the stamp) is a new one. Delete a video's lines to
give it another try.
"""

import csv
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

OCCASIONS = 2  # of failure, from which on a video is refused to all
APART_S = 60.0  # of two occasions; one bad moment of a machine is one
LOOKED_AT_EVERY_S = 5.0


class Occasion(NamedTuple):
    reason: str
    stamp: str  # of the file's state
    time: float


class Quarantine:
    """Reasons by path. Without a file it lasts as long as the process.

    stamp_of: the state of a file by its path, now.
    """

    def __init__(self, file: str | Path | None, stamp_of: Callable[[str], str]):
        self._file = None if file is None else Path(file)
        self._stamp_of = stamp_of
        self._known: dict[str, list[Occasion]] = {}
        self._own: dict[str, Occasion] = {}
        self._read_bytes = 0
        self._next_look = 0.0

    def reason(self, path: str) -> str | None:
        """Why `path` is not to be opened; None if it may be. The words of the first occasion."""
        self._read_news()
        path = os.path.abspath(path)
        if path not in self._own and path not in self._known:
            return None
        stamp = self._stamp_of(path)
        own = self._own.get(path)
        if own is not None and own.stamp == stamp:
            return own.reason
        found = [occasion for occasion in self._known.get(path, []) if occasion.stamp == stamp]
        return found[0].reason if _count(found) >= OCCASIONS else None

    def add(self, path: str, reason: str) -> None:
        path = os.path.abspath(path)
        occasion = Occasion(reason, self._stamp_of(path), time.time())
        self._own.setdefault(path, occasion)
        if self._file is None:
            return
        line = io.StringIO()
        row = [path, reason, occasion.stamp, f"{occasion.time:.0f}"]
        csv.writer(line, lineterminator="\n").writerow(row)
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
        self._known = {}
        for row in csv.reader(io.StringIO(content.decode(errors="surrogateescape"))):
            if len(row) == 4 and row[3].isdigit():
                self._known.setdefault(row[0], []).append(Occasion(row[1], row[2], float(row[3])))


def _count(occasions: list[Occasion]) -> int:
    count = 0
    last = -APART_S
    for occasion in sorted(occasions, key=lambda occasion: occasion.time):
        if occasion.time - last >= APART_S:
            count += 1
            last = occasion.time
    return count

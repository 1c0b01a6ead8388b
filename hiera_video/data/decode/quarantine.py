"""Videos that hung or crashed their decoder, in a file, so that no later run pays for them again.

The file is `path,reason`, one video a line, appended to by every worker; delete a line to give its
video another try.
"""

import csv
import io
import os
from pathlib import Path


class Quarantine:
    """Reasons by path. Without a file it lasts as long as the process."""

    def __init__(self, file: str | Path | None = None):
        self._file = None if file is None else Path(file)
        self._reasons: dict[str, str] = {}
        self._read_bytes = 0

    def reason(self, path: str) -> str | None:
        """Why `path` is not to be opened; None if it may be."""
        self._read_news()
        return self._reasons.get(path)

    def add(self, path: str, reason: str) -> None:
        self._reasons[path] = reason
        if self._file is None:
            return
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([path, reason])
        self._file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        content = line.getvalue().encode(errors="surrogateescape")
        try:
            os.write(descriptor, content)  # one write: lines of several workers do not mix
        finally:
            os.close(descriptor)

    def _read_news(self) -> None:
        """What other workers have found since."""
        if (
            self._file is None
            or not self._file.exists()
            or self._file.stat().st_size == self._read_bytes
        ):
            return
        content = self._file.read_bytes()
        self._read_bytes = len(content)
        rows = csv.reader(io.StringIO(content.decode(errors="surrogateescape")))
        self._reasons |= {row[0]: row[1] for row in rows if len(row) == 2}

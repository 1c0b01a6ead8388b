"""What a run says: log.txt, metrics.jsonl, TensorBoard, and a progress bar on a terminal."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hiera_video.system.files import written_whole
from hiera_video.system.lock import FolderLock

LOGGER = logging.getLogger("hiera_video")


class RunLog:
    """The log of a run, open on rank 0 only.

    On other ranks (`folder` None) every call does nothing, so that callers need not ask.
    """

    def __init__(self, folder: Path | None, *, lock: FolderLock | None = None):
        self.folder = folder
        self._lock = lock
        self._board: Any = None  # TensorBoard's writer
        if folder is None:
            return
        file = logging.FileHandler(folder / "log.txt", errors="surrogateescape")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        console = logging.StreamHandler(_TqdmStream())
        console.setFormatter(logging.Formatter("%(message)s"))
        LOGGER.handlers = [file, console]
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False

    def say(self, message: str) -> None:
        if self.folder is not None:
            LOGGER.info(message)

    def metrics(self, row: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and its numbers to TensorBoard under `<split>/<name>`."""
        if self.folder is None:
            return
        with open(self.folder / "metrics.jsonl", "a") as f:
            f.write(json.dumps(row) + "\n")
        if self._board is None:
            # Imported here, because it takes seconds.
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tb"), purge_step=row["step"])
        for name, value in row.items():
            if name not in ("split", "step") and isinstance(value, (int, float)):
                self._board.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def cut_metrics(self, step: int) -> None:
        """Drops the lines after `step`: a resumed run takes those steps again."""
        file = self.folder / "metrics.jsonl" if self.folder is not None else None
        if file is None or not file.exists():
            return
        kept = [line for line, row in read_metrics(file) if row["step"] <= step]
        with written_whole(file) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept))

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Those of metrics.jsonl so far."""
        file = self.folder / "metrics.jsonl" if self.folder is not None else None
        if file is None or not file.exists():
            return []
        return [row for _, row in read_metrics(file) if row["split"] == split]

    def best_validation(self, until: int) -> tuple[float, int]:
        """The highest top-1, or mAP, up to that step, in percent, and where it was first.

        -1, 0: nowhere.
        """
        rows = [row for row in self.rows("val") if row["step"] <= until]
        found = ((row["top1"] or row.get("map") or 0.0, -row["step"]) for row in rows)
        best, step = max(found, default=(-1.0, 0))
        return best, -step

    def looks_since_best(self, until: int) -> int:
        """How often data.val was looked at after the best figure, up to that step."""
        _, best = self.best_validation(until)
        return sum(best < row["step"] <= until for row in self.rows("val"))

    def progress(self, total: int, *, what: str, unit: str, done: int = 0) -> "Progress":
        return Progress(total, what=what, unit=unit, done=done, log=self)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self.folder is not None:
            for handler in LOGGER.handlers:
                handler.close()
        LOGGER.handlers = []
        if self._lock is not None:
            self._lock.close()


def read_metrics(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line, row) of a metrics.jsonl, without a line that is only half written."""
    for line in file.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield line, json.loads(line)


class Progress:
    """A bar on a terminal; elsewhere a plain line every `every_s` seconds, with the time left."""

    def __init__(
        self, total: int, *, what: str, unit: str, done: int, log: RunLog, every_s: float = 30.0
    ):
        self.total = total
        self.what = what
        self.unit = unit
        self.done = done
        self.log = log
        self.every_s = every_s
        self._bar: Any = None
        if log.folder is not None and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=what, unit=unit, dynamic_ncols=True)
        self._first = done
        self._start = time.monotonic()
        self._last_line = self._start

    def advance(self, n: int = 1) -> None:
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() - self._last_line > self.every_s:
            self._last_line = time.monotonic()
            self.log.say(f"{self.what}: {self.done} of {self.total} {self.unit}, {self.eta()} left")

    def eta(self) -> str:
        elapsed = time.monotonic() - self._start
        rate = (self.done - self._first) / elapsed if elapsed > 0 else 0
        return tqdm.format_interval((self.total - self.done) / rate) if rate > 0 else "?"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _TqdmStream:
    """Log lines above the bar instead of through it."""

    def write(self, text: str) -> None:
        encoding = sys.stdout.encoding or "utf-8"
        # File names may be anything.
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        tqdm.write(text, file=sys.stdout, end="")

    def flush(self) -> None:
        sys.stdout.flush()

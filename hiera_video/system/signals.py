"""Requests to stop that come as signals: noted at once, answered where work can be cut in two."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

# What schedulers send before they take a machine away.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class StopSignals:
    """Inside the `with`, a stop signal is only noted: `stop_requested` tells.

    Elsewhere than in the main thread it changes nothing.
    """

    noted: ClassVar[str] = ""  # signals are the process's, not an object's

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        StopSignals.noted = ""

    def _note(self, number: int, _: object) -> None:
        StopSignals.noted = signal.Signals(number).name


def stop_requested() -> str:
    """The name of the signal that asks this process to stop; empty if none does."""
    return StopSignals.noted


@contextmanager
def stop_signals_held() -> Iterator[None]:
    """Processes that are started inside ignore stop signals from their first moment.

    In this process they are held back until the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals(*_: object) -> None:
    """For helper processes: a scheduler signals all of a job, and the run needs them to the end."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)

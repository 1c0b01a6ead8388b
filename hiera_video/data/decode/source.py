"""Where a data set's videos are opened: a killable decoding process and what it has learned so far.

A video that hangs or crashes its decoder is tried once more with another one. If that fails too,
its path goes to the quarantine.

Storage fails as well: it stalls, loses a server, breaks a read off. Where no decoder was at fault,
all of the file's bytes are read without one. If they do not come, the file is tried again after a
while; in the end it is bad if others can be read, and else storage is named and not the file.
"""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from hiera_video.data.decode.frame_cache import CachedReader, FrameCache
from hiera_video.data.decode.process import BoundedReader, DecodeFailure, DecodeProcess
from hiera_video.data.decode.quarantine import Quarantine
from hiera_video.system.errors import Unavailable, VideoError
from hiera_video.system.remote import RemoteFiles

PAUSES = (0.0, 0.1, 0.5, 1.0, 2.0)  # times the limit of a request, while storage is away
AWAY_S = 60.0  # that nobody waits for storage again, which did not come back
SECOND_TRY = {"auto": "decord", "pyav": "decord", "decord": "pyav", "torchcodec": "pyav"}


class Refused(VideoError):
    """Of a video that nobody tried to read: another attempt would end the same."""


class VideoSource:
    """Opens videos by path. Picklable; a copy starts a decoding process of its own.

    decoder: the one to try first (see readers.py). timeout_s: for one request. quarantine: a file
    that keeps bad videos. manifest: a file that keeps what was found of each video's packets.
    cache: keeps the frames of videos that are small enough. remote: keeps what is fetched.
    path_handlers: modules that register iopath handlers.
    """

    def __init__(
        self,
        decoder: str = "auto",
        *,
        timeout_s: float = 30.0,
        quarantine: str | Path | None = None,
        manifest: str | Path | None = None,
        cache: FrameCache | None = None,
        remote: RemoteFiles | None = None,
        path_handlers: tuple[str, ...] = (),
    ):
        if decoder not in SECOND_TRY:
            raise ValueError(f"decoder={decoder!r} must be one of {', '.join(SECOND_TRY)}")
        self.decoder = decoder
        self.second_decoder = SECOND_TRY[decoder]
        self.process = DecodeProcess(
            timeout_s=timeout_s, manifest=manifest, remote=remote, path_handlers=path_handlers
        )
        self._quarantine = Quarantine(quarantine, self.process.stamp)
        self.found_bad: set[str] = set()  # paths of files whose bytes were read to make sure
        self._away = ""  # why storage was given up
        self._away_until = 0.0  # monotonic
        self._cache = cache

    def open(self, path: str, decoder: str | None = None) -> BoundedReader | CachedReader:
        """The video, to be closed by the caller (a context manager).

        Raises VideoError; DecodeFailure where the decoder hung or crashed; Unavailable.
        """
        if time.monotonic() < self._away_until:
            raise Unavailable(self._away)
        reason = self._quarantine.reason(path)
        if reason is not None:
            # The words of the time when it was found, so that results do not depend on when.
            raise Refused(reason)
        if self._cache is None:
            return self.process.open(path, decoder or self.decoder)
        cached = self._cache.find(path)
        if cached is None:
            video = self.process.open(path, decoder or self.decoder)
            if self._cache.add(path, video):
                return video
            return self.process.open(path, decoder or self.decoder)
        return cached

    def attempts(self, path: str, others: Callable[[], Iterable[str]] = tuple) -> "Attempts":
        """At one video, from the first decoder on. others: some more videos of the data set."""
        return Attempts(self, path, others)

    def storage_fault(self, path: str) -> str:
        """Why the file's bytes do not come; empty if they do, or it is not there."""
        return self.process.storage_fault(path)

    def can_read(self, path: str) -> bool:
        return self.process.can_read(path)

    def give_up(self, reason: str) -> Unavailable:
        """Storage is away: for a while nobody waits for it again."""
        self._away = reason
        self._away_until = time.monotonic() + AWAY_S
        return Unavailable(reason)

    def condemn(self, path: str, failure: VideoError) -> None:
        """The video failed with both decoders: it goes to the quarantine."""
        self._quarantine.add(path, str(failure))

    def close(self) -> None:
        self.process.close()


class Attempts:
    """What to do when a video could not be read: another decoder, a pause, or no more."""

    def __init__(self, source: VideoSource, path: str, others: Callable[[], Iterable[str]]):
        self._source = source
        self._path = path
        self._others = others
        self._first: DecodeFailure | None = None  # of this round, with the first decoder
        self._storage_answers = False
        self._pauses = iter(PAUSES)

    def after(self, failure: VideoError) -> str:
        """The decoder to try next. Raises what is shown if the file is at fault, or Unavailable."""
        source = self._source
        if isinstance(failure, Refused):
            raise failure
        if isinstance(failure, DecodeFailure) and self._first is None:
            self._first = failure
            return source.second_decoder
        shown = self._first or failure
        kind = failure.kind if isinstance(failure, DecodeFailure) else ""
        if kind in ("timeout", "crashed"):
            source.condemn(self._path, shown)
            raise shown
        if not kind and self._path in source.found_bad:
            raise failure
        fault = str(failure) if kind == "killed" else source.storage_fault(self._path)
        if fault:
            self._pause(fault, shown, storage=kind != "killed")
        elif self._storage_answers:
            if self._first is not None:
                source.condemn(self._path, shown)
            source.found_bad.add(self._path)
            raise shown
        self._storage_answers = not fault
        self._first = None
        return source.decoder

    def _pause(self, fault: str, shown: VideoError, *, storage: bool) -> None:
        """Raises `shown` after the last one if the rest of the storage answers, or Unavailable."""
        pause = next(self._pauses, None)
        if pause is None:
            if not storage or any(self._source.can_read(path) for path in self._others()):
                raise shown
            raise self._source.give_up(f"{self._path} cannot be read: {fault}")
        if pause == PAUSES[1]:
            print(f"waiting for {self._path}: {fault}", file=sys.stderr, flush=True)
        time.sleep(pause * self._source.process.timeout_s)

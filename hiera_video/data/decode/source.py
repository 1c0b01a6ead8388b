"""Where a data set's videos are opened: a killable decoding process and what it has learned so far.

A video that hangs or crashes its decoder is tried once more with another one. If that fails too,
its path goes to the quarantine and is not opened again.
"""

from pathlib import Path

from hiera_video.data.decode.frame_cache import CachedReader, FrameCache
from hiera_video.data.decode.process import BoundedReader, DecodeProcess
from hiera_video.data.decode.quarantine import Quarantine
from hiera_video.system.errors import VideoError
from hiera_video.system.files import local

SECOND_TRY = {"auto": "decord", "pyav": "decord", "decord": "pyav", "torchcodec": "pyav"}


class VideoSource:
    """Opens videos by path. Picklable; a copy starts a decoding process of its own.

    decoder: the one to try first (see readers.py). timeout_s: for one request. quarantine: a file
    that keeps bad videos. manifest: a file that keeps what was found of each video's packets.
    cache: keeps the frames of videos that are small enough.
    """

    def __init__(
        self,
        decoder: str = "auto",
        *,
        timeout_s: float = 30.0,
        quarantine: str | Path | None = None,
        manifest: str | Path | None = None,
        cache: FrameCache | None = None,
    ):
        if decoder not in SECOND_TRY:
            raise ValueError(f"decoder={decoder!r} must be one of {', '.join(SECOND_TRY)}")
        self.decoder = decoder
        self.second_decoder = SECOND_TRY[decoder]
        self.process = DecodeProcess(timeout_s=timeout_s, manifest=manifest)
        self._quarantine = Quarantine(quarantine)
        self._cache = cache

    def open(self, path: str, decoder: str | None = None) -> BoundedReader | CachedReader:
        """The video, to be closed by the caller (a context manager).

        Raises VideoError; DecodeFailure where the decoder hung or crashed.
        """
        reason = self._quarantine.reason(path)
        if reason is not None:
            # The words of the time when it was found, so that results do not depend on when.
            raise VideoError(reason)
        try:
            file = local(path)
        except OSError as e:
            raise VideoError(str(e)) from e
        if self._cache is None:
            return self.process.open(file, decoder or self.decoder)
        cached = self._cache.find(file)
        if cached is None:
            video = self.process.open(file, decoder or self.decoder)
            if self._cache.add(file, video):
                return video
            return self.process.open(file, decoder or self.decoder)
        return cached

    def condemn(self, path: str, failure: VideoError) -> None:
        """The video failed with both decoders: it is not opened again."""
        self._quarantine.add(path, str(failure))

    def close(self) -> None:
        self.process.close()

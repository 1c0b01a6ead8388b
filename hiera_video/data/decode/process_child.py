"""The child of a DecodeProcess (process.py): opens, fetches and decodes one video at a time."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from hiera_video.data.decode.packets import Manifest, stamp
from hiera_video.data.decode.process import PROGRESS_BYTES, Part, receive, send
from hiera_video.data.decode.readers import inspect_video, open_video
from hiera_video.system.errors import VideoError
from hiera_video.system.members import file_of, open_bytes
from hiera_video.system.remote import RemoteFiles
from hiera_video.system.signals import ignore_stop_signals
from hiera_video.system.storage import is_away
from hiera_video.system.stores import exists_remotely, is_remote, register_handlers

PR_SET_PDEATHSIG = 1
PART_BYTES = 16 << 20  # of frames that are sent at a time, or one frame
TRIM_EVERY = 256  # opened videos, after which the C library's free memory goes back to the system


def serve(descriptor: int, parent: int) -> None:
    """Answers requests from stdin until it ends."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    ignore_stop_signals()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints may come between the replies
    known, settings = receive(sys.stdin.buffer)
    sys.path += [folder for folder in known if folder not in sys.path]
    register_handlers(settings.path_handlers)
    manifest = Manifest(settings.manifest) if settings.manifest else None
    send(replies, "ready")
    opened = contextlib.ExitStack()  # the video, and where it was fetched to
    reader: Any = None
    parts: Iterator[Part] = iter(())
    count = 0
    with contextlib.suppress(EOFError):
        while True:
            what, *arguments = receive(sys.stdin.buffer)
            try:
                if what in ("open", "close"):
                    opened.close()
                    reader = None
                answer: Any = None
                if what == "open":
                    count += 1
                    if count % TRIM_EVERY == 0:
                        _trim_memory()
                    path, decoder = arguments
                    file = opened.enter_context(_at_hand(path, settings.remote))
                    reader = opened.enter_context(open_video(file, decoder, manifest=manifest))
                    answer = (reader.name, reader.info)
                elif what == "get":
                    parts = _parts(reader.each(*arguments))
                    answer = _put(descriptor, next(parts, None))
                elif what == "more":
                    answer = _put(descriptor, next(parts, None))
                elif what == "inspect":
                    (path,) = arguments
                    with _at_hand(path, settings.remote) as file:
                        answer = inspect_video(file)
                elif what == "read":
                    (path,) = arguments
                    answer = _fault(path, settings.remote)
                elif what == "reach":
                    (path,) = arguments
                    answer = _reached(path)
                elif what == "stamp":
                    answer = stamp(*arguments)
            except (VideoError, IndexError) as e:
                answer = e
            # A damaged file may lead a decoder anywhere; this process is there to contain it.
            except Exception as e:
                answer = VideoError(f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}")
            send(replies, answer)


@contextlib.contextmanager
def _at_hand(path: str, remote: RemoteFiles) -> Iterator[str]:
    """Where the file lies on this machine, for as long as it is needed. Raises VideoError."""
    if not is_remote(path):
        yield path
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(remote.held(path))
        except OSError as e:
            raise VideoError(str(e)) from e
        yield file


def _fault(path: str, remote: RemoteFiles) -> str:
    """Why storage does not give the file's bytes; empty if it does, or the file is not there."""
    try:
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(remote.held(path)) if is_remote(path) else path
            file = stack.enter_context(open_bytes(place))
            while file.read(PROGRESS_BYTES):
                pass
    except OSError as e:
        return (e.strerror or str(e) or type(e).__name__) if is_away(e) else ""
    return ""


def _reached(path: str) -> bool:
    """Whether storage gives the file. A remote one is asked for, whatever was fetched before."""
    try:
        if is_remote(path):
            return exists_remotely(file_of(path))
        with open_bytes(path) as file:
            file.read(PROGRESS_BYTES)
    except OSError:
        return False
    return True


def _parts(frames: Iterator[tuple[int, np.ndarray]]) -> Iterator[Part]:
    """As many at a time as fit into PART_BYTES."""
    numbers: list[int] = []
    images: list[np.ndarray] = []
    for number, image in frames:
        numbers.append(number)
        images.append(image)
        if (len(images) + 1) * image.nbytes > PART_BYTES:
            yield numbers, images
            numbers = []
            images = []
    if images:
        yield numbers, images


def _put(descriptor: int, part: Part | None) -> tuple[list[int], tuple[int, ...]] | None:
    """Writes the images one after the other; returns their numbers and their common shape."""
    if part is None:
        return None
    numbers, images = part
    total = len(images) * images[0].nbytes
    if os.fstat(descriptor).st_size < total:
        os.ftruncate(descriptor, total)
    offset = 0
    for image in images:
        view = np.ascontiguousarray(image).data.cast("B")
        end = offset + len(view)
        while offset < end:
            offset += os.pwrite(descriptor, view[offset - end :], offset)
    return numbers, (len(images), *images[0].shape)


def _trim_memory() -> None:
    """Gives free memory back to the system.

    Decoders ask for blocks of many sizes; glibc keeps what it cannot fit again, and grows by a
    kilobyte a video.
    """
    trim = (
        getattr(ctypes.CDLL(None), "malloc_trim", None)
        if sys.platform.startswith("linux")
        else None
    )
    if trim is not None:
        trim(0)


def _die_with(parent: int) -> None:
    """Linux: the kernel ends this process when its parent ends, also in the middle of a decode."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            sys.exit(1)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))

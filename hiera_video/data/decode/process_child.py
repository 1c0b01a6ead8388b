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
from hiera_video.data.decode.process import PART_BYTES, PROGRESS_BYTES, receive, send
from hiera_video.data.decode.readers import inspect_video, open_video
from hiera_video.system.errors import VideoError
from hiera_video.system.members import file_of, open_bytes
from hiera_video.system.remote import RemoteFiles
from hiera_video.system.signals import ignore_stop_signals
from hiera_video.system.storage import is_away
from hiera_video.system.stores import exists_remotely, is_remote, register_handlers

PR_SET_PDEATHSIG = 1
# Of glibc's mallopt. By default a decoder's buffers go back to the system with every video, and
# their pages are taken anew for the next: 5% of a clip of a re-encoded video.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
KEPT_BYTES = 32 << 20  # of free memory
HEAP_BYTES = 1 << 20  # a block of more is the system's, and goes back at once
TRIM_EVERY = 256  # opened videos, after which the C library's free memory goes back to the system


def serve(descriptor: int, parent: int) -> None:
    """Answers requests from stdin until it ends."""
    _die_with(parent)
    _keep_memory()
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
    frames: Iterator[tuple[int, np.ndarray]] = iter(())
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
                    frames = reader.each(*arguments)
                    answer = _put(descriptor, frames)
                elif what == "more":
                    answer = _put(descriptor, frames)
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


def _put(
    descriptor: int, frames: Iterator[tuple[int, np.ndarray]]
) -> tuple[list[int], tuple[int, ...], bool]:
    """Writes the next images one after the other, as they come: as many as fit into PART_BYTES.

    Returns their numbers, their common shape [n, H, W, 3], and whether there are more.
    """
    numbers: list[int] = []
    shape: tuple[int, ...] = ()
    offset = 0
    for number, image in frames:
        view = np.ascontiguousarray(image).data.cast("B")
        written = 0
        while written < len(view):
            written += os.pwrite(descriptor, view[written:], offset + written)
        offset += written
        numbers.append(number)
        shape = image.shape
        if offset + len(view) > PART_BYTES:
            return numbers, (len(numbers), *shape), True
    return numbers, (len(numbers), *shape), False


def _keep_memory() -> None:
    """Lets the C library keep some free memory from one video to the next."""
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is not None:
        choose(M_TRIM_THRESHOLD, KEPT_BYTES)
        choose(M_MMAP_THRESHOLD, HEAP_BYTES)


def _trim_memory() -> None:
    """Gives free memory back to the system.

    Decoders ask for blocks of many sizes; glibc keeps what it cannot fit again, and grows by a
    kilobyte a video.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
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

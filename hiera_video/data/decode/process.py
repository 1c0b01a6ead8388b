"""Decoding in a process that can be killed: no file can hang or crash the one that asks.

    decoder = DecodeProcess(timeout_s=30)  # starts at the first request, and again after a kill
    with decoder.open(path, "decord") as video:    # info, get and close, as of open_video
        frames = video.get(indices)

A decoder that spins in C code cannot be stopped from inside its process, and one that crashes takes
its process along. The child (`python -m hiera_video.data.decode.process_child`) is started with
subprocess, which works in DataLoader workers, too. Requests and replies are pickles over pipes,
length first; frames come through a file in memory that both have mapped. The child ends when its
parent does: at the end of its input, or, while it decodes, by the kernel (Linux).
"""

import contextlib
import mmap
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from hiera_video.data.decode.packets import VideoInfo
from hiera_video.data.decode.pyav_reader import VideoReport
from hiera_video.system.errors import Unavailable, VideoError
from hiera_video.system.remote import RemoteFiles
from hiera_video.system.signals import stop_signals_held

START_S = 120.0  # for the child to import its modules; a busy file system may need long
START_PAUSES_S = (0, 1, 10)
LEAST_S = 0.1  # for a part of an answer whose others took the whole limit
ENDING_S = 0.05  # for a child to end by itself
KILL_S = 5.0  # for a child that is killed to be gone
BUSY = 0.2  # share of a core, above which a child computes
LONGEST = 20  # times the limit: the most for a child that goes on reading
PROGRESS_BYTES = 1 << 20
PART_BYTES = 16 << 20  # of frames that are sent at a time, or one frame
LENGTH = struct.Struct("<Q")


class DecodeFailure(VideoError):
    """The decoding process gave no answer. `kind`:

    timeout  it computed, and had to be killed
    stalled  it waited, and had to be killed; what it waited for may be the storage
    crashed  it ended by itself
    killed   somebody else killed it, such as a system that is out of memory
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class ChildSettings(NamedTuple):
    manifest: str | Path | None
    remote: RemoteFiles
    path_handlers: tuple[str, ...]


class DecodeProcess:
    """One child, for one caller at a time. A pickled or forked copy starts a child of its own.

    manifest: the file that keeps the scans of videos, so that each is scanned once. remote: keeps
    what is fetched. path_handlers: modules that register iopath handlers.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        manifest: str | Path | None = None,
        remote: RemoteFiles | None = None,
        path_handlers: Sequence[str] = (),
    ):
        self.timeout_s = timeout_s
        self._settings = ChildSettings(manifest, remote or RemoteFiles(), tuple(path_handlers))
        self._child: Any = None  # subprocess.Popen, while it lives
        self._owner = 0
        self._waited_s = 0.0  # for answers, so far
        self._memory: Any = None  # the file in memory that both have mapped
        self._map: mmap.mmap | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_child": None, "_owner": 0, "_memory": None, "_map": None}

    def open(self, path: str | Path, decoder: str) -> "BoundedReader":
        """Opens a video.

        Raises VideoError; DecodeFailure if the file took longer than `timeout_s` or ended the
        child; Unavailable if no child can be started.
        """
        name, info = self._ask("open", str(path), decoder)
        return BoundedReader(self, name, info)

    def inspect(self, path: str | Path) -> VideoReport:
        """A full decode. Raises as `open` does."""
        return self._ask("inspect", str(path))

    def storage_fault(self, path: str | Path) -> str:
        """Why the file's bytes do not come, decoded or not; empty if they do, or it is not there.

        Reads all of them. Raises Unavailable.
        """
        try:
            return self._ask("read", str(path))
        except DecodeFailure:
            return f"its storage gave no answer in {self.timeout_s:g} s"

    def can_read(self, path: str | Path) -> bool:
        """Whether the file's storage gives it. Raises Unavailable."""
        try:
            return self._ask("reach", str(path))
        except DecodeFailure:
            return False

    def stamp(self, path: str | Path) -> str:
        """Of the file's state; empty where the system does not tell. Raises Unavailable."""
        try:
            return self._ask("stamp", str(path))
        except DecodeFailure:
            return ""

    def close(self) -> None:
        if self._child is not None and self._owner == os.getpid():
            self._kill()
        self._child = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the interpreter's end modules may be gone
            self.close()

    def parts(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[list[int], np.ndarray]]:
        """(frame numbers, uint8 [n, H, W, 3]), of each frame once, as the decoder brings them.

        The frames of a part are good until the next one is asked for.
        """
        began = self._waited_s
        numbers, shape, more = self._ask("get", np.asarray(indices, dtype=np.int64))
        while numbers:
            size = int(np.prod(shape))
            if self._map is None or len(self._map) < size:
                length = os.fstat(self._memory.fileno()).st_size
                self._map = mmap.mmap(self._memory.fileno(), length)
            yield numbers, np.frombuffer(self._map, np.uint8, size).reshape(shape)
            if not more:
                break
            numbers, shape, more = self._ask("more", waited_s=self._waited_s - began)

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [len(indices), H, W, 3]"""
        places: dict[int, list[int]] = {}
        for place, number in enumerate(np.asarray(indices, dtype=np.int64).tolist()):
            places.setdefault(number, []).append(place)
        images = np.empty(0, np.uint8)
        for numbers, frames in self.parts(indices):
            if not len(images):
                images = np.empty((len(indices), *frames.shape[1:]), np.uint8)
            for number, frame in zip(numbers, frames):
                images[places[number]] = frame
        return images

    def forget(self) -> None:
        """Closes the video that is open. Of no matter if the child is gone."""
        if self._child is not None:
            with contextlib.suppress(VideoError):
                self._ask("close")

    def _ask(self, *request: Any, waited_s: float = 0.0) -> Any:
        """waited_s: of the limit, that earlier parts of the answer have taken."""
        if self._child is None or self._owner != os.getpid():
            self._start()
        child = self._child
        began = time.monotonic()
        cpu_s = _cpu_s(child.pid)
        try:
            send(child.stdin, request)
            self._wait(max(self.timeout_s - waited_s, LEAST_S))
            answer = receive(child.stdout, time.monotonic() + self.timeout_s)
            self._waited_s += time.monotonic() - began
        except TimeoutError:
            elapsed = time.monotonic() - began
            computed = _cpu_s(child.pid) - cpu_s > BUSY * elapsed
            self._kill()
            kind = "timeout" if computed else "stalled"
            limit = max(1, elapsed // self.timeout_s) * self.timeout_s
            raise DecodeFailure(kind, f"decoding took more than {limit:g} s") from None
        except (BrokenPipeError, EOFError):
            self._kill()
            killed = child.returncode == -signal.SIGKILL
            raise DecodeFailure(
                "killed" if killed else "crashed",
                f"the decoder crashed ({_how_it_ended(child.returncode)})",
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _wait(self, limit_s: float) -> None:
        """For the beginning of an answer.

        A child that goes on reading a large file has more time. Raises TimeoutError.
        """
        child = self._child
        seen = _bytes_moved(child.pid)
        last = time.monotonic() + LONGEST * self.timeout_s
        while not _readable(child.stdout, limit_s):
            now = _bytes_moved(child.pid)
            if now - seen < PROGRESS_BYTES or time.monotonic() > last:
                raise TimeoutError
            seen = now
            limit_s = self.timeout_s

    def _start(self) -> None:
        """Raises Unavailable."""
        for pause_s in START_PAUSES_S:
            time.sleep(pause_s)
            if self._started():
                return
        raise Unavailable(
            "the decoding process does not start: python -m hiera_video.data.decode.process_child"
        )

    def _started(self) -> bool:
        try:
            self._launch()
        except OSError:  # no memory, no descriptor, no process is left
            self._child = None
            return False
        try:
            send(self._child.stdin, (sys.path, self._settings))
            receive(self._child.stdout, time.monotonic() + START_S)  # it is ready
        except (TimeoutError, EOFError, BrokenPipeError):
            self._kill()
            return False
        return True

    def _launch(self) -> None:
        self._owner = os.getpid()
        self._map = None
        self._memory = _memory_file()
        root = str(Path(__file__).resolve().parents[3])
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        descriptor = self._memory.fileno()
        with stop_signals_held():
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "hiera_video.data.decode.process_child",
                    str(descriptor),
                    str(os.getpid()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # FFmpeg writes what it thinks of damaged files
                pass_fds=(descriptor,),
                env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
            )

    def _kill(self) -> None:
        """Ends the child; one that has ended keeps its status."""
        child = self._child
        self._child = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=ENDING_S)
        child.kill()
        # Who waits for a disk that does not answer cannot be killed: it is left to the system.
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=KILL_S)
        for file in (child.stdin, child.stdout, self._memory):
            with contextlib.suppress(OSError):  # what was not sent is flushed, to nobody
                file.close()


class BoundedReader:
    """The video that a DecodeProcess has open."""

    def __init__(self, process: DecodeProcess, name: str, info: VideoInfo):
        self._process = process
        self.name = name
        self.info = info

    def get(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return self._process.frames(indices)

    def parts(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[list[int], np.ndarray]]:
        """See DecodeProcess."""
        return self._process.parts(indices)

    def close(self) -> None:
        self._process.forget()

    def __enter__(self) -> "BoundedReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def send(pipe: BinaryIO, message: Any) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(LENGTH.pack(len(data)) + data)
    pipe.flush()


def receive(pipe: BinaryIO, deadline: float | None = None) -> Any:
    """The next message. Raises EOFError at the end, TimeoutError after `deadline` (monotonic)."""
    (length,) = LENGTH.unpack(_read(pipe, LENGTH.size, deadline))
    return pickle.loads(_read(pipe, length, deadline))


def _read(pipe: BinaryIO, size: int, deadline: float | None) -> bytes:
    data = b""
    while len(data) < size:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and (left <= 0 or not _readable(pipe, left)):
            raise TimeoutError
        part = os.read(pipe.fileno(), size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _readable(pipe: BinaryIO, wait_s: float) -> bool:
    """Whether something comes within that time. Unlike select, poll takes any descriptor."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(wait_s * 1e3))


def _cpu_s(pid: int) -> float:
    """Computing time of a process so far; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def _bytes_moved(pid: int) -> int:
    """That a process has read from files and written to them; 0 where the system does not tell."""
    try:
        first, second = Path(f"/proc/{pid}/io").read_text().splitlines()[:2]  # rchar, wchar
        return int(first.split()[1]) + int(second.split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _memory_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):  # Linux
        return os.fdopen(os.memfd_create("hiera_video_frames"), "r+b", buffering=0)
    return tempfile.TemporaryFile()


def _how_it_ended(status: int | None) -> str:
    if status is None:
        return "no exit status"
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"

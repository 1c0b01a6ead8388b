"""Scripts in processes of their own that are forked, not started: imports are there already.

Python and torch take seconds to come up, and the tests run a hundred tools.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORKS = multiprocessing.get_context("forkserver")
# The second comes with the first optimizer, and takes as long as torch.
FORKS.set_forkserver_preload(
    ["hiera_video.stages.run", "torch._dynamo", "torch.utils.tensorboard", "pytorchvideo.models"]
)


class Script:
    """`python script arguments` in the repository root, at work from here on.

    It leads a process group of its own.
    """

    def __init__(self, script: object, *arguments: object, **environment: str):
        self._command = [str(script), *map(str, arguments)]
        self._said = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._said.name) / name for name in ("out", "err")]
        whole = {**os.environ, **environment}
        self._process = FORKS.Process(target=_play, args=(self._command, whole, self._outputs))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None  # it was started
        return self._process.pid

    @property
    def at_work(self) -> bool:
        return self._process.is_alive()

    def send(self, number: int) -> None:
        """A signal, to the first process alone."""
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """How it ended. Kills it after that many seconds: subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.is_alive():
            self.kill()
            raise subprocess.TimeoutExpired(self._command, timeout)
        out, err = (path.read_text(errors="surrogateescape") for path in self._outputs)
        self._said.cleanup()
        return subprocess.CompletedProcess(self._command, self._process.exitcode, out, err)

    def check(self, timeout: float) -> None:
        done = self.wait(timeout)
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stderr[-2000:]}"

    def kill(self) -> None:
        """It and all that it has started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()


def run_forked(script: object, *arguments: object) -> None:
    """Raises where its exit status is not 0."""
    Script(script, *arguments).check(280)


def start_ranks(count: int, script: object, *arguments: object) -> list[Script]:
    """The script on that many ranks, with the environment that a launcher gives them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"LOCAL_WORLD_SIZE": count, "OMP_NUM_THREADS": 1}
    return [
        Script(script, *arguments, **{k: str(v) for k, v in environment.items()})
        for environment in ({**common, "RANK": r, "LOCAL_RANK": r} for r in range(count))
    ]


def run_ranks(count: int, script: object, *arguments: object, timeout: float) -> None:
    ranks = start_ranks(count, script, *arguments)
    try:
        for rank in ranks:
            rank.check(timeout)
    finally:  # the others wait for one that failed
        for rank in ranks:
            rank.kill()


def _play(command: Sequence[str], environment: dict[str, str], outputs: Sequence[Path]) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # not that of FORKS
    for descriptor, path in zip((1, 2), outputs):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = list(command)
    named = environment.get("PYTHONPATH")
    folder = str((ROOT / command[0]).parent)
    sys.path[:0] = [folder, *(named.split(os.pathsep) if named else [])]
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without them

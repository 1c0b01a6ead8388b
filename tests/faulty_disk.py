"""A file system that fails on purpose: a folder, mounted elsewhere, with faults at chosen points.

    python tests/faulty_disk.py FOLDER MOUNT FAULTS.json

FAULTS.json is a list of faults, read again whenever it changes; `[]` makes the disk a good one:

    {"on": "read", "match": "*.mp4", "skip": 3, "times": 1, "error": "EIO"}
    {"on": "open", "match": "*", "skip": 0, "times": null, "stall_s": 40}

on: the name of an operation below. match: against the path under the mount. The first `skip` calls
that match go well, the next `times` fail (null: all). Needs FUSE and `fusepy`.
"""

import contextlib
import errno
import fnmatch
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Plan = list[dict[str, Any]]  # faults


class Faults:
    """Decides, call by call."""

    def __init__(self, file: Path):
        self._file = file
        self._stamp = 0
        self._faults: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def meet(self, operation: str, path: str) -> None:
        """Stalls, or raises OSError, where a fault wants it."""
        wait = 0.0
        error = ""
        with self._lock:
            self._read_news()
            for fault in self._faults:
                if fault["on"] != operation or not fnmatch.fnmatch(path, fault["match"]):
                    continue
                fault["seen"] = fault.get("seen", 0) + 1
                number = fault["seen"] - fault.get("skip", 0)
                times = fault.get("times")
                if number > 0 and (times is None or number <= times):
                    wait = max(wait, fault.get("stall_s", 0))
                    error = error or fault.get("error", "")
        # Piece by piece, so that a disk that is mended answers at once.
        until = time.monotonic() + wait
        while time.monotonic() < until and self._is_as_read():
            time.sleep(0.05)
        if error:
            raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)), path)

    def _is_as_read(self) -> bool:
        return os.stat(self._file).st_mtime_ns == self._stamp

    def _read_news(self) -> None:
        if not self._is_as_read():
            content = json.loads(self._file.read_text())  # it is replaced as a whole
            self._stamp = os.stat(self._file).st_mtime_ns
            self._faults = content


def operations(folder: str, faults: Faults) -> Any:
    """The folder as it is, but for the faults."""
    import fuse

    class FaultyDisk(fuse.Operations):
        def __call__(self, op: str, path: str, *rest: Any) -> Any:
            if not hasattr(self, op):
                raise fuse.FuseOSError(errno.ENOSYS)
            try:
                faults.meet(op, path.lstrip("/"))
                return getattr(self, op)(folder + path, *rest)
            except OSError as e:
                raise fuse.FuseOSError(e.errno) from e

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            status = os.lstat(path)
            names = "st_atime st_ctime st_gid st_mode st_mtime st_nlink st_size st_uid st_ino"
            return {name: getattr(status, name) for name in names.split()}

        def access(self, path: str, mode: int) -> None:
            if not os.access(path, mode):
                raise OSError(errno.EACCES, "")

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(path)]

        def readlink(self, path: str) -> str:
            return os.readlink(path)

        def mkdir(self, path: str, mode: int) -> None:
            os.mkdir(path, mode)

        def rmdir(self, path: str) -> None:
            os.rmdir(path)

        def unlink(self, path: str) -> None:
            os.unlink(path)

        def symlink(self, name: str, target: str) -> None:
            os.symlink(target, name)

        def rename(self, old: str, new: str) -> None:
            os.rename(old, folder + new)

        def link(self, target: str, source: str) -> None:
            os.link(folder + source, target)

        def chmod(self, path: str, mode: int) -> None:
            os.chmod(path, mode)

        def chown(self, path: str, uid: int, gid: int) -> None:
            os.chown(path, uid, gid)

        def utimens(self, path: str, times: tuple[float, float] | None = None) -> None:
            os.utime(path, times)

        def statfs(self, path: str) -> dict[str, int]:
            status = os.statvfs(path)
            names = "f_bavail f_bfree f_blocks f_bsize f_favail f_ffree f_files f_frsize f_namemax"
            return {name: getattr(status, name) for name in names.split()}

        def open(self, path: str, flags: int) -> int:
            return os.open(path, flags & ~os.O_APPEND)  # the kernel says where to write

        def create(self, path: str, mode: int, info: Any = None) -> int:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> None:
            os.truncate(path if fh is None else fh, length)

        def fsync(self, path: str, only_data: int, fh: int) -> None:
            os.fsync(fh)

        def flush(self, path: str, fh: int) -> None:
            """Nothing is held back."""

        def release(self, path: str, fh: int) -> None:
            os.close(fh)

        def lock(self, path: str, fh: int, command: int, lock: Any) -> int:
            """Never held: only one run at a time is tried here."""
            return 0

    return FaultyDisk()


@contextlib.contextmanager
def faulty_disk(
    folder: Path, mount: Path, faults: list[dict[str, Any]]
) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Mounts the folder; yields a function that takes other faults.

    Skips the test where there is no FUSE.
    """
    file = mount.with_name(f"{mount.name}_faults.json")

    def change(now: Plan) -> None:
        new = file.with_suffix(".new")
        new.write_text(json.dumps(now))
        new.replace(file)

    change(faults)
    mount.mkdir(exist_ok=True)
    command = [sys.executable, __file__, str(folder), str(mount), str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        while not os.path.ismount(mount):
            if process.poll() is not None:
                said = (process.stderr.read().decode().strip().splitlines() or ["?"])[-1]
                pytest.skip(f"no FUSE here: {said}")
            time.sleep(0.02)
        yield change
    finally:
        change([])
        for command in (["fusermount3", "-uz"], ["fusermount", "-uz"], ["umount", "--lazy"]):
            with contextlib.suppress(OSError):
                if not subprocess.run([*command, str(mount)], capture_output=True).returncode:
                    break
        process.kill()
        process.wait()


def seeded_faults(seed: int) -> Plan:
    """One to three faults, of every kind in turn."""
    rng = random.Random(seed)
    kinds: list[dict[str, Any]] = [
        {"on": "read", "match": "*.mp4", "stall_s": 6},
        {"on": "open", "match": "*.mp4", "stall_s": 6},
        {"on": "read", "match": "*.mp4", "error": "EIO"},
        {"on": "open", "match": "*.mp4", "error": "ESTALE"},
        {"on": "getattr", "match": "*.mp4", "error": "ESTALE"},
        {"on": "lock", "match": "*", "error": "ENOLCK"},
        {"on": "write", "match": "*checkpoints*", "error": "ENOSPC"},
        {"on": "rmdir", "match": "*", "error": "ENOTEMPTY"},
        {"on": "rename", "match": "*", "error": "EIO"},
        {"on": "getattr", "match": "*", "stall_s": 0.02, "times": None},
    ]
    chosen = [kinds[seed % len(kinds)], *rng.sample(kinds, rng.randrange(3))]
    plan = []
    for kind in chosen:
        times = rng.choice([1, 2, None]) if "stall_s" not in kind else rng.choice([1, 2])
        plan.append({"skip": rng.randrange(20), "times": times, **kind})
    return plan


def main() -> None:
    import fuse

    folder, mount, file = sys.argv[1:]
    disk = operations(os.path.realpath(folder), Faults(Path(file)))
    # No attribute is remembered: every look is a call.
    fuse.FUSE(disk, mount, foreground=True, attr_timeout=0, entry_timeout=0)


if __name__ == "__main__":
    main()

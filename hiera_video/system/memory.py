"""Memory in use and at hand, GiB: of a device's allocator, or of the host where that is the CPU."""

import contextlib
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from hiera_video.system.errors import RunStopped


def peak_gib(device: torch.device) -> float:
    """The most since the process began, or since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = _resident_gib("VmHWM")
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def reset_peak(device: torch.device) -> float:
    """Forgets the peak so far; returns what is in use now. On a CPU on Linux only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**30
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")
    return _resident_gib("VmRSS") or 0.0


def free_gib(device: torch.device) -> float | None:
    """What a process may still take; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**30
    return host_free_gib()


@contextmanager
def gpu_limit() -> Iterator[None]:
    """A GPU whose memory does not suffice raises RunStopped, in one line."""
    try:
        yield
    except RunStopped:
        raise
    except RuntimeError as e:
        text = str(e)
        # The allocator's, the driver's, cuBLAS's.
        if "out of memory" not in text and "ALLOC_FAILED" not in text:
            raise
        what = ". ".join(text.splitlines()[0].removeprefix("CUDA out of memory. ").split(". ")[:2])
        raise RunStopped(
            f"the GPU is out of memory: {what}; in training raise train.accumulate or set "
            "train.recompute_stages, in testing and features lower test.views_per_forward"
        ) from e


def host_free_gib() -> float | None:
    """Of the host's memory, within the limit of the process's group (containers, SLURM)."""
    limits = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        limits.append(int(available.split()[1]) / 2**20)
    for group in _control_groups():
        with contextlib.suppress(OSError, ValueError):  # "max": none
            limit = int((group / "memory.max").read_text())
            limits.append((limit - int((group / "memory.current").read_text())) / 2**30)
    return min(limits, default=None)


def _control_groups() -> list[Path]:
    """The process's own and those that it lies in (version 2)."""
    root = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line for line in lines if line.startswith("0::")).removeprefix("0::/")
        return [root / own, *(root / own).parents[: len(Path(own).parts)]]
    return [root]


def shared_free_gib() -> float | None:
    """Of the memory that processes share; None where the system has no such limit."""
    folder = Path("/dev/shm")
    return shutil.disk_usage(folder).free / 2**30 if folder.is_dir() else None


def _resident_gib(field: str) -> float | None:
    """VmRSS: now. VmHWM: the peak of this process. None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 2**20
    return None

"""Safetensors files that colleagues can read."""

import contextlib
import os
from pathlib import Path

import safetensors.torch
from torch import Tensor


def save_file(
    tensors: dict[str, Tensor], file: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """As safetensors' own, which makes files that only their owner may read."""
    safetensors.torch.save_file(tensors, file, metadata=metadata)
    mask = os.umask(0o077)
    os.umask(mask)
    with contextlib.suppress(OSError):  # some mounts have no modes
        os.chmod(file, 0o666 & ~mask)

"""Safetensors files that colleagues can read."""

import contextlib
import os
import re
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

OS_ERROR = re.compile(r"\(os error (\d+)\)")


def save_file(
    tensors: dict[str, Tensor], file: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """As safetensors' own, which makes files that only their owner may read.

    Raises OSError, also for what safetensors has an error of its own for.
    """
    try:
        safetensors.torch.save_file(tensors, file, metadata=metadata)
    except SafetensorError as e:
        number = OS_ERROR.search(str(e))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from e
    mask = os.umask(0o077)
    os.umask(mask)
    with contextlib.suppress(OSError):  # some mounts have no modes
        os.chmod(file, 0o666 & ~mask)

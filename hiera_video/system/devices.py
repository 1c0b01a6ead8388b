"""What a device computes, and at which precision."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
# Processors' instructions for products of bfloat16: of x86, of ARM.
BFLOAT16_PRODUCTS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a model runs at `precision`, float32 or bfloat16."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def precision_on(device: torch.device, precision: str) -> str:
    """`auto` is bfloat16, and float32 where the device only emulates that."""
    if precision != "auto":
        return precision
    return "float32" if lacks_bfloat16(device) else "bfloat16"


def lacks_bfloat16(device: torch.device) -> bool:
    """Whether it only emulates it, which is slower than float32.

    So do V100 and T4, and processors without any of BFLOAT16_PRODUCTS.
    """
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    has = cpu_capabilities()
    return not any(has.get(name) for name in BFLOAT16_PRODUCTS)


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """float32 convolutions are that inside, as products are; a GPU would compute them in tf32."""
    cudnn = torch.backends.cudnn
    try:
        before = device.type == "cuda" and cudnn.allow_tf32
    except RuntimeError:  # somebody has set convolutions apart: theirs to choose
        before = False
    if before:
        cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if before:
            cudnn.allow_tf32 = True


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def cpu_capabilities() -> dict[str, Any]:
    """What torch knows of the processor; older releases tell of bfloat16 alone, on x86."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    if tell is not None:
        return tell()
    older = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    return {name: bool(getattr(torch.cpu, ask, bool)()) for name, ask in older.items()}

"""What a GPU asks of a run, as far as a machine without one can tell."""

import pytest
import torch
from conftest import FINETUNE, SHORT

from hiera_video.config import load_config
from hiera_video.stages.run import run
from hiera_video.system import devices
from hiera_video.system.devices import exact_float32, precision_on
from hiera_video.system.errors import RunStopped
from hiera_video.system.memory import gpu_limit

CUDNN = torch.backends.cudnn


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB "
        "of which 1.00 MiB is free. Process 1 has 79.17 GiB memory in use.\nMore",
        "CUDA error: out of memory\nCUDA kernel errors might be reported at some other call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_gpu_out_of_memory_is_one_line(text):
    """As the allocator, the driver and cuBLAS say it."""
    with pytest.raises(RunStopped, match="the GPU is out of memory") as e, gpu_limit():
        raise RuntimeError(text)
    assert "\n" not in str(e.value) and text.splitlines()[0][:40].split(". ")[-1] in str(e.value)


def test_other_errors_pass_a_gpu_limit():
    for error in (RuntimeError("shapes differ"), RunStopped("out of memory, as somebody says")):
        with pytest.raises(type(error)) as e, gpu_limit():
            raise error
        assert e.value is error


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_float32_is_float32_for_a_while(device):
    assert CUDNN.allow_tf32
    with pytest.raises(ZeroDivisionError), exact_float32(torch.device(device)):
        assert CUDNN.allow_tf32 == (device == "cpu")
        raise ZeroDivisionError
    assert CUDNN.allow_tf32


@pytest.mark.skipif(not hasattr(CUDNN, "conv"), reason="this torch has one setting for all")
def test_a_setting_of_convolutions_alone_is_left_as_it_is():
    before = CUDNN.conv.fp32_precision
    other = "ieee" if before != "ieee" else "tf32"
    try:
        CUDNN.conv.fp32_precision = other
        with exact_float32(torch.device("cuda")):
            assert CUDNN.conv.fp32_precision == other
    finally:
        CUDNN.conv.fp32_precision = before


@pytest.mark.parametrize(
    ("has", "found"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"neon": True, "bf16": True}, "bfloat16"),
        ({"neon": True, "bf16": False}, "float32"),
        ({}, "float32"),  # not known
    ],
)
def test_auto_is_bfloat16_where_it_is_computed(monkeypatch, has, found):
    """On a processor that emulates it, the demo's step takes 2.6 times as long as in float32."""
    monkeypatch.setattr(devices, "cpu_capabilities", lambda: has)
    cpu = torch.device("cpu")
    assert precision_on(cpu, "auto") == found
    assert [precision_on(cpu, name) for name in devices.PRECISIONS] == list(devices.PRECISIONS)


@pytest.mark.parametrize("has", [{"avx512_bf16": False}, {"avx512_bf16": True}])
def test_the_log_says_in_what_a_run_computes(monkeypatch, shapes, tmp_path, has):
    monkeypatch.setattr(devices, "cpu_capabilities", lambda: has)
    for precision in ("auto", "bfloat16"):
        given = [f"data.root={shapes}", f"output={tmp_path}/{precision}", "stages=[train]"]
        given += [*SHORT, "init.weights=none", f"train.precision={precision}"]
        run(load_config(FINETUNE, given))
    slow = not has["avx512_bf16"]
    said = (tmp_path / "auto/log.txt").read_text()
    assert f"train.precision=auto: {'float32' if slow else 'bfloat16'} on this device" in said
    assert "only emulates" not in said
    assert ("only emulates" in (tmp_path / "bfloat16/log.txt").read_text()) == slow

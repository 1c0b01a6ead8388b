"""The linear layer of all models: `nn.Linear`, with float32 products on oneDNN on AMD processors.

There PyTorch's default for float32 (MKL) is 10 to 15% slower for the output and for the input's
gradient; for the weight's gradient it is the faster one. Values are those of `nn.Linear` to
rounding, parameters and names are the same.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.system.devices import cpu_capabilities


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if ONEDNN_IS_FASTER and _is_plain_float32(x):
            return _OneDNN.apply(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


def _is_plain_float32(x: Tensor) -> bool:
    # Traces (FLOP counts, torch.compile, torch.export) keep the standard operator; inductor takes
    # no other for training.
    is_traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    is_cpu_float32 = (
        x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    )
    return is_cpu_float32 and not is_traced


def _onednn_is_faster() -> bool:
    name = str(cpu_capabilities().get("cpu_name", ""))
    return (
        name.startswith("AMD")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, OPERATOR)
    )


OPERATOR = "_linear_pointwise"
ONEDNN_IS_FASTER = _onednn_is_faster()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., C], weight [O, C] -> [..., O]"""
    return getattr(torch.ops.mkldnn, OPERATOR)(x, weight, bias, "none", [], "")


class _OneDNN(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_x = _product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = rows.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, rows.sum(0) if ctx.needs_input_grad[2] else None

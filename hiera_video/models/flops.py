"""Cost of a model: multiply-accumulates of one forward pass and parameters, by fvcore.

One multiply-accumulate counts as one FLOP, as in the paper. fvcore has no handle for
scaled_dot_product_attention and would leave out its two matrix products (71 instead of 102 GMACs
for B at 16x224).
"""

import math
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn


def count_macs(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of `model(*inputs)`, in eval mode."""
    fused = torch.backends.mha.get_fastpath_enabled()
    # nn.MultiheadAttention's fused operator has no handle either.
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCountAnalysis(model.eval(), inputs)
    counter.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    try:
        with torch.no_grad():
            return int(counter.total())
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """softmax(q k^T) v: [B, heads, M, D] x [B, heads, N, D] twice."""
    (*rows, queries, dim) = inputs[0].type().sizes()
    keys = inputs[1].type().sizes()[-2]
    return 2 * math.prod(rows) * queries * keys * dim

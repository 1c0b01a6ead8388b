"""Attention of the blocks: PyTorch's fused kernels, or head by head where those are slow.

On such a processor (AVX512-BF16 without AMX) PyTorch's fused kernel is no faster in bfloat16 than
in float32, while plain matrix products are twice as fast. A few heads at a time keep the scores in
the cache, so this path never holds more than `SCORES` of them, and its backward pass computes them
again, as a fused kernel does.

Legend: R rows (samples, or windows folded into them), H heads, N queries, M keys, D channels of a
head.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.system.devices import cpu_capabilities

SCORES = 2**22  # held at a time; 8 MiB in bfloat16
CUDA_ROWS = 65_535  # a CUDA grid has no more blocks along its second and third dimensions


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v. q [R, H, N, D], k and v [R, H, M, D] -> [R, H, N, D]"""
    # Always 4-D: the fused kernels refuse other shapes.
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and FUSED_IS_SLOW:
        return head_by_head(q, k, v)
    if q.is_cuda and len(q) > CUDA_ROWS:
        return in_row_chunks(q, k, v, rows=CUDA_ROWS)
    return F.scaled_dot_product_attention(q, k, v)


def in_row_chunks(q: Tensor, k: Tensor, v: Tensor, *, rows: int) -> Tensor:
    """As `attend`, at most `rows` rows in one call of the fused kernel."""
    chunks = zip(q.split(rows), k.split(rows), v.split(rows))
    return torch.cat([F.scaled_dot_product_attention(*chunk) for chunk in chunks])


def _fused_bfloat16_is_slow() -> bool:
    has = cpu_capabilities()
    return bool(has.get("avx512_bf16")) and not has.get("amx_bf16")


FUSED_IS_SLOW = _fused_bfloat16_is_slow()


@torch.library.custom_op("hiera_video::head_by_head", mutates_args=())
def head_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `attend`; probabilities are rounded to the inputs' precision between the two products."""
    out = _empty_like_heads(q)
    scores, probabilities = _buffers(q, k, count=2)
    for part, n in _parts(q, k):
        p = _probabilities(q[part], k[part], scores[:n], probabilities[:n])
        out[part] = torch.bmm(p, v[part])
    return out


@head_by_head.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _empty_like_heads(q)


@torch.library.custom_op("hiera_video::head_by_head_backward", mutates_args=())
def head_by_head_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq = _empty_like_heads(q)
    dk = _empty_like_heads(k)
    dv = _empty_like_heads(v)
    scores, probabilities = _buffers(q, k, count=2)
    scale = q.shape[-1] ** -0.5
    for part, n in _parts(q, k):
        p = _probabilities(q[part], k[part], scores[:n], probabilities[:n])
        dv[part] = torch.bmm(p.mT, grad[part])
        dp = torch.bmm(grad[part], v[part].mT, out=scores[:n])
        ds = torch.ops.aten._softmax_backward_data.out(dp, p, -1, p.dtype, grad_input=dp)
        dq[part] = torch.bmm(ds, k[part]).mul_(scale)
        dk[part] = torch.bmm(ds.mT, q[part]).mul_(scale)
    return dq, dk, dv


@head_by_head_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like_heads(q), _empty_like_heads(k), _empty_like_heads(v)


head_by_head.register_autograd(
    lambda ctx, grad: head_by_head_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def _probabilities(q: Tensor, k: Tensor, scores: Tensor, out: Tensor) -> Tensor:
    torch.baddbmm(scores, q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5, out=scores)
    return torch.softmax(scores, -1, out=out)


def _parts(q: Tensor, k: Tensor) -> Iterator[tuple[tuple[slice, int], int]]:
    """((rows, head), number of rows) of parts with at most `SCORES` scores, or one row, each."""
    step = max(1, SCORES // (q.shape[2] * k.shape[2]))
    for start in range(0, len(q), step):
        rows = slice(start, min(start + step, len(q)))
        for head in range(q.shape[1]):
            yield (rows, head), rows.stop - rows.start


def _buffers(q: Tensor, k: Tensor, *, count: int) -> Tensor:
    rows = min(len(q), max(1, SCORES // (q.shape[2] * k.shape[2])))
    return q.new_empty(count, rows, q.shape[2], k.shape[2])


def _empty_like_heads(x: Tensor) -> Tensor:
    """[R, H, N, D], whose heads lie together for every token: joining them again is a view."""
    rows, heads, n, dim = x.shape
    return x.new_empty(rows, n, heads, dim).transpose(1, 2)

"""Pooling attention of MViTv2 (Li et al., CVPR 2022), and its parts on the way to Hiera.

    x [B, (1 +) U * L, C]: U boxes of L tokens, row-major inside; a class token first, where there
                           is one

A box is what pooling sees: the whole grid of a clip (U = 1), or a mask unit on its own. One that is
on its own is padded with zeros (paper Fig. 4d), the grid as published: zeros for convolutions,
nothing for max-pooling.

Parameter names and shapes are PySlowFast's.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.models.attention import attend
from hiera_video.models.blocks import NORM_EPS, Mlp, drop_path
from hiera_video.models.linear import Linear
from hiera_video.models.mvit_arguments import (
    KERNEL,
    POOL_EVERYWHERE,
    MViTTrunkArgs,
    PoolingBlockArgs,
)

Size = tuple[int, ...]


class Pool(nn.Module):
    """Pools every box: a depthwise convolution, the same for all heads, or the maximum.

    weight: [D, 1, *kernel] of a convolution, D the channels of a head.
    """

    def __init__(
        self,
        box: Sequence[int],
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
        cls_token: bool,
        overlap: bool,
        zero_pad: bool,
        channels: int | None = None,
    ):
        """channels: D of a convolution; None: the maximum. overlap: kernels reach beyond the
        stride, and the box is padded. zero_pad: with zeros, also for the maximum.
        """
        super().__init__()
        self.box = tuple(box)
        self.kernel = tuple(kernel)
        self.stride = tuple(stride)
        # As published, also where the stride is so long that kernels do not meet.
        self.padding = tuple(k // 2 if overlap else 0 for k in self.kernel)
        self.cls_token = cls_token
        self.overlap = overlap
        self.zero_pad = zero_pad
        if channels is None:
            self.weight = None
        else:
            conv: Any = nn.Conv2d if len(box) == 2 else nn.Conv3d
            self.weight = conv(channels, channels, self.kernel, groups=channels, bias=False).weight

    def forward(self, x: Tensor) -> Tensor:
        """[B, (1 +) U * L, C] -> [B, (1 +) U * L / stride, C]"""
        first = x[:, : int(self.cls_token)]
        x = x[:, int(self.cls_token) :]
        batch, _, channels = x.shape
        x = x.reshape(-1, *self.box, channels)
        x = self._overlapping(x) if self.overlap else self._disjoint_max(x)
        x = x.reshape(batch, -1, channels)
        return torch.cat([first, x], dim=1) if self.cls_token else x

    def _disjoint_max(self, x: Tensor) -> Tensor:
        """[R, *box, C] -> [R, *box / stride, C]"""
        for d, s in enumerate(self.stride):
            if s > 1:
                x = x.unflatten(1 + d, (-1, s)).amax(2 + d)
        return x

    def _overlapping(self, x: Tensor) -> Tensor:
        """[R, *box, C] -> [R, *box / stride, C]"""
        x = x.movedim(-1, 1)
        if len(self.box) == 3 and self.box[0] == 1:
            return self._of_one_time(x[:, :, 0])[:, :, None].movedim(1, -1)
        if self.weight is not None:
            x = self._convolved(x, self.weight, self.stride, self.padding)
        else:
            x = self._maximum(x, self.kernel, self.stride, self.padding)
        return x.movedim(1, -1)

    def _of_one_time(self, x: Tensor) -> Tensor:
        """[R, C, h, w]: in a box of a single time, all before and after it is padding."""
        kernel, stride, padding = self.kernel[1:], self.stride[1:], self.padding[1:]
        if self.weight is not None:
            middle = self.weight[:, :, self.kernel[0] // 2]
            return self._convolved(x, middle, stride, padding)
        x = self._maximum(x, kernel, stride, padding)
        return x.clamp(min=0) if self.zero_pad and self.kernel[0] > 1 else x

    def _convolved(self, x: Tensor, weight: Tensor, stride: Size, padding: Size) -> Tensor:
        """[R, C, *box], by one weight for all heads"""
        weight = weight.repeat(x.shape[1] // len(weight), *(1,) * (weight.ndim - 1))
        convolve: Any = F.conv2d if x.ndim == 4 else F.conv3d
        return convolve(x, weight, None, stride, padding, groups=len(weight))

    def _maximum(self, x: Tensor, kernel: Size, stride: Size, padding: Size) -> Tensor:
        if self.zero_pad:
            x = F.pad(x, [p for p in reversed(padding) for _ in range(2)])
            padding = (0,) * len(padding)
        pool = F.max_pool2d if x.ndim == 4 else F.max_pool3d
        return pool(x, kernel, stride, padding)


class PoolingAttention(nn.Module):
    """Multi-head attention whose queries, keys and values are pooled."""

    def __init__(self, block: PoolingBlockArgs, args: MViTTrunkArgs):
        super().__init__()
        self.heads = block.heads
        self.local = block.local
        self.cls_token = bool(args.cls_token)
        self.residual_pool = bool(args.residual_pool)
        self.box = block.box
        self.qkv = Linear(block.dim, 3 * block.dim_att)
        self.proj = Linear(block.dim_att, block.dim_att)
        width = block.dim_att // block.heads
        everywhere = POOL_EVERYWHERE[args.pool_everywhere or "none"]
        for name, stride in (("q", block.q_stride), ("k", block.kv_stride), ("v", block.kv_stride)):
            pool = norm = None
            if name in everywhere or math.prod(stride) > 1:
                pool = Pool(
                    block.box,
                    kernel=(KERNEL,) * len(stride) if args.pool_overlap else stride,
                    stride=stride,
                    cls_token=self.cls_token,
                    overlap=bool(args.pool_overlap),
                    zero_pad=args.in_units,
                    channels=width if args.pool_mode == "conv" else None,
                )
                norm = nn.LayerNorm(width, eps=NORM_EPS) if args.pool_mode == "conv" else None
            setattr(self, f"pool_{name}", pool)
            setattr(self, f"norm_{name}", norm)
        self.rel_pos = bool(args.rel_pos)
        if self.rel_pos:
            self._q_box = tuple(n // s for n, s in zip(block.box, block.q_stride))
            self._k_box = tuple(n // s for n, s in zip(block.box, block.kv_stride))
            for name, n in zip("thw"[-len(block.box) :], map(max, self._q_box, self._k_box)):
                table = nn.Parameter(torch.zeros(2 * n - 1, width))
                self.register_parameter(f"rel_pos_{name}", table)

    def forward(self, x: Tensor) -> Tensor:
        """[B, (1 +) U * L, C] -> [B, (1 +) U * L / q_stride, C_att]"""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = self._pooled(q, "q")
        rows = x.shape[0]
        if self.local:
            rows *= x.shape[1] // math.prod(self.box)
        queries = self._heads(q, rows)
        keys = self._heads(self._pooled(k, "k"), rows)
        values = self._heads(self._pooled(v, "v"), rows)
        if self.rel_pos:
            found = self._attend_with_distances(queries, keys, values)
        else:
            found = attend(queries, keys, values)
        found = found.transpose(1, 2).reshape(q.shape)
        if self.residual_pool:
            # The class token has none.
            residual = F.pad(q[:, 1:], (0, 0, 1, 0)) if self.cls_token else q
            found = found + residual
        return self.proj(found)

    def _pooled(self, x: Tensor, name: str) -> Tensor:
        pool = getattr(self, f"pool_{name}")
        if pool is None:
            return x
        norm = getattr(self, f"norm_{name}")
        x = pool(x)
        return x if norm is None else norm(x.unflatten(-1, (self.heads, -1))).flatten(-2)

    def _heads(self, x: Tensor, rows: int) -> Tensor:
        """[B, N, C] -> [rows, heads, tokens, C / heads]"""
        return x.reshape(rows, -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)

    def _attend_with_distances(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax of q k / sqrt(D) + q r, r of the distance along each dimension. [B, H, N, D]"""
        terms = self._distance_terms(q)
        # Traces (FLOP counts, torch.export) see the sum as it is written.
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            products = q @ k.mT / math.sqrt(q.shape[-1])
            return (products + self._bias(terms)).softmax(-1) @ v
        return attend_with_terms(q, k, v, torch.cat(terms, -1), torch.cat(self._ones(k), -1))

    def _distance_terms(self, q: Tensor) -> list[Tensor]:
        """q r of every place along each dimension: [B, H, N, places]. None for the class token."""
        first = int(self.cls_token)
        at = q[:, :, first:].unflatten(2, self._q_box)  # [B, H, (t,) h, w, D]
        terms = []
        for d, name in enumerate("thw"[-len(self._q_box) :]):
            table = getattr(self, f"rel_pos_{name}")
            near = table[distances(self._q_box[d], self._k_box[d], table.device)]  # [q, k, D]
            moved = at.movedim(2 + d, -2)  # this dimension's queries beside their channels
            term = torch.einsum("...qc,qkc->...qk", moved, near.to(q.dtype)).movedim(-2, 2 + d)
            terms.append(F.pad(term.flatten(2, -2), (0, 0, first, 0)))
        return terms

    def _bias(self, terms: list[Tensor]) -> Tensor:
        """[B, H, N, M]"""
        bias: Tensor | None = None
        for d, term in enumerate(terms):
            shape = [1] * len(self._k_box)
            shape[d] = self._k_box[d]
            place = torch.arange(self._k_box[d], device=term.device).view(shape)
            of_keys = term[..., place.expand(self._k_box).flatten()]
            bias = of_keys if bias is None else bias + of_keys
        assert bias is not None  # there is a dimension
        return F.pad(bias, (int(self.cls_token), 0))

    def _ones(self, k: Tensor) -> list[Tensor]:
        """Which place along each dimension is a key's: [M, places]. None is the class token's."""
        found = []
        for d, n in enumerate(self._k_box):
            shape = [1] * len(self._k_box)
            shape[d] = n
            one = torch.eye(n, device=k.device, dtype=k.dtype).view(*shape, n)
            ones = one.expand(*self._k_box, -1).flatten(0, -2)
            found.append(F.pad(ones, (0, 0, int(self.cls_token), 0)))
        return found


def attend_with_terms(q: Tensor, k: Tensor, v: Tensor, terms: Tensor, ones: Tensor) -> Tensor:
    """As attention with the bias terms ones^T, [B, H, N, D], without a matrix [N, M] of it.

    The bias is a product, too, so it is that of more channels, and the fused kernels, of which
    hardly any has a gradient of a bias, serve. terms [B, H, N, E], ones [M, E].
    """
    width, more = q.shape[-1], terms.shape[-1]
    # `attend` divides by the root of all channels, where that of the first ones is meant.
    total = width + more
    q = torch.cat([q * math.sqrt(total / width), terms * math.sqrt(total)], -1)
    k = torch.cat([k, ones.expand(*k.shape[:2], -1, -1)], -1)
    return attend(q, k, F.pad(v, (0, more)))[..., :width]


def distances(queries: int, keys: int, device: torch.device) -> Tensor:
    """int64 [queries, keys]: rows of a table of relative positions along one dimension.

    Both are spread over the same length, in steps of the finer one.
    """
    q_step = max(keys // queries, 1)
    k_step = max(queries // keys, 1)
    behind = torch.arange(keys, device=device) - (keys - 1)
    return torch.arange(queries, device=device)[:, None] * q_step - behind * k_step


class PoolingBlock(nn.Module):
    """Pre-norm transformer block with pooling attention; the skip path is max-pooled."""

    def __init__(self, block: PoolingBlockArgs, args: MViTTrunkArgs):
        super().__init__()
        self.dim_out = block.dim_out
        self.drop_path_rate = block.drop_path_rate
        self.norm1 = nn.LayerNorm(block.dim, eps=NORM_EPS)
        self.attn = PoolingAttention(block, args)
        self.norm2 = nn.LayerNorm(block.dim_att, eps=NORM_EPS)
        hidden = int(block.dim_att * args.mlp_ratio)
        self.mlp = Mlp(block.dim_att, hidden, block.dim_out)
        self.widens_in_attention = block.dim != block.dim_att
        changes = block.dim != block.dim_out
        self.proj = Linear(block.dim, block.dim_out) if changes else None
        self.pool_skip = None
        if math.prod(block.q_stride) > 1:
            kernel = [s + 1 if s > 1 else s for s in block.q_stride]
            self.pool_skip = Pool(
                block.box,
                kernel=kernel if args.pool_overlap else block.q_stride,
                stride=block.q_stride,
                cls_token=bool(args.cls_token),
                overlap=bool(args.pool_overlap),
                zero_pad=args.in_units,
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, (1 +) U * L, C] -> [B, (1 +) U * L / q_stride, C_out]"""
        normed = self.norm1(x)
        if self.proj is not None and self.widens_in_attention:
            x = self.proj(normed)
        if self.pool_skip is not None:
            x = self.pool_skip(x)
        x = x + drop_path(self.attn(normed), self.drop_path_rate, self.training)
        normed = self.norm2(x)
        if self.proj is not None and not self.widens_in_attention:
            x = self.proj(normed)
        return x + drop_path(self.mlp(normed), self.drop_path_rate, self.training)

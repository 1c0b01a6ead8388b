"""Transformer blocks on unit-major tokens: a Hiera's, a plain ViT's, and those of decoders.

    x [B, U, L, C]: U mask units (all, or only the visible ones), L tokens of a unit, C channels

Parameter names and shapes are those of the official release.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiera_video.models.arguments import BlockArgs
from hiera_video.models.attention import attend
from hiera_video.models.linear import Linear

NORM_EPS = 1e-6


def max_pool(x: Tensor, stride: int) -> Tensor:
    """[B, U, L, C] -> [B, U, L / stride, C]: max over the finest pooling offset.

    That offset is outermost inside a unit, so the reads are contiguous.
    """
    return x.unflatten(2, (stride, -1)).amax(2) if stride > 1 else x


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: drops whole samples of a branch with probability `rate`.

    The others are rescaled, so that the mean stays.
    """
    if rate == 0.0 or not training:
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    kept = torch.empty(shape, device=x.device, dtype=x.dtype).bernoulli_(1 - rate)
    return x * kept / (1 - rate)


class Attention(nn.Module):
    """Multi-head attention inside each unit (`local`) or over all tokens.

    pool: so many queries are max-pooled into one.
    """

    def __init__(self, dim: int, dim_out: int, *, heads: int, pool: int = 1, local: bool = False):
        super().__init__()
        self.heads = heads
        self.pool = pool
        self.local = local
        self.qkv = Linear(dim, 3 * dim_out)
        self.proj = Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, U, L, C] -> [B, U, L / pool, C_out]"""
        batch, units = x.shape[:2]
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = max_pool(q, self.pool)
        # Windows fold into the batch as a view.
        rows = batch * units if self.local else batch
        x = attend(self._heads(q, rows), self._heads(k, rows), self._heads(v, rows))
        return self.proj(x.transpose(1, 2).reshape(batch, units, -1, self.proj.in_features))

    def _heads(self, x: Tensor, rows: int) -> Tensor:
        """[B, U, L, C] -> [rows, heads, tokens, C / heads]"""
        return x.reshape(rows, -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, dim_out: int | None = None):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim if dim_out is None else dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block.

    One that changes the width projects (and pools) its normed input for the skip path.
    """

    def __init__(self, args: BlockArgs, *, mlp_ratio: float = 4.0):
        super().__init__()
        self.pool = args.pool
        self.dim_out = args.dim_out
        self.drop_path_rate = args.drop_path_rate
        self.norm1 = nn.LayerNorm(args.dim, eps=NORM_EPS)
        self.attn = Attention(
            args.dim, args.dim_out, heads=args.heads, pool=args.pool, local=args.local
        )
        self.norm2 = nn.LayerNorm(args.dim_out, eps=NORM_EPS)
        self.mlp = Mlp(args.dim_out, int(args.dim_out * mlp_ratio))
        changes = args.dim != args.dim_out or args.pool > 1
        self.proj = Linear(args.dim, args.dim_out) if changes and args.expand_proj else None
        self.doubles = not args.expand_proj

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        if self.proj is not None:
            x = max_pool(self.proj(normed), self.pool)
        elif self.doubles:
            x = x.unflatten(2, (self.pool, -1))
            x = torch.cat([x.amax(2), x.mean(2)], dim=-1)
        x = x + drop_path(self.attn(normed), self.drop_path_rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path_rate, self.training)


def run_block(block: nn.Module, x: Tensor, *, recompute: bool) -> Tensor:
    """The block's output. recompute: keep its input only, and run it again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False)
    return block(x)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x [B, N, C], index [B, H] -> [B, H, C]"""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))

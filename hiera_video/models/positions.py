"""Position tables of a trunk: which there are, and what they add up to.

    joint     pos_embed [1, N, C], one of every place
    separate  pos_embed_spatial [1, h w, C] + pos_embed_temporal [1, t, C] (Hiera on video, App. A)
    window    pos_embed_win [1, C, h, w] of a mask unit, repeated, + pos_embed [1, C, h, w] of the
              whole, interpolated (+ pos_embed_temporal): fits every resolution
    sincos    waves that are not learned (VideoMAE)
    none      relative positions stand in the blocks (MViTv2)

A class token has a place of its own in the learned ones, pos_embed_class [1, 1, C].

Legend: N = t h w places of a clip, row-major, C channels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

AMPLITUDE = 0.5
WAVE_BASE = 10_000


def table_shapes(
    kind: str,
    grid: Sequence[int],
    channels: int,
    *,
    cls_token: bool = False,
    unit: Sequence[int] = (),
    global_size: Sequence[int] = (),
) -> dict[str, tuple[int, ...]]:
    """The learned tables by name. unit, global_size: of `window`, in tokens."""
    shapes: dict[str, tuple[int, ...]] = {}
    if kind == "joint":
        shapes["pos_embed"] = (1, math.prod(grid), channels)
    elif kind == "separate":
        shapes["pos_embed_spatial"] = (1, math.prod(grid[-2:]), channels)
        shapes["pos_embed_temporal"] = (1, grid[0], channels)
    elif kind == "window":
        shapes["pos_embed"] = (1, channels, *global_size)
        shapes["pos_embed_win"] = (1, channels, *unit[-2:])
        if len(grid) == 3:
            shapes["pos_embed_temporal"] = (1, grid[0], channels)
    if cls_token and kind in ("joint", "separate"):
        shapes["pos_embed_class"] = (1, 1, channels)
    return shapes


def separate_table(spatial: Tensor, temporal: Tensor) -> Tensor:
    """[1, h w, C], [1, t, C] -> [t h w, C]"""
    return (temporal[0][:, None] + spatial[0]).flatten(0, 1)


def window_table(whole: Tensor, window: Tensor, grid: Sequence[int]) -> Tensor:
    """[1, C, h, w] of the whole and of a window -> [h w, C] of a grid that windows tile."""
    repeats = [n // m for n, m in zip(grid, window.shape[2:])]
    # In float32: a processor has no such kernel of bfloat16.
    spread = F.interpolate(whole.float(), size=tuple(grid), mode="bicubic", antialias=True)
    return (spread.to(window.dtype) + window.tile(repeats))[0].flatten(1).t()


def sincos_table(places: int, channels: int) -> Tensor:
    """[places, channels], by the number of the place: sine and cosine in turns."""
    channel = torch.arange(channels, dtype=torch.float64)
    length = WAVE_BASE ** (2 * (channel // 2) / channels)
    angle = torch.arange(places, dtype=torch.float64)[:, None] / length
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def waves(grid: Sequence[int], channels: int) -> Tensor:
    """[places of the grid, channels], places row-major: half sines, half cosines.

    What learned tables may begin as. Random ones say nothing of which places lie beside each other;
    a short pretraining spends its first steps on finding that out, and little else is learned until
    then. Waves of Vaswani et al. (2017) say it from the start, here with lengths that fit the grid:
    from four places to four times the axis. Every axis longer than 1 has an equal share of the
    channels; what is left over is zero.
    """
    axes = [axis for axis, n in enumerate(grid) if n > 1]
    table = torch.zeros(*grid, channels)
    count = channels // (2 * max(1, len(axes)))  # wave lengths of an axis
    for turn, axis in enumerate(axes):
        n = grid[axis]
        length = 4 * n ** torch.linspace(0, 1, count)
        angle = 2 * math.pi * torch.arange(n)[:, None] / length  # [n, count]
        shape = [n if a == axis else 1 for a in range(len(grid))]
        wave = torch.cat([angle.sin(), angle.cos()], 1).view(*shape, 2 * count)
        first = turn * 2 * count
        table[..., first : first + 2 * count] = wave
    return AMPLITUDE * table.view(-1, channels)

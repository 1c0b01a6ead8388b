"""Token order: which token of a clip lies where. Index arithmetic for any number of dimensions.

A clip is cut into a grid of tokens and the grid into mask units (a box of tokens that is hidden or
shown as a whole). Two orders are used:

    spatial      [B, t, h, w, C]   row-major over the grid; what people and convolutions expect
    unit-major   [B, U, L, C]      unit by unit (row-major), then the L tokens of a unit, the finest
                                   pooling offset first

Inside a unit, a coordinate is written in the digits of the pooling strides, least significant digit
outermost. For an 8 x 8 unit pooled three times by 2 x 2, with y = 4 y2 + 2 y1 + y0:

    L = (y0, x0), (y1, x1), (y2, x2)      each pair row-major; the first pooling takes the first

so that pooling is `x.view(B, U, 4, L / 4, C).amax(2)`, a window is one row [L, C], and hiding units
is a row gather.

Legend: B batch, U units, L tokens of a unit, C channels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Size = Sequence[int]


def units_of(grid: Size, unit: Size) -> tuple[int, ...]:
    """Number of mask units along each dimension."""
    return tuple(g // u for g, u in zip(grid, unit))


def pooled(size: Size, stride: Size, times: int = 1) -> tuple[int, ...]:
    """`size` after pooling by `stride` so many times."""
    return tuple(n // s**times for n, s in zip(size, stride))


def to_units(x: Tensor, unit: Size, stride: Size, pools: int) -> Tensor:
    """Spatial [B, *grid, C] -> unit-major [B, U, L, C].

    pools: poolings by `stride` that lie ahead of these tokens.
    """
    grid = x.shape[1:-1]
    ndim = len(unit)
    digits = _digits(grid, unit, stride, pools)
    # Every dimension is split into its digits.
    x = x.reshape(x.shape[0], *sum(digits, ()), x.shape[-1])
    return x.permute(_order(ndim, pools)).reshape(
        x.shape[0], math.prod(units_of(grid, unit)), math.prod(unit), -1
    )


def to_spatial(x: Tensor, grid: Size, unit: Size, stride: Size, pools: int) -> Tensor:
    """Unit-major [B, U, L, C] -> spatial [B, *grid, C]; the inverse of `to_units`."""
    ndim = len(unit)
    digits = _digits(grid, unit, stride, pools)
    order = _order(ndim, pools)
    flat = (x.shape[0], *sum(digits, ()), x.shape[-1])
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return (
        x.reshape([flat[i] for i in order]).permute(inverse).reshape(x.shape[0], *grid, x.shape[-1])
    )


def unit_index(grid: Size, unit: Size, stride: Size, pools: int) -> Tensor:
    """int64 [U, L]: the spatial (row-major) position of every token in unit-major order."""
    position = torch.arange(math.prod(grid)).view(1, *grid, 1)
    return to_units(position, unit, stride, pools)[0, :, :, 0]


def _digits(grid: Size, unit: Size, stride: Size, pools: int) -> list[tuple[int, ...]]:
    """The digits of each dimension: units, what pooling leaves of a unit, last to first pooling."""
    return [(g // u, u // s**pools) + (s,) * pools for g, u, s in zip(grid, unit, stride)]


def _order(ndim: int, pools: int) -> list[int]:
    """Axes of the split tensor [B, (units, rest, digits..) per dimension, C], unit-major."""
    per_dim = 2 + pools

    def axes(k: int) -> list[int]:  # the k-th digit of every dimension
        return [1 + d * per_dim + k for d in range(ndim)]

    first_to_last_pooling = [axes(2 + pools - 1 - p) for p in range(pools)]
    return [0] + axes(0) + sum(first_to_last_pooling, []) + axes(1) + [1 + ndim * per_dim]

"""Position tables that begin as waves.

Random tables say nothing of which places lie beside each other; a short pretraining spends its
first steps on finding that out, and little else is learned until then. Waves of Vaswani et al.
(2017) say it from the start, here with lengths that fit the grid: from four places to four times
the axis. The table is learned from there; its layout is the same.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

AMPLITUDE = 0.5


def waves(grid: Sequence[int], channels: int) -> Tensor:
    """[places of the grid, channels], places row-major: half sines, half cosines.

    Every axis longer than 1 has an equal share of the channels; what is left over is zero.
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

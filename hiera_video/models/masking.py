"""Which units are hidden, and which of the hidden patches are predicted: decided by noise.

Legend: B clips, U mask units, V visible ones, N patches of a clip, H the hidden ones.
"""

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

CELL = 4  # patches of a running cell, 2 x 2


def draw_visible(noise: Tensor, mask_ratio: float) -> Tensor:
    """noise [B, U] -> int64 [B, V]: the units of lowest noise, sorted.

    V = int(U * (1 - mask_ratio)). Raises ValueError for a ratio of no use.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio={mask_ratio} must be at least 0 and less than 1")
    # A plain number while torch.compile traces with dynamic shapes, too: it decides the shape of
    # all that follows.
    count = operator.index(int(noise.shape[1] * (1 - mask_ratio)))
    if count < 1:
        raise ValueError(
            f"mask_ratio={mask_ratio} leaves none of the {noise.shape[1]} mask units visible"
        )
    return noise.argsort(dim=1)[:, :count].sort(dim=1).values


def draw_tubes(noise: Tensor, mask_ratio: float, times: int) -> Tensor:
    """noise [B, U / times] -> int64 [B, V]: at all times the same places, those of lowest noise.

    int(ratio * places) of them are hidden (VideoMAE). Raises ValueError for a ratio of no use.
    """
    places = operator.index(int(noise.shape[1]))
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio={mask_ratio} must be at least 0 and less than 1")
    shown = noise.argsort(dim=1)[:, : places - int(mask_ratio * places)].sort(dim=1).values
    time = torch.arange(times, device=noise.device)[:, None] * places
    return (shown[:, None] + time).flatten(1)  # [B, times * shown], ascending


def draw_predicted(hidden: Tensor, share: float, noise: Tensor) -> Tensor:
    """Of the patches `hidden` [B, H], those of lowest noise [B, N]: int64 [B, share * H], sorted.

    Raises ValueError for a share of no use.
    """
    if not 0 < share <= 1:
        raise ValueError(f"decoder_keep={share} must be above 0 and at most 1")
    count = max(1, round(share * operator.index(int(hidden.shape[1]))))
    order = noise.gather(1, hidden).argsort(dim=1)[:, :count]
    return hidden.gather(1, order).sort(dim=1).values


def running_cells(noise: Tensor, phase: Tensor, *, share: float, grid: Sequence[int]) -> Tensor:
    """Noise [B, N] that prefers the running cells of VideoMAE V2: [B, N].

    In every cell of 2 x 2 patches the same places are preferred, and from frame to frame they run
    on by one, so that all places have their turn. phase: int64 [B], where they begin, 0 to 3;
    grid: patches along (t,) h, w.
    """
    frames, height, width = (1, *grid)[-3:]
    t = torch.arange(frames, device=noise.device)[:, None, None]
    y = torch.arange(height, device=noise.device)[:, None]
    x = torch.arange(width, device=noise.device)
    place = (2 * (y % 2) + x % 2 - t).flatten()  # [N]
    outside = (place - phase[:, None]) % CELL >= math.ceil(CELL * share)
    return noise + outside

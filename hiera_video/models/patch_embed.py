"""Patch embedding of a Hiera, of a whole clip or of its visible mask units alone.

Legend: B clips, V visible units of a clip, C channels; sizes are (t, h, w), or (h, w) for images.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """One token for each `stride` box of pixels, from an overlapping `kernel` box."""

    def __init__(
        self,
        in_chans: int,
        dim: int,
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
    ):
        super().__init__()
        conv: Any = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
        self.proj = conv(in_chans, dim, tuple(kernel), tuple(stride), tuple(padding))

    def forward(self, clip: Tensor) -> Tensor:
        return self.proj(clip).movedim(1, -1)  # [B, (t,) h, w, C]

    def visible_units(
        self,
        clip: Tensor,
        keep: Tensor | None,
        visible: Tensor,
        *,
        unit: Sequence[int],
        units: Sequence[int],
    ) -> Tensor:
        """Tokens of the visible units only, [B * V, *unit, C], as if all hidden pixels were zero.

        Exactly the plain convolution over the zeroed clip, but each visible unit is convolved on
        its own pixels and their halo. The halo lies before the unit (padding), hardly behind it
        (kernel - stride - padding).

        keep: bool [B, U]; None: no pixels are zeroed. visible: int64 [B, V], the units to embed,
        row-major; unit: tokens of a unit; units: their grid.
        """
        conv: Any = self.proj
        ndim = len(unit)
        # Pixels of a unit, and of a unit with its halo.
        box = [u * s for u, s in zip(unit, conv.stride)]
        window = [(u - 1) * s + k for u, s, k in zip(unit, conv.stride, conv.kernel_size)]
        pixels = clip if keep is None else zero_hidden(clip, keep, units)
        behind = [max(w - b - p, 0) for w, b, p in zip(window, box, conv.padding)]
        # F.pad wants pairs of (before, behind), the last dimension first.
        padding: list[int] = []
        for pair in reversed(list(zip(conv.padding, behind))):
            padding += pair
        pixels = F.pad(pixels, padding)
        for d in range(ndim):
            pixels = pixels.unfold(2 + d, window[d], box[d])  # [B, C, *units, *window], a view
        pixels = pixels.movedim(1, 1 + ndim)  # [B, *units, C, *window]
        # The place of each visible unit along every dimension.
        position: list[Tensor] = []
        rest = visible
        for n in reversed(units):
            position.insert(0, rest % n)
            rest = rest // n
        rows = torch.arange(len(clip), device=clip.device)[:, None].expand_as(visible)
        windows = pixels[(rows, *position)].flatten(0, 1)  # [B * V, C, *window]
        convolve = F.conv2d if ndim == 2 else F.conv3d
        tokens = convolve(windows, conv.weight, conv.bias, conv.stride)
        return tokens.movedim(1, -1)  # [B * V, *unit, C]


def zero_hidden(clip: Tensor, keep: Tensor, units: Sequence[int]) -> Tensor:
    """The clip with the pixels of hidden units at zero. keep: bool [B, U], units: their grid."""
    keep = keep.unflatten(1, tuple(units))
    for d, n in enumerate(units):
        keep = keep.repeat_interleave(clip.shape[2 + d] // n, dim=1 + d)  # [B, (T,) H, W]
    return clip * keep[:, None]

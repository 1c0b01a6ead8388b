"""What a masked autoencoder predicts of a hidden patch.

    pixel           of the first frame of every token, normalised patch by patch (Hiera)
    pixel_mae_st    the same of frames that are spread from the first to the last (MAE-ST)
    pixel_videomae  of all frames of the token, normalised patch by patch and channel by channel
    hog             histograms of oriented gradients of the first frame (MaskFeat; paper Table 3c)

Legend: B clips, N patches of a clip in the order (t, h, w), P numbers of a patch.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PIXEL_EPS = 1e-6
HOG_BINS = 9  # of half a turn
HOG_CELL = 8  # pixels


@dataclass(frozen=True)
class Target:
    """size: pixels along the side of a patch. stride: of the patch embedding, (t,) h, w."""

    kind: str
    size: int
    stride: tuple[int, ...]
    in_chans: int

    @property
    def width(self) -> int:
        """P"""
        if self.kind == "hog":
            return self.in_chans * HOG_BINS * (self.size // self._cell) ** 2
        frames = self.stride[0] if self.kind == "pixel_videomae" else 1
        return frames * self.size**2 * self.in_chans

    def patches(self, clip: Tensor) -> Tensor:
        """Clip [B, 3, (T,) H, W] -> [B, N, P]

        Pixels are ordered ((t,) y, x, channel), those of images (channel, y, x): what the released
        weights were trained with.
        """
        if self.kind == "hog":
            return self._histograms(clip)
        if clip.ndim == 4:
            patches = clip.unfold(2, self.size, self.size).unfold(3, self.size, self.size)
            return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        frames = 1
        if self.kind == "pixel_videomae":
            frames = self.stride[0]
        else:
            clip = self._chosen_frames(clip)
        patches = clip.unfold(2, frames, frames)
        patches = patches.unfold(3, self.size, self.size).unfold(4, self.size, self.size)
        # [B, 3, t, h, w, frame, y, x]
        return patches.permute(0, 2, 3, 4, 5, 6, 7, 1).flatten(4).flatten(1, 3)

    def normalised(self, patches: Tensor) -> Tensor:
        """[.., P], float32; zero mean and unit (unbiased) variance, but for `hog`."""
        if self.kind == "hog":
            return patches
        level, spread = self.statistics(patches)
        return (patches - level) / spread

    def statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each patch of pixels, [.., 1] or [.., P]."""
        if self.kind != "pixel_videomae":
            var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
            return mean, (var + PIXEL_EPS).sqrt()
        pixels = patches.unflatten(-1, (-1, self.in_chans))
        var, mean = torch.var_mean(pixels, dim=-2, keepdim=True)
        spread = var.sqrt() + PIXEL_EPS
        return mean.expand_as(pixels).flatten(-2), spread.expand_as(pixels).flatten(-2)

    def _chosen_frames(self, clip: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> [B, 3, t, H, W], one of every token"""
        if self.kind != "pixel_mae_st":
            return clip[:, :, :: self.stride[0]]
        frames = clip.shape[2]
        index = torch.linspace(0, frames - 1, frames // self.stride[0], device=clip.device)
        return clip.index_select(2, index.long())

    @property
    def _cell(self) -> int:
        return math.gcd(HOG_CELL, self.size)

    def _histograms(self, clip: Tensor) -> Tensor:
        """[B, N, P], of a patch its cells row by row, of each (channel, bin)."""
        is_video = clip.ndim == 5
        frames = self._chosen_frames(clip).transpose(1, 2) if is_video else clip[:, None]
        cells = hog(frames.flatten(0, 1).float(), cell=self._cell)  # [B t, 3, bins, h', w']
        side = self.size // self._cell
        cells = cells.unfold(3, side, side).unfold(4, side, side)  # [B t, 3, bins, h, w, y, x]
        patches = cells.permute(0, 3, 4, 5, 6, 1, 2).flatten(3)  # [B t, h, w, P]
        return patches.reshape(len(clip), -1, patches.shape[-1])


def hog(images: Tensor, *, cell: int = HOG_CELL, bins: int = HOG_BINS) -> Tensor:
    """Histograms of oriented gradients of every channel: [B, C, H, W] -> [B, C, bins, H/, W/].

    Gradients by Sobel's kernels; a pixel counts by their length for the bin of their direction,
    whose sign is left out; the bins of a cell have unit length. PySlowFast's parameters. In float32
    also under autocast.
    """
    with torch.autocast(images.device.type, enabled=False):
        return _hog(images, cell, bins)


def _hog(images: Tensor, cell: int, bins: int) -> Tensor:
    channels = images.shape[1]
    step = images.new_tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    kernels = torch.stack([step, step.t()])[:, None].repeat(channels, 1, 1, 1)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    gradients = F.conv2d(padded, kernels, groups=channels)
    along_x, along_y = gradients.unflatten(1, (channels, 2)).unbind(2)  # [B, C, H, W] each
    length = torch.hypot(along_x, along_y)
    turn = torch.atan2(along_x, along_y) / math.pi * bins  # -bins to bins
    which = turn.floor().long() % bins
    counts = length.new_zeros(*length.shape[:2], bins, *length.shape[2:])
    counts.scatter_(2, which[:, :, None], length[:, :, None])
    cells = counts.unfold(3, cell, cell).unfold(4, cell, cell).sum((-1, -2))
    return F.normalize(cells, dim=2)

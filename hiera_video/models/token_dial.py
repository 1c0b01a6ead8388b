"""The token dial: a classifier that computes a share of a clip's mask units, for less cost.

Pretraining has shown the encoder clips with units missing; so may fine-tuning, and testing. Units
that are left out are not read, but the kept ones see their neighbours' pixels as always, so their
stages 1 and 2 are those of the whole clip. With all units kept the result is that of the plain
model, to the bit.

Legend: B clips, U mask units, K kept ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.models.trunk import Trunk

KEEP_BY = ("random", "motion")


def has_dial(name: str) -> bool:
    """Whether the named model can leave units out. An MViTv2 may see a clip as a whole."""
    return name.removeprefix("mae_").startswith(("hiera_", "vit_"))


@dataclass(frozen=True)
class TokenDial:
    """share: of the mask units that are computed. by: which ones, `random` or `motion`.

    Random units are drawn by each clip's seed. Motion takes the units whose pixels change most from
    frame to frame.
    """

    share: float = 1.0
    by: str = "random"

    def choose(self, model: Trunk, clip: Tensor, seeds: Sequence[int]) -> Tensor | None:
        """The units to compute, int64 [B, K], row-major and sorted; None for all of them.

        clip: normalised, [B, 3, T, H, W]; seeds: one a clip.
        """
        if self.share == 1.0:
            return None
        if self.by == "random":
            scores = noise_of(seeds, model.num_units).to(clip.device, non_blocking=True)
        else:
            scores = motion_of_units(clip, model.units)
        count = max(1, round(self.share * model.num_units))
        order = scores.argsort(dim=1, descending=True, stable=True)
        return order[:, :count].sort(dim=1).values


def noise_of(seeds: Sequence[int], count: int) -> Tensor:
    """One uniform draw of each seed: float32 [B, count]."""
    generator = torch.Generator()
    draws = [torch.rand(count, generator=generator.manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


def motion_of_units(clip: Tensor, units: Sequence[int]) -> Tensor:
    """How much the pixels of each unit change from frame to frame: float32 [B, U].

    The mean absolute difference of its frames to the ones before; the first frame has none before
    it and is taken to change as the second does.

    clip [B, C, T, H, W], at least 2 frames; units: their grid (t, h, w).
    """
    change = (clip[:, :, 1:] - clip[:, :, :-1]).float().abs().mean(1)  # [B, T - 1, H, W]
    change = torch.cat([change[:, :1], change], dim=1)
    size = [n // u for n, u in zip(change.shape[1:], units)]
    blocks = F.avg_pool3d(change[:, None], size)  # [B, 1, t, h, w]
    return blocks.reshape(len(clip), math.prod(units))

"""A classifier on a trunk: pooled tokens, norm, linear."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.models.arguments import HeadArgs
from hiera_video.models.blocks import NORM_EPS
from hiera_video.models.linear import Linear
from hiera_video.models.trunk import Trunk


class Classifier(Trunk):
    """`forward` gives logits in train and eval alike (the official one gives softmax in eval)."""

    def __init__(self, args: HeadArgs):
        super().__init__(args)
        self.head_pool = args.head_pool
        self.norm = nn.LayerNorm(self.stage_dims[-1], eps=NORM_EPS)
        self.times = self.units[0] if args.head_pool == "time" else 1  # that the head tells apart
        width = self.times * self.stage_dims[-1]
        self.head = Head(width, args.num_classes, args.head_dropout)
        self._init_weights(args.head_init_scale, args.pos_init)

    def forward(self, clip: Tensor, units: Tensor | None = None) -> Tensor:
        """Normalised clip [B, 3, (T,) H, W] -> logits [B, num_classes].

        units: int64 [B, K], the mask units that are computed (token_dial.py); None: all.
        """
        return self.head(self.features(clip, units))

    def features(self, clip: Tensor, units: Tensor | None = None) -> Tensor:
        """The vector that the classifier reads: mean over tokens, then norm. [B, dim]

        With `head_pool` "time", means of every time, each of them normed: [B, T * dim]; with "cls",
        the class token; with "norm_mean", norm, then mean.
        """
        x = self.embed(clip) if units is None else self.embed_visible(clip, None, units)
        ends, token = self.encode_with_class(x, last=True)
        return self._pooled(ends[-1], token, units)

    def feature_maps(self, clip: Tensor) -> list[Tensor]:
        """One map a stage, in spatial order: [B, (t,) h, w, C]."""
        return self.features_and_maps(clip)[1]

    def features_and_maps(self, clip: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Both of the above from one pass."""
        ends, token = self.encode_with_class(self.embed(clip))
        maps = [self.stage_map(x, stage) for stage, x in enumerate(ends)]
        return self._pooled(ends[-1], token, None), maps

    def _pooled(self, x: Tensor, token: Tensor | None, units: Tensor | None) -> Tensor:
        """Tokens [B, U, L, C] at the end, of the units [B, U] or of all -> [B, times * dim]"""
        if self.head_pool == "cls":
            return self.norm(token)
        if self.head_pool == "norm_mean":
            return self.norm(x).mean(dim=(1, 2))
        if self.times == 1:
            return self.norm(x.mean(dim=(1, 2)))
        if units is None:
            return self.norm(x.unflatten(1, (self.times, -1)).mean((2, 3))).flatten(1)
        time = units // (self.num_units // self.times)
        share = F.one_hot(time, self.times).mT.to(x.dtype)  # [B, T, U]
        share = share / share.sum(2, keepdim=True).clamp(min=1)  # a time may have no unit left
        return self.norm(share @ x.mean(2)).flatten(1)

    @torch.no_grad()
    def _init_weights(self, head_init_scale: float, pos_init: str) -> None:
        # As Hiera's and PySlowFast's: biases of linear and norm layers start at 0.02, and the head
        # is scaled down, its bias too.
        self._draw_tables()
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                nn.init.constant_(module.bias, 0.02)
        self.head.projection.weight.mul_(head_init_scale)
        self.head.projection.bias.mul_(head_init_scale)
        self._init_positions(pos_init)


class Head(nn.Module):
    def __init__(self, dim: int, num_classes: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.dropout(x))

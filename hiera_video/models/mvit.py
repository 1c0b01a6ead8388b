"""MViTv2 (Li et al., CVPR 2022), its masked autoencoder, and its steps to Hiera (paper Table 1).

Structure: as Hiera (hiera.py), whose ancestor it is; but all queries, keys and values are pooled by
convolutions, keys and values to far fewer in the early stages, positions are relative, and pooled
queries are added to what attention finds. `step` takes these away one by one; after the last, f, it
computes what Hiera does, with the same parameters.

Masked autoencoding of it (paper Fig. 4): hidden units are replaced by a learned token (`masking`
"tokens", c), or deleted, and the others pooled one by one, padded ("separate", d). Where kernels do
not overlap any more, from step d on, nothing has to be padded ("delete", b and e).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.models import tokens
from hiera_video.models.arguments import TrunkArgs
from hiera_video.models.classifier import Classifier
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.models.mvit_arguments import (
    MViTArgs,
    MViTMAEArgs,
    MViTTrunkArgs,
    pooling_blocks,
)
from hiera_video.models.pooling import Pool, PoolingBlock
from hiera_video.models.trunk import Trunk


class PoolingTrunk(Trunk):
    """A trunk of pooling blocks; outside of them tokens are unit-major, as everywhere."""

    def _make_blocks(self, args: TrunkArgs) -> Sequence[PoolingBlock]:
        assert isinstance(args, MViTTrunkArgs)  # of the subclasses
        self.in_units = args.in_units
        for stage in range(len(args.stages)):
            # Where the tokens of a unit, row by row, stand in the order of all others.
            unit = self._unit_at(stage)
            order = tokens.unit_index(unit, unit, *self._order(stage))[0]
            self.register_buffer(f"order_{stage}", order, persistent=False)
        return [PoolingBlock(block, args) for block in pooling_blocks(args)]

    def _enter(self, x: Tensor) -> Tensor:
        """[B, U, L, C] -> boxes [B, (1 +) U * L, C]"""
        if self.in_units:
            x = x[:, :, self.get_buffer("order_0").argsort()].flatten(1, 2)
        elif x.shape[1] != self.num_units:
            raise ValueError(
                "separate=False: pooling sees the whole clip, so no unit can be left out"
            )
        else:
            x = tokens.to_spatial(x, self.grid, self.mask_unit_size, *self._order(0)).flatten(1, -2)
        return x if self.cls_token is None else self._with_class(x)

    def _leave(self, x: Tensor, stage: int) -> Tensor:
        """Boxes [B, (1 +) U * L, C] -> [B, U, L, C]"""
        if self.cls_token is not None:
            x = x[:, 1:]
        unit = self._unit_at(stage)
        if not self.in_units:
            x = x.unflatten(1, self._grid_at(stage))
            return tokens.to_units(x, unit, *self._order(stage))
        return x.unflatten(1, (-1, math.prod(unit)))[:, :, self.get_buffer(f"order_{stage}")]

    def _order(self, stage: int) -> tuple[Sequence[int], int]:
        """(stride, poolings that lie ahead) of the tokens at the end of `stage`."""
        return self.q_stride, self.q_pool - self._pools_before(stage)

    def _draw_tables(self) -> None:
        super()._draw_tables()
        for name, parameter in self.named_parameters():
            if ".rel_pos_" in name:
                nn.init.trunc_normal_(parameter, std=0.02)

    def no_weight_decay(self) -> list[str]:
        names = [name for name, _ in self.named_parameters() if ".rel_pos_" in name]
        return super().no_weight_decay() + names


class MViT(PoolingTrunk, Classifier):
    """Arguments: MViTArgs, by keyword. Raises ValueError."""

    def __init__(self, **arguments: Any):
        super().__init__(MViTArgs(**arguments))

    @torch.no_grad()
    def _init_weights(self, head_init_scale: float, pos_init: str) -> None:
        super()._init_weights(head_init_scale, pos_init)
        for module in self.modules():
            if isinstance(module, Pool) and module.weight is not None:
                nn.init.trunc_normal_(module.weight, std=0.02)


class MViTAutoencoder(PoolingTrunk, MaskedAutoencoder):
    """Arguments: MViTMAEArgs, by keyword. Raises ValueError."""

    arguments = MViTMAEArgs

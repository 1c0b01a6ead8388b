"""What all models here share: the embeddings of a clip, and the blocks in their stages.

Tokens are unit-major throughout (see tokens.py):

    clip  [B, 3, T, H, W], or [B, 3, H, W] for images
    x     [B, U, L, C]: U mask units (all, or only the visible ones), L tokens of a unit, C channels
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.models import tokens
from hiera_video.models.arguments import TrunkArgs, block_arguments
from hiera_video.models.blocks import Block, run_block
from hiera_video.models.patch_embed import PatchEmbed
from hiera_video.models.positions import (
    separate_table,
    sincos_table,
    table_shapes,
    waves,
    window_table,
)

STAND_INS = ("cls_token", "mask_token", "decoder_cls_token")


class Trunk(nn.Module):
    """Patch embedding, positions and blocks. Its own blocks are those of Hiera and of a plain ViT.

    A class token (`cls_token`) is a token of no unit, in front of all others.
    """

    unit_index: Tensor  # int64 [U, L]: the spatial position of every token
    pos_embed: Tensor
    pos_embed_spatial: Tensor
    pos_embed_temporal: Tensor
    pos_embed_win: Tensor
    pos_embed_class: Tensor
    decoder_stages: tuple[int, ...] = ()  # that `recompute` knows beside the encoder's

    def __init__(self, args: TrunkArgs):
        super().__init__()
        self.args = args
        self.input_size = tuple(args.input_size)
        self.in_chans = args.in_chans
        self.patch_stride = tuple(args.patch_stride)
        self.q_stride = tuple(args.q_stride)
        self.q_pool = args.q_pool
        self.mask_unit_size = tuple(args.mask_unit_size)  # tokens of a unit before any pooling
        self.grid = args.grid
        self.units = args.units
        self.num_units = math.prod(self.units)
        self.stage_ends = args.stage_ends
        # Stages whose activations are computed again in the backward pass: 1 to 4; 5: a decoder's.
        self.recompute_stages: tuple[int, ...] = ()
        self.frozen_blocks = 0

        self.patch_embed = PatchEmbed(
            args.in_chans,
            args.embed_dim,
            kernel=args.patch_kernel,
            stride=args.patch_stride,
            padding=args.patch_padding,
        )
        self.positions = args.positions
        self.sep_pos_embed = args.positions == "separate"
        shapes = table_shapes(
            args.positions,
            self.grid,
            args.embed_dim,
            cls_token=args.cls_token,
            unit=self.mask_unit_size,
            global_size=args.global_pos_size,
        )
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        if args.positions == "sincos":
            table = sincos_table(math.prod(self.grid), args.embed_dim)
            self.register_buffer("pos_embed", table[None], persistent=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, args.embed_dim)) if args.cls_token else None
        index = tokens.unit_index(self.grid, self.mask_unit_size, self.q_stride, self.q_pool)
        self.register_buffer("unit_index", index, persistent=False)

        blocks = self._make_blocks(args)
        self.blocks = nn.ModuleList(blocks)
        self.stage_dims = [blocks[end].dim_out for end in self.stage_ends]

    def _make_blocks(self, args: TrunkArgs) -> Sequence[Any]:
        return [Block(block, mlp_ratio=args.mlp_ratio) for block in block_arguments(args)]

    def recompute(self, stages: Sequence[int]) -> None:
        """Computes these stages (from 1) again in the backward pass, to save memory.

        Raises ValueError.
        """
        known = [*range(1, len(self.stage_ends) + 1), *self.decoder_stages]
        if not set(stages) <= set(known):
            raise ValueError(f"stages={list(stages)} must be among {', '.join(map(str, known))}")
        self.recompute_stages = tuple(stages)

    def freeze(self, stages: int) -> None:
        """Trains neither the embeddings nor the first `stages` stages; 0: all is trained.

        What is frozen has no drop path. Raises ValueError.
        """
        if not 0 <= stages <= len(self.stage_ends):
            raise ValueError(f"stages={stages} must be from 0 to {len(self.stage_ends)}")
        if stages == 0:
            return
        self.frozen_blocks = self.stage_ends[stages - 1] + 1
        self.freeze_embeddings()
        self.blocks[: self.frozen_blocks].requires_grad_(False)

    def freeze_embeddings(self) -> None:
        for name, parameter in self.named_parameters():
            if name.startswith(("pos_embed", "patch_embed.", "cls_token")):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "Trunk":
        super().train(mode)
        self.blocks[: self.frozen_blocks].eval()
        return self

    def position_table(self) -> Tensor | None:
        """[N, C], spatial order; None where positions are relative."""
        if self.positions == "none":
            return None
        if self.positions == "separate":
            return separate_table(self.pos_embed_spatial, self.pos_embed_temporal)
        if self.positions != "window":
            return self.pos_embed[0]
        plane = window_table(self.pos_embed, self.pos_embed_win, self.grid[-2:])
        if len(self.grid) == 2:
            return plane
        return separate_table(plane[None], self.pos_embed_temporal)

    def embed(self, clip: Tensor) -> Tensor:
        """[B, 3, (T,) H, W] -> [B, U, L, C]"""
        self._check_clip(clip)
        x = tokens.to_units(self.patch_embed(clip), self.mask_unit_size, self.q_stride, self.q_pool)
        return self._with_positions(x, self.unit_index)

    def embed_visible(self, clip: Tensor, keep: Tensor | None, visible: Tensor) -> Tensor:
        """As `embed`, of the units `visible` [B, V] alone: [B, V, L, C].

        keep: bool [B, U], True = visible; pixels of hidden units are not read. None: they are, by
        the patches that reach into them, and the tokens are the very ones of `embed`.
        """
        self._check_clip(clip)
        x = self.patch_embed.visible_units(
            clip, keep, visible, unit=self.mask_unit_size, units=self.units
        )
        x = tokens.to_units(x, self.mask_unit_size, self.q_stride, self.q_pool)  # [B * V, 1, L, C]
        x = x.view(*visible.shape, *x.shape[2:])  # [B, V, L, C]
        return self._with_positions(x, self.unit_index[visible])

    def _with_positions(self, x: Tensor, index: Tensor) -> Tensor:
        """index: int64, the place of every token of x [.., C]"""
        table = self.position_table()
        # A lookup and not an index: its gradient is summed in a fixed order, so runs repeat.
        return x if table is None else x + F.embedding(index, table)

    def encode(self, x: Tensor) -> list[Tensor]:
        """[B, U, L, C] -> the same at the end of every stage, each [B, U, L_stage, C_stage]."""
        return self.encode_with_class(x)[0]

    def encode_with_class(
        self, x: Tensor, *, last: bool = False
    ) -> tuple[list[Tensor], Tensor | None]:
        """As `encode`, or the `last` stage alone, and the class token [B, C] at the end."""
        ends: list[Tensor] = []
        stage = 0
        x = self._enter(x)
        for i, block in enumerate(self.blocks):
            x = run_block(block, x, recompute=stage + 1 in self.recompute_stages)
            if i in self.stage_ends:
                if not last or i == self.stage_ends[-1]:
                    ends.append(self._leave(x, stage))
                stage += 1
        return ends, None if self.cls_token is None else x.flatten(1, -2)[:, 0]

    def _enter(self, x: Tensor) -> Tensor:
        """Tokens as the blocks take them; with a class token, one row of all, [B, 1, 1 + N, C]."""
        return x if self.cls_token is None else self._with_class(x.flatten(1, 2))[:, None]

    def _leave(self, x: Tensor, stage: int) -> Tensor:
        """What `_enter` began, after `stage`, 0 to 3 -> [B, U, L, C]"""
        if self.cls_token is None:
            return x
        return x[:, 0, 1:].unflatten(1, (-1, math.prod(self._unit_at(stage))))

    def _with_class(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, 1 + N, C]"""
        assert self.cls_token is not None  # or nobody asks
        token: Tensor = self.cls_token
        if hasattr(self, "pos_embed_class"):
            token = token + self.pos_embed_class
        return torch.cat([token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)

    def _pools_before(self, stage: int) -> int:
        """Poolings behind the tokens at the end of `stage`."""
        return min(stage, self.q_pool)

    def _unit_at(self, stage: int) -> tuple[int, ...]:
        """Tokens of a unit along each dimension at the end of `stage`."""
        return tokens.pooled(self.mask_unit_size, self.q_stride, self._pools_before(stage))

    def _grid_at(self, stage: int) -> tuple[int, ...]:
        return tokens.pooled(self.grid, self.q_stride, self._pools_before(stage))

    def stage_map(self, x: Tensor, stage: int) -> Tensor:
        """Tokens [B, U, L, C] at the end of `stage`, 0 to 3 -> spatial [B, (t,) h, w, C]"""
        left = self.q_pool - self._pools_before(stage)
        return tokens.to_spatial(x, self._grid_at(stage), self._unit_at(stage), self.q_stride, left)

    def no_weight_decay(self) -> list[str]:
        names = [name for name, _ in self.named_parameters()]
        return [name for name in names if "pos_embed" in name or "cls_token" in name]

    def _position_grids(self) -> dict[str, tuple[int, ...]]:
        """The places of every learned table that has a row of each, by its name."""
        if self.positions == "separate":
            return {"pos_embed_spatial": self.grid[1:], "pos_embed_temporal": self.grid[:1]}
        return {"pos_embed": self.grid} if self.positions == "joint" else {}

    def _draw_tables(self) -> None:
        """Position tables and the tokens that stand for something, as released."""
        for name, parameter in self.named_parameters():
            if "pos_embed" in name or name in STAND_INS:
                nn.init.trunc_normal_(parameter, std=0.02)

    def _init_positions(self, pos_init: str) -> None:
        """Waves in place of the random tables that are there, if that is asked for."""
        if pos_init == "waves":
            for name, grid in self._position_grids().items():
                table = self.get_parameter(name)
                table.copy_(waves(grid, table.shape[-1])[None])

    def _check_clip(self, clip: Tensor) -> None:
        if tuple(clip.shape[1:]) != (self.in_chans, *self.input_size):
            raise ValueError(
                f"clip has shape {tuple(clip.shape)}; this model takes [B, {self.in_chans}, "
                f"{', '.join(map(str, self.input_size))}] (constructor argument input_size)"
            )

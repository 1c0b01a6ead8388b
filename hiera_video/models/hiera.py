"""Hiera, a hierarchical vision transformer with nothing built in (Ryali et al., ICML 2023).

Structure (paper Fig. 2, Table 2): patch embedding, four stages of transformer blocks, mean over
tokens, norm, linear. The first block of a stage doubles the channels and, up to `q_pool` times,
max-pools its queries (and its skip path). Stages 1 and 2 attend inside a mask unit, stages 3 and 4
globally; the switch lags one block behind the stage.

Tokens are unit-major throughout (see tokens.py):

    clip  [B, 3, T, H, W], or [B, 3, H, W] for images
    x     [B, U, L, C]: U mask units (all, or only the visible ones), L tokens of a unit, C channels

Parameter names and shapes are those of the official release, so that published files load
unchanged.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiera_video.models import tokens
from hiera_video.models.arguments import BlockArgs, HieraArgs, TrunkArgs, block_arguments
from hiera_video.models.attention import attend
from hiera_video.models.linear import Linear
from hiera_video.models.patch_embed import PatchEmbed
from hiera_video.models.positions import waves

NORM_EPS = 1e-6


def max_pool(x: Tensor, stride: int) -> Tensor:
    """[B, U, L, C] -> [B, U, L / stride, C]: max over the finest pooling offset.

    That offset is outermost inside a unit, so the reads are contiguous.
    """
    return x.unflatten(2, (stride, -1)).amax(2) if stride > 1 else x


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: drops whole samples of a branch with probability `rate`.

    The others are rescaled, so that the mean stays.
    """
    if rate == 0.0 or not training:
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    kept = torch.empty(shape, device=x.device, dtype=x.dtype).bernoulli_(1 - rate)
    return x * kept / (1 - rate)


class Attention(nn.Module):
    """Multi-head attention inside each unit (`local`) or over all tokens.

    pool: so many queries are max-pooled into one.
    """

    def __init__(self, dim: int, dim_out: int, *, heads: int, pool: int = 1, local: bool = False):
        super().__init__()
        self.heads = heads
        self.pool = pool
        self.local = local
        self.qkv = Linear(dim, 3 * dim_out)
        self.proj = Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, U, L, C] -> [B, U, L / pool, C_out]"""
        batch, units = x.shape[:2]
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = max_pool(q, self.pool)
        # Windows fold into the batch as a view.
        rows = batch * units if self.local else batch
        x = attend(self._heads(q, rows), self._heads(k, rows), self._heads(v, rows))
        return self.proj(x.transpose(1, 2).reshape(batch, units, -1, self.proj.in_features))

    def _heads(self, x: Tensor, rows: int) -> Tensor:
        """[B, U, L, C] -> [rows, heads, tokens, C / heads]"""
        return x.reshape(rows, -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block.

    One that changes the width projects (and pools) its normed input for the skip path.
    """

    def __init__(self, args: BlockArgs, *, mlp_ratio: float = 4.0):
        super().__init__()
        self.pool = args.pool
        self.drop_path_rate = args.drop_path_rate
        self.norm1 = nn.LayerNorm(args.dim, eps=NORM_EPS)
        self.attn = Attention(
            args.dim, args.dim_out, heads=args.heads, pool=args.pool, local=args.local
        )
        self.norm2 = nn.LayerNorm(args.dim_out, eps=NORM_EPS)
        self.mlp = Mlp(args.dim_out, int(args.dim_out * mlp_ratio))
        changes = args.dim != args.dim_out or args.pool > 1
        self.proj = Linear(args.dim, args.dim_out) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        if self.proj is not None:
            x = max_pool(self.proj(normed), self.pool)
        x = x + drop_path(self.attn(normed), self.drop_path_rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path_rate, self.training)


def run_block(block: nn.Module, x: Tensor, *, recompute: bool) -> Tensor:
    """The block's output. recompute: keep its input only, and run it again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False)
    return block(x)


class Trunk(nn.Module):
    """What the classifier and the masked autoencoder share: the embeddings and the blocks."""

    unit_index: Tensor  # int64 [U, L]: the spatial position of every token
    decoder_stages = 0  # that `recompute` knows beside the encoder's

    def __init__(self, args: TrunkArgs):
        super().__init__()
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
        self.sep_pos_embed = args.sep_pos_embed
        if args.sep_pos_embed:
            frames, height, width = self.grid
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, height * width, args.embed_dim))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, frames, args.embed_dim))
        else:
            positions = math.prod(self.grid)
            self.pos_embed = nn.Parameter(torch.zeros(1, positions, args.embed_dim))
        index = tokens.unit_index(self.grid, self.mask_unit_size, self.q_stride, self.q_pool)
        self.register_buffer("unit_index", index, persistent=False)

        blocks = block_arguments(args)
        self.blocks = nn.ModuleList(Block(block, mlp_ratio=args.mlp_ratio) for block in blocks)
        self.stage_dims = [blocks[end].dim_out for end in self.stage_ends]

    def recompute(self, stages: Sequence[int]) -> None:
        """Computes these stages (from 1) again in the backward pass, to save memory.

        Raises ValueError.
        """
        last = len(self.stage_ends) + self.decoder_stages
        if not set(stages) <= set(range(1, last + 1)):
            raise ValueError(f"stages={list(stages)} must be among 1 to {last}")
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
            if name.startswith(("pos_embed", "patch_embed.")):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "Trunk":
        super().train(mode)
        self.blocks[: self.frozen_blocks].eval()
        return self

    def position_table(self) -> Tensor:
        """[N, C], spatial order; the separable form is space plus time (paper App. A)."""
        if not self.sep_pos_embed:
            return self.pos_embed[0]
        return (self.pos_embed_temporal[0][:, None] + self.pos_embed_spatial[0]).flatten(0, 1)

    def embed(self, clip: Tensor) -> Tensor:
        """[B, 3, (T,) H, W] -> [B, U, L, C]"""
        self._check_clip(clip)
        x = tokens.to_units(self.patch_embed(clip), self.mask_unit_size, self.q_stride, self.q_pool)
        return x + F.embedding(self.unit_index, self.position_table())

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
        # A lookup and not an index: its gradient is summed in a fixed order, so runs repeat.
        return x + F.embedding(self.unit_index[visible], self.position_table())

    def encode(self, x: Tensor) -> list[Tensor]:
        """[B, U, L, C] -> the same at the end of every stage, each [B, U, L_stage, C_stage]."""
        ends: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = run_block(block, x, recompute=len(ends) + 1 in self.recompute_stages)
            if i in self.stage_ends:
                ends.append(x)
        return ends

    def stage_map(self, x: Tensor, stage: int) -> Tensor:
        """Tokens [B, U, L, C] at the end of `stage`, 0 to 3 -> spatial [B, (t,) h, w, C]"""
        done = min(stage, self.q_pool)  # poolings behind these tokens
        grid = tokens.pooled(self.grid, self.q_stride, done)
        unit = tokens.pooled(self.mask_unit_size, self.q_stride, done)
        return tokens.to_spatial(x, grid, unit, self.q_stride, self.q_pool - done)

    def no_weight_decay(self) -> list[str]:
        return [name for name, _ in self.named_parameters() if "pos_embed" in name]

    def _position_grids(self) -> dict[str, tuple[int, ...]]:
        """The places of every position table, by its name."""
        if not self.sep_pos_embed:
            return {"pos_embed": self.grid}
        return {"pos_embed_spatial": self.grid[1:], "pos_embed_temporal": self.grid[:1]}

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


class Hiera(Trunk):
    """Hiera classifier. Arguments: HieraArgs, by keyword. Raises ValueError.

    `forward` gives logits in train and eval alike (the official one gives softmax in eval).
    """

    def __init__(self, **arguments: Any):
        args = HieraArgs(**arguments)
        super().__init__(args)
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

        With `head_pool` "time", means of every time, each of them normed: [B, T * dim].
        """
        x = self.embed(clip) if units is None else self.embed_visible(clip, None, units)
        return self._pooled(self.encode(x)[-1], units)

    def feature_maps(self, clip: Tensor) -> list[Tensor]:
        """One map a stage, in spatial order: [B, (t,) h, w, C]."""
        return self.features_and_maps(clip)[1]

    def features_and_maps(self, clip: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Both of the above from one pass."""
        ends = self.encode(self.embed(clip))
        maps = [self.stage_map(x, stage) for stage, x in enumerate(ends)]
        return self._pooled(ends[-1], None), maps

    def _pooled(self, x: Tensor, units: Tensor | None) -> Tensor:
        """Tokens [B, U, L, C] at the end, of the units [B, U] or of all -> [B, times * dim]"""
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
        # As released: biases of linear and norm layers start at 0.02, and the head is scaled down,
        # its bias too.
        for name, parameter in self.named_parameters():
            if "pos_embed" in name:
                nn.init.trunc_normal_(parameter, std=0.02)
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

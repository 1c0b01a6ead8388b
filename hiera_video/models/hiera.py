"""Hiera: a hierarchical vision transformer with nothing built in (Ryali et al., ICML 2023), for images and video.

Structure (paper Fig. 2, Table 2): patch embedding, four stages of transformer blocks, mean over tokens, norm, linear.
The first block of a stage doubles the channels and, up to `q_pool` times, max-pools its queries (and its skip path).
Stages 1 and 2 attend inside a mask unit, stages 3 and 4 globally; the switch lags one block behind the stage.

Tokens are unit-major throughout (see tokens.py):

    clip  [B, 3, T, H, W] or [B, 3, H, W]      x  [B, U, L, C]
    U mask units (all, or only the visible ones), L tokens of a unit, C channels (doubling), S = prod(q_stride)

Parameter names and shapes are those of the official release, so that published files load unchanged.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiera_video.models import tokens
from hiera_video.models.attention import attend
from hiera_video.models.linear import Linear

NORM_EPS = 1e-6


def max_pool(x: Tensor, stride: int) -> Tensor:
    """Max over the finest pooling offset, which is outermost inside a unit: [B, U, L, C] -> [B, U, L / stride, C]."""
    return x.unflatten(2, (stride, -1)).amax(2) if stride > 1 else x


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: drops the branch of whole samples with probability `rate` and rescales the others."""
    if rate == 0.0 or not training:
        return x
    kept = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device, dtype=x.dtype).bernoulli_(1 - rate)
    return x * kept / (1 - rate)


class Attention(nn.Module):
    """Multi-head attention inside each unit (`local`) or over all tokens, with optional max-pooling of the queries."""

    def __init__(self, dim: int, dim_out: int, *, heads: int, pool: int = 1, local: bool = False):
        super().__init__()
        self.heads, self.pool, self.local = heads, pool, local
        self.qkv = Linear(dim, 3 * dim_out)
        self.proj = Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, U, L, C] -> [B, U, L / pool, C_out]"""
        batch, units = x.shape[:2]
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = max_pool(q, self.pool)
        # Windows fold into the batch as a view.
        rows = batch * units if self.local else batch
        q, k, v = (t.reshape(rows, -1, self.heads, t.shape[-1] // self.heads).transpose(1, 2) for t in (q, k, v))
        x = attend(q, k, v)  # [rows, heads, tokens, head dim]
        return self.proj(x.transpose(1, 2).reshape(batch, units, -1, self.proj.in_features))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; one that changes the width projects (and pools) its normed input for the skip path."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        heads: int,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        pool: int = 1,
        local: bool = False,
    ):
        super().__init__()
        self.pool, self.drop_path_rate = pool, drop_path_rate
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, dim_out, heads=heads, pool=pool, local=local)
        self.norm2 = nn.LayerNorm(dim_out, eps=NORM_EPS)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio))
        self.proj = Linear(dim, dim_out) if dim != dim_out or pool > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        if self.proj is not None:
            x = max_pool(self.proj(normed), self.pool)
        x = x + drop_path(self.attn(normed), self.drop_path_rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path_rate, self.training)


def run_block(block: Block, x: Tensor, *, recompute: bool) -> Tensor:
    """recompute: keep only the block's input for the backward pass, which then runs the block once more."""
    return checkpoint(block, x, use_reentrant=False) if recompute and torch.is_grad_enabled() else block(x)


class PatchEmbed(nn.Module):
    """One token per `stride` box of pixels, from an overlapping `kernel` box; the convolution's rank is the clip's."""

    def __init__(
        self, in_chans: int, dim: int, *, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
    ):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[len(kernel)]
        self.proj = conv(in_chans, dim, tuple(kernel), tuple(stride), tuple(padding))

    def forward(self, clip: Tensor) -> Tensor:
        return self.proj(clip).movedim(1, -1)  # [B, (t,) h, w, C]

    def visible_units(
        self, clip: Tensor, keep: Tensor, visible: Tensor, *, unit: Sequence[int], units: Sequence[int]
    ) -> Tensor:
        """Tokens of the visible units only, [B * V, *unit, C], as if all hidden pixels were zero.

        Exactly the plain convolution over the zeroed clip, but each visible unit is convolved on its own pixels and
        their halo. The halo lies before the unit (padding), hardly behind it (kernel - stride - padding).

        keep: bool [B, U]; visible: int64 [B, V], the kept units, row-major; unit: tokens of a unit; units: their grid.
        """
        conv, ndim = self.proj, len(unit)
        keep = keep.unflatten(1, tuple(units))
        box = [u * s for u, s in zip(unit, conv.stride)]  # pixels of a unit
        window = [(u - 1) * s + k for u, s, k in zip(unit, conv.stride, conv.kernel_size)]  # and its halo
        for d, n in enumerate(box):
            keep = keep.repeat_interleave(n, dim=1 + d)  # [B, (T,) H, W]
        behind = [max(w - b - p, 0) for w, b, p in zip(window, box, conv.padding)]
        padding = [n for p, b in zip(reversed(conv.padding), reversed(behind)) for n in (p, b)]
        pixels = F.pad(clip * keep[:, None], padding)
        for d in range(ndim):
            pixels = pixels.unfold(2 + d, window[d], box[d])  # [B, C, *units, *window], a view
        pixels = pixels.movedim(1, 1 + ndim)  # [B, *units, C, *window]
        position, rest = [], visible  # of each visible unit along every dimension
        for n in reversed(units):
            position.insert(0, rest % n)
            rest = rest // n
        rows = torch.arange(len(clip), device=clip.device)[:, None].expand_as(visible)
        windows = pixels[(rows, *position)].flatten(0, 1)  # [B * V, C, *window]
        convolve = {2: F.conv2d, 3: F.conv3d}[ndim]
        return convolve(windows, conv.weight, conv.bias, conv.stride).movedim(1, -1)  # [B * V, *unit, C]


class Trunk(nn.Module):
    """Patch embedding, position embedding and the blocks: what the classifier and the masked autoencoder share.

    Arguments carry the names and meanings of the official constructor. Sizes are (t, h, w), or (h, w) for images.
    Raises ValueError for a geometry that does not come out even.
    """

    def __init__(
        self,
        *,
        input_size: Sequence[int],
        in_chans: int,
        embed_dim: int,
        num_heads: int,
        stages: Sequence[int],
        q_pool: int,
        q_stride: Sequence[int],
        mask_unit_size: Sequence[int],
        mask_unit_attn: Sequence[bool],
        dim_mul: float,
        head_mul: float,
        patch_kernel: Sequence[int],
        patch_stride: Sequence[int],
        patch_padding: Sequence[int],
        mlp_ratio: float,
        drop_path_rate: float,
        sep_pos_embed: bool,
    ):
        super().__init__()
        if min(embed_dim, num_heads, in_chans, *stages) < 1:
            raise ValueError(
                f"embed_dim={embed_dim}, num_heads={num_heads}, in_chans={in_chans}, stages={stages}: all > 0"
            )
        _check_geometry(
            input_size, stages, q_pool, q_stride, mask_unit_size, mask_unit_attn, patch_stride, sep_pos_embed
        )
        self.input_size, self.in_chans = tuple(input_size), in_chans
        self.patch_stride, self.q_stride, self.q_pool = tuple(patch_stride), tuple(q_stride), q_pool
        self.mask_unit_size = tuple(mask_unit_size)  # tokens of a unit before any pooling
        self.grid = tuple(n // s for n, s in zip(input_size, patch_stride))  # tokens before any pooling
        self.units = tokens.units_of(self.grid, mask_unit_size)
        self.num_units = math.prod(self.units)
        self.stage_ends = [sum(stages[: i + 1]) - 1 for i in range(len(stages))]
        self.recompute_stages: tuple[int, ...] = ()  # 1 to 4, whose activations are recomputed; 5: a decoder's

        self.patch_embed = PatchEmbed(
            in_chans, embed_dim, kernel=patch_kernel, stride=patch_stride, padding=patch_padding
        )
        self.sep_pos_embed = sep_pos_embed
        if sep_pos_embed:
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, self.grid[1] * self.grid[2], embed_dim))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, self.grid[0], embed_dim))
        else:
            self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.grid), embed_dim))
        index = tokens.unit_index(self.grid, mask_unit_size, q_stride, q_pool)
        self.register_buffer("unit_index", index, persistent=False)

        depth, dim, heads, stage = sum(stages), embed_dim, num_heads, 0
        # Plain Python arithmetic: drop-path rates are needed as numbers, also when the model is built on "meta".
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList()
        self.stage_dims: list[int] = []
        for i in range(depth):
            local, dim_out, pool = bool(mask_unit_attn[stage]), dim, 1  # `local` before the switch: it lags one block
            if i - 1 in self.stage_ends:
                stage += 1
                dim_out, heads = int(dim * dim_mul), int(heads * head_mul)
                pool = math.prod(q_stride) if stage <= q_pool else 1
            if dim_out % heads:
                raise ValueError(f"num_heads: block {i} has {dim_out} channels, which {heads} heads do not divide")
            self.blocks.append(
                Block(dim, dim_out, heads=heads, mlp_ratio=mlp_ratio, drop_path_rate=rates[i], pool=pool, local=local)
            )
            dim = dim_out
            if i in self.stage_ends:
                self.stage_dims.append(dim)

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

    def embed_visible(self, clip: Tensor, keep: Tensor, visible: Tensor) -> Tensor:
        """As `embed`, for the units `visible` [B, V] only and without a look at hidden pixels. -> [B, V, L, C]"""
        self._check_clip(clip)
        x = self.patch_embed.visible_units(clip, keep, visible, unit=self.mask_unit_size, units=self.units)
        x = tokens.to_units(x, self.mask_unit_size, self.q_stride, self.q_pool)  # [B * V, 1, L, C]
        # A lookup and not an index: its gradient is summed in a fixed order, so that runs repeat to the bit.
        return x.view(*visible.shape, *x.shape[2:]) + F.embedding(self.unit_index[visible], self.position_table())

    def encode(self, x: Tensor) -> list[Tensor]:
        """[B, U, L, C] -> the same at the end of every stage, each [B, U, L_stage, C_stage]."""
        ends = []
        for i, block in enumerate(self.blocks):
            x = run_block(block, x, recompute=len(ends) + 1 in self.recompute_stages)
            if i in self.stage_ends:
                ends.append(x)
        return ends

    def stage_map(self, x: Tensor, stage: int) -> Tensor:
        """Tokens [B, U, L, C] at the end of `stage` (0 to 3) in spatial order: [B, (t,) h, w, C]."""
        done = min(stage, self.q_pool)  # poolings behind these tokens
        grid, unit = (tokens.pooled(n, self.q_stride, done) for n in (self.grid, self.mask_unit_size))
        return tokens.to_spatial(x, grid, unit, self.q_stride, self.q_pool - done)

    def no_weight_decay(self) -> list[str]:
        return [name for name, _ in self.named_parameters() if "pos_embed" in name]

    def _check_clip(self, clip: Tensor) -> None:
        if tuple(clip.shape[1:]) != (self.in_chans, *self.input_size):
            raise ValueError(
                f"clip has shape {tuple(clip.shape)}; this model takes [B, {self.in_chans}, "
                f"{', '.join(map(str, self.input_size))}] (constructor argument input_size)"
            )


class Hiera(Trunk):
    """Hiera classifier. `forward` gives logits in train and eval alike (the official one gives softmax in eval)."""

    def __init__(
        self,
        input_size: Sequence[int] = (224, 224),
        in_chans: int = 3,
        embed_dim: int = 96,
        num_heads: int = 1,
        num_classes: int = 1000,
        stages: Sequence[int] = (2, 3, 16, 3),
        q_pool: int = 3,
        q_stride: Sequence[int] = (2, 2),
        mask_unit_size: Sequence[int] = (8, 8),
        mask_unit_attn: Sequence[bool] = (True, True, False, False),
        dim_mul: float = 2.0,
        head_mul: float = 2.0,
        patch_kernel: Sequence[int] = (7, 7),
        patch_stride: Sequence[int] = (4, 4),
        patch_padding: Sequence[int] = (3, 3),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        head_dropout: float = 0.0,
        head_init_scale: float = 0.001,
        sep_pos_embed: bool = False,
    ):
        super().__init__(
            input_size=input_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            num_heads=num_heads,
            stages=stages,
            q_pool=q_pool,
            q_stride=q_stride,
            mask_unit_size=mask_unit_size,
            mask_unit_attn=mask_unit_attn,
            dim_mul=dim_mul,
            head_mul=head_mul,
            patch_kernel=patch_kernel,
            patch_stride=patch_stride,
            patch_padding=patch_padding,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
            sep_pos_embed=sep_pos_embed,
        )
        self.norm = nn.LayerNorm(self.stage_dims[-1], eps=NORM_EPS)
        self.head = Head(self.stage_dims[-1], num_classes, head_dropout)
        self._init_weights(head_init_scale)

    def forward(self, clip: Tensor) -> Tensor:
        """Normalised clip [B, 3, (T,) H, W] -> logits [B, num_classes]."""
        return self.head(self.features(clip))

    def features(self, clip: Tensor) -> Tensor:
        """The vector that the classifier reads: mean over tokens, then norm. [B, dim]"""
        return self.norm(self.encode(self.embed(clip))[-1].mean(dim=(1, 2)))

    def feature_maps(self, clip: Tensor) -> list[Tensor]:
        """One map a stage, in spatial order: [B, (t,) h, w, C]."""
        return self.features_and_maps(clip)[1]

    def features_and_maps(self, clip: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Both of the above from one pass."""
        ends = self.encode(self.embed(clip))
        return self.norm(ends[-1].mean(dim=(1, 2))), [self.stage_map(x, stage) for stage, x in enumerate(ends)]

    @torch.no_grad()
    def _init_weights(self, head_init_scale: float) -> None:
        # As released: biases of linear and norm layers start at 0.02, and the head is scaled down, its bias too.
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


class Head(nn.Module):
    def __init__(self, dim: int, num_classes: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.dropout(x))


def _check_geometry(
    input_size, stages, q_pool, q_stride, mask_unit_size, mask_unit_attn, patch_stride, sep_pos_embed
) -> None:
    ndim = len(input_size)
    for name, value in {"q_stride": q_stride, "mask_unit_size": mask_unit_size, "patch_stride": patch_stride}.items():
        if len(value) != ndim:
            raise ValueError(f"{name}={tuple(value)} must have {ndim} numbers, like input_size={tuple(input_size)}")
    if len(mask_unit_attn) != len(stages):
        raise ValueError(f"mask_unit_attn={tuple(mask_unit_attn)} needs one entry a stage, stages={tuple(stages)}")
    if not 0 <= q_pool < len(stages):
        raise ValueError(f"q_pool={q_pool} must be at least 0 and less than the number of stages, {len(stages)}")
    if sep_pos_embed and ndim != 3:
        raise ValueError("sep_pos_embed=True is for video: input_size must be (frames, height, width)")
    for name, pixels, patch, unit, stride in zip("thw"[-ndim:], input_size, patch_stride, mask_unit_size, q_stride):
        if pixels <= 0 or pixels % (patch * unit):
            raise ValueError(
                f"input_size: {pixels} along {name} is not a multiple of a mask unit's {patch * unit} "
                f"(patch_stride {patch} x mask_unit_size {unit})"
            )
        if unit % stride**q_pool:
            raise ValueError(
                f"mask_unit_size: {unit} along {name} cannot be pooled {q_pool} times by q_stride {stride}"
            )

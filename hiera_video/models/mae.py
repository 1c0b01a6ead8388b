"""Masked autoencoder (Hiera: paper section 3.1, App. A; a plain ViT: vit.py; MViTv2: mvit.py).

Layout and quirks are those of the released weights.

The encoder sees only the visible mask units. Its stages are fused at the final resolution, a plain
transformer decoder fills in the hidden patches, and the loss is the squared error of their pixels,
normalised patch by patch. The decoder may see and predict a share of the hidden patches alone
(VideoMAE V2, CVPR 2023; CrossMAE): it is most of the cost of pretraining.

With `masking` "tokens" the encoder keeps a learned token in the place of every hidden one, and
the decoder reads those (paper Fig. 4c).

Legend: B clips, U mask units, V visible ones, L tokens of a unit, S prediction patches of a unit,
N = U * S patches of a clip, H the hidden ones that are predicted, P numbers that are predicted of a
patch (3 * 16 * 16 pixels), D decoder width.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hiera_video.models import tokens
from hiera_video.models.arguments import BlockArgs, DecoderArgs, MAEArgs
from hiera_video.models.blocks import NORM_EPS, Block, gather_rows, run_block
from hiera_video.models.linear import Linear
from hiera_video.models.masking import draw_predicted, draw_tubes, draw_visible
from hiera_video.models.patch_embed import zero_hidden
from hiera_video.models.positions import separate_table, sincos_table, table_shapes
from hiera_video.models.targets import Target
from hiera_video.models.trunk import Trunk

DECODER_STAGE = 5  # of `recompute_stages`; the encoder's are 1 to 4


class MAEOutput(NamedTuple):
    loss: Tensor  # mean squared error over the predicted patches
    pred: Tensor  # [B * H, P], rows: sample, then (t, h, w) of the patch
    target: Tensor  # [B * H, P], normalised pixels
    keep: Tensor  # bool [B, U], True = visible; units row-major (t, h, w)


class FusionHead(nn.Module):
    """Brings a stage to the final resolution of a unit.

    A convolution with kernel = stride, run as one linear layer.

    The tokens that one kernel covers are the outermost digits of the unit-major order, so no
    spatial order is needed. Parameters keep the shape of the convolution.
    """

    order: Tensor  # int64 [K]: positions of the kernel, in the order of the tokens

    def __init__(self, dim: int, dim_out: int, *, stride: Sequence[int], pools: int):
        super().__init__()
        kernel = tuple(s**pools for s in stride)
        convolution: Any = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
        conv = convolution(dim, dim_out, kernel, kernel)
        self.weight = conv.weight
        self.bias = conv.bias
        # Kernel positions in the order of the tokens: the kernel is itself a unit that is pooled to
        # one token.
        order = tokens.unit_index(kernel, kernel, stride, pools)[0]
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, V, L, C] -> [B, V, S, C_out]"""
        weight = self.weight.flatten(2)[:, :, self.order]  # [C_out, C, K]
        x = x.unflatten(2, (len(self.order), -1)).transpose(2, 3).flatten(3)  # [B, V, S, K * C]
        return nn.functional.linear(x, weight.transpose(1, 2).flatten(1), self.bias)


class MaskedAutoencoder(Trunk):
    """Hiera encoder, multi-scale fusion and a plain transformer decoder.

    Arguments: MAEArgs, by keyword. Raises ValueError.
    """

    arguments: type[DecoderArgs] = MAEArgs
    patch_index: Tensor  # int64 [U, S]: the spatial position of every patch
    decoder_pos_embed: Tensor
    decoder_pos_embed_spatial: Tensor
    decoder_pos_embed_temporal: Tensor
    decoder_pos_embed_class: Tensor
    decoder_stages = (DECODER_STAGE,)

    def __init__(self, **arguments: Any):
        args = self.arguments(**arguments)
        super().__init__(args)
        encoder_dim = self.stage_dims[-1]
        self.encoder_norm = nn.LayerNorm(encoder_dim, eps=NORM_EPS)
        # A head for each stage before a pooling; later ones already have the final resolution.
        self.multi_scale_fusion_heads = nn.ModuleList(
            FusionHead(self.stage_dims[i], encoder_dim, stride=args.q_stride, pools=args.q_pool - i)
            for i in range(args.q_pool if args.multi_scale else 0)
        )
        grid = self.patch_grid
        unit = tokens.pooled(self.mask_unit_size, args.q_stride, args.q_pool)
        # Every patch of the prediction by its unit. No pooling is left: a unit is row-major inside.
        index = tokens.unit_index(grid, unit, args.q_stride, 0)
        self.register_buffer("patch_index", index, persistent=False)  # [U, S]

        width = args.decoder_embed_dim
        self.keeps_hidden = args.masking == "tokens"  # as tokens of the encoder
        self.decoder_embed = Linear(encoder_dim, width)
        stands_in = args.embed_dim if self.keeps_hidden else width
        self.mask_token = nn.Parameter(torch.zeros(1, 1, stands_in))
        self.decoder_cls_token = None
        if args.decoder_cls_token:
            self.decoder_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self._decoder_positions = args.decoder_positions
        shapes = table_shapes(args.decoder_positions, grid, width, cls_token=args.decoder_cls_token)
        for name, shape in shapes.items():
            self.register_parameter(f"decoder_{name}", nn.Parameter(torch.zeros(shape)))
        if args.decoder_positions == "sincos":
            table = sincos_table(math.prod(grid), width)
            self.register_buffer("decoder_pos_embed", table[None], persistent=False)
        block = BlockArgs(width, width, args.decoder_num_heads, 1, False, 0.0)
        self.decoder_blocks = nn.ModuleList(
            Block(block, mlp_ratio=args.mlp_ratio) for _ in range(args.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        # Pixels along the side of a prediction patch.
        self.patch_size = args.patch_stride[-1] * args.q_stride[-1] ** args.q_pool
        self.target = Target(args.target, self.patch_size, tuple(args.patch_stride), args.in_chans)
        self.decoder_pred = Linear(width, self.target.width)
        self._init_weights(args.pos_init)

    def forward(
        self,
        clip: Tensor,
        mask_ratio: float = 0.9,
        keep: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        decoder_keep: float = 1.0,
        decoder_noise: Tensor | None = None,
    ) -> MAEOutput:
        """Hides mask units of a normalised clip, [B, 3, (T,) H, W], and predicts their pixels.

        mask_ratio: share that is drawn and hidden (the paper: 0.9 for video, 0.6 for images).
        keep: bool [B, U], True = visible, in place of a draw; every row shows the same number.
        noise: [B, U], decides the draw in place of torch's global generator: the units of lowest
        noise are visible. [B, U / T], of the places of one time: tubes, the same at all T times.
        decoder_keep: share of the hidden patches that the decoder sees and predicts, above 0;
        rows of pred and target are then those patches, still in the order of their places.
        decoder_noise: [B, N], decides which they are: the hidden patches of lowest noise.
        Raises ValueError.
        """
        if keep is None:
            if noise is None:
                noise = torch.rand(len(clip), self.num_units, device=clip.device)
            visible = self.draw_visible(noise, mask_ratio)
            keep = torch.zeros(len(clip), self.num_units, dtype=torch.bool, device=clip.device)
            keep.scatter_(1, visible, 1)
        else:
            visible = self._visible_units(keep, len(clip))
        x = self.forward_encoder(clip, keep, visible)  # [B, V (U), S, C]
        hidden = self.predicted_patches(visible, decoder_keep, decoder_noise)  # [B, H]
        pred = self.forward_decoder(x, visible, hidden)
        target = self.patch_targets(clip, hidden)
        loss = (pred.float() - target).square().mean()
        return MAEOutput(loss, pred, target, keep)

    def draw_visible(self, noise: Tensor, mask_ratio: float) -> Tensor:
        """noise [B, U], or [B, U / T] of tubes -> int64 [B, V], units. Raises ValueError."""
        if noise.shape[1] == self.num_units:
            return draw_visible(noise, mask_ratio)
        if noise.shape[1] != self.num_tubes:
            raise ValueError(
                f"noise must have {self.num_units} columns, or {self.num_tubes} of tubes, not "
                f"{noise.shape[1]}"
            )
        return draw_tubes(noise, mask_ratio, self.num_units // self.num_tubes)

    @property
    def num_tubes(self) -> int:
        """Units of one time; those of all times at one place are a tube."""
        return math.prod(self.units[-2:])

    def forward_encoder(self, clip: Tensor, keep: Tensor, visible: Tensor) -> Tensor:
        """Fused, normalised tokens [B, V, S, C] of the visible units; where `masking` is "tokens",
        [B, U, S, C] of all."""
        if self.keeps_hidden:
            x = self._embed_with_tokens(clip, keep)
        else:
            x = self.embed_visible(clip, keep, visible)
        ends = self.encode(x)
        fused = ends[-1]
        for head, x in zip(self.multi_scale_fusion_heads, ends):
            fused = fused + head(x)
        return self.encoder_norm(fused)

    def _embed_with_tokens(self, clip: Tensor, keep: Tensor) -> Tensor:
        """[B, U, L, C]: hidden pixels are zero, and hidden tokens are the mask token."""
        self._check_clip(clip)
        x = self.patch_embed(zero_hidden(clip, keep, self.units))
        x = tokens.to_units(x, self.mask_unit_size, self.q_stride, self.q_pool)
        x = torch.where(keep[:, :, None, None], x, self.mask_token.to(x.dtype))
        return self._with_positions(x, self.unit_index)

    def decoder_table(self) -> Tensor:
        """[N, D]"""
        if self._decoder_positions == "separate":
            return separate_table(self.decoder_pos_embed_spatial, self.decoder_pos_embed_temporal)
        return self.decoder_pos_embed[0]

    def forward_decoder(self, x: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """The encoder's tokens -> what is predicted of the patches `hidden` [B, H]: [B * H, P].

        Hidden patches that are not among them are no tokens of the decoder.
        """
        x = self.decoder_embed(x).flatten(1, 2)  # [B, V (U) * S, D]
        shown = self.patch_index[visible].flatten(1)  # [B, V * S]
        if self.keeps_hidden:
            x = x[:, self.patch_index.flatten().argsort()]  # [B, N, D], spatial order
        else:
            masked = self.mask_token.to(x.dtype).expand(len(x), self.patch_index.numel(), -1)
            x = masked.scatter(1, shown[..., None].expand_as(x), x)  # [B, N, D], spatial order
        x = x + self.decoder_table()
        predicted = hidden
        if shown.shape[1] + hidden.shape[1] < self.patch_index.numel():
            x = gather_rows(x, torch.cat([shown, hidden], dim=1))  # [B, V * S + H, D]
            last = torch.arange(shown.shape[1], x.shape[1], device=x.device)
            predicted = last.expand(len(x), -1)
        if self.decoder_cls_token is not None:
            token: Tensor = self.decoder_cls_token
            if self._decoder_positions != "sincos":
                token = token + self.decoder_pos_embed_class
            x = torch.cat([token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
            predicted = predicted + 1
        x = x[:, None]  # [B, 1, tokens, D]: one big unit, attended globally
        for block in self.decoder_blocks:
            x = run_block(block, x, recompute=DECODER_STAGE in self.recompute_stages)
        x = gather_rows(x[:, 0], predicted)
        return self.decoder_pred(self.decoder_norm(x)).flatten(0, 1)

    @torch.no_grad()
    def predict_hidden(
        self, clip: Tensor, keep: Tensor, *, decoder_keep: float = 1.0, noise: Tensor
    ) -> Tensor:
        """Pixels of all hidden patches, [B * H, P], predicted part by part.

        Each part is as large as the decoder's in training at that `decoder_keep`, and holds the
        next patches in the order of noise [B, N].
        """
        visible = self._visible_units(keep, len(clip))
        x = self.forward_encoder(clip, keep, visible)
        hidden = self._hidden_patches(visible)
        rank = noise.gather(1, hidden).argsort(dim=1).argsort(dim=1)  # [B, H]
        count = max(1, round(decoder_keep * hidden.shape[1]))
        pred = x.new_zeros(*hidden.shape, self.decoder_pred.out_features)
        for first in range(0, hidden.shape[1], count):
            # The last part is filled up with patches of the first one.
            chosen = (rank - first) % hidden.shape[1] < count
            some = hidden[chosen].view(len(hidden), count)
            pred[chosen] = self.forward_decoder(x, visible, some).to(pred.dtype)
        return pred.flatten(0, 1)

    @torch.no_grad()
    def patch_targets(self, clip: Tensor, hidden: Tensor) -> Tensor:
        """What is to be predicted of the patches `hidden` [B, H]: float32 [B * H, P]."""
        patches = gather_rows(self.patches(clip), hidden).flatten(0, 1).float()
        return self.target.normalised(patches)

    def patches(self, clip: Tensor) -> Tensor:
        """[B, N, P], patches in the order (t, h, w), not normalised (targets.py)."""
        return self.target.patches(clip)

    def predicted_patches(
        self, visible: Tensor, decoder_keep: float = 1.0, decoder_noise: Tensor | None = None
    ) -> Tensor:
        """int64 [B, H]: the places of the patches that `forward` predicts, ascending.

        visible: int64 [B, V], units. Raises ValueError.
        """
        hidden = self._hidden_patches(visible)
        if decoder_keep == 1.0:
            return hidden
        return draw_predicted(hidden, decoder_keep, self._patch_noise(decoder_noise, hidden))

    @property
    def patch_grid(self) -> tuple[int, ...]:
        """Prediction patches along each dimension, (t,) h, w."""
        return tokens.pooled(self.grid, self.q_stride, self.q_pool)

    def _hidden_patches(self, visible: Tensor) -> Tensor:
        """int64 [B, H]: spatial positions of all patches outside the units `visible`, ascending."""
        shown = torch.zeros(
            len(visible), self.patch_index.numel(), dtype=torch.uint8, device=visible.device
        )
        shown.scatter_(1, self.patch_index[visible].flatten(1), 1)
        count = (self.num_units - visible.shape[1]) * self.patch_index.shape[1]
        return shown.argsort(dim=1, stable=True)[:, :count]

    def _patch_noise(self, noise: Tensor | None, hidden: Tensor) -> Tensor:
        """[B, N]"""
        shape = (len(hidden), self.patch_index.numel())
        if noise is None:
            return torch.rand(shape, device=hidden.device)
        if tuple(noise.shape) != shape:
            raise ValueError(f"decoder_noise must be {list(shape)}, not {list(noise.shape)}")
        return noise

    def _visible_units(self, keep: Tensor, batch: int) -> Tensor:
        """bool [B, U] -> int64 [B, V]"""
        if keep.dtype != torch.bool or tuple(keep.shape) != (batch, self.num_units):
            raise ValueError(
                f"keep must be bool [{batch}, {self.num_units}], not {keep.dtype} "
                f"{list(keep.shape)}"
            )
        counts = keep.sum(1)
        if (counts != counts[0]).any() or counts[0] == 0:
            raise ValueError(
                "keep must show the same number of units, at least 1, in every row, not "
                f"{counts.tolist()}"
            )
        return keep.nonzero()[:, 1].view(batch, -1)

    @torch.no_grad()
    def _init_weights(self, pos_init: str) -> None:
        # As released: position tables and mask token 0.02; linear layers Xavier, the patch
        # embedding as if it were one. The fusion heads keep the default of a convolution.
        self._draw_tables()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        self._init_positions(pos_init)

    def _position_grids(self) -> dict[str, tuple[int, ...]]:
        own = super()._position_grids()
        if self._decoder_positions == "joint":
            own["decoder_pos_embed"] = self.patch_grid
        return own

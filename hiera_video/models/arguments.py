"""The constructor arguments of Hiera and of the plain ViT, once, under their official names.

Sizes are (frames, height, width) for video and (height, width) for images. A geometry that does
not come out even raises ValueError, which names the argument. Those of MViTv2: mvit_arguments.py.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from hiera_video.models.tokens import units_of

HEAD_POOL = ("mean", "time", "cls", "norm_mean")
POS_INIT = ("random", "waves")
MASKING = ("delete", "tokens", "separate")
TARGETS = ("pixel", "pixel_mae_st", "pixel_videomae", "hog")
GLOBAL_POS_SIZE = (14, 14)
# Arguments that have a number for each dimension of the input.
SIZES = ("q_stride", "mask_unit_size", "patch_kernel", "patch_stride", "patch_padding")


@dataclass(frozen=True)
class TrunkArgs:
    """What classifiers and masked autoencoders share; defaults are those of a Hiera on images."""

    cls_token = False  # of those that may have one, a field
    sincos_pos_embed = False

    input_size: Sequence[int] = (224, 224)  # pixels
    in_chans: int = 3
    embed_dim: int = 96  # channels of the first stage
    num_heads: int = 1  # of the first stage
    stages: Sequence[int] = (2, 3, 16, 3)  # blocks of each
    q_pool: int = 3  # stages that begin with a pooling
    q_stride: Sequence[int] = (2, 2)  # tokens pooled into one
    mask_unit_size: Sequence[int] = (8, 8)  # tokens of a unit before any pooling
    mask_unit_attn: Sequence[bool] = (True, True, False, False)  # inside a unit, or global
    dim_mul: float = 2.0  # from stage to stage
    head_mul: float = 2.0
    patch_kernel: Sequence[int] = (7, 7)
    patch_stride: Sequence[int] = (4, 4)
    patch_padding: Sequence[int] = (3, 3)
    # Whether the skip path of a block that widens is projected; else the maximum and the mean of
    # what is pooled stand side by side (timm).
    use_expand_proj: bool = True
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0  # of the last block; it grows linearly from 0
    sep_pos_embed: bool = False  # position embeddings of space and of time, added
    # Position tables that fit every resolution: one of a mask unit, repeated, and one of the whole,
    # interpolated (Bolya et al., ICLR 2024).
    abs_win_pos_embed: bool = False
    global_pos_size: Sequence[int] = GLOBAL_POS_SIZE  # places of the latter, (height, width)
    pos_init: str = "random"  # how position tables start: random, as released, or waves

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
            elif "Sequence" in str(field.type) and not isinstance(value, Sequence):
                raise ValueError(f"{field.name}={value!r} must be a list of numbers")
        self._check_widths()
        self._check_geometry()

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each dimension, before any pooling."""
        return tuple(n // s for n, s in zip(self.input_size, self.patch_stride))

    @property
    def units(self) -> tuple[int, ...]:
        """Mask units along each dimension."""
        return units_of(self.grid, self.mask_unit_size)

    @property
    def positions(self) -> str:
        """Which tables there are (positions.py)."""
        if self.abs_win_pos_embed:
            return "window"
        if self.sincos_pos_embed:
            return "sincos"
        return "separate" if self.sep_pos_embed else "joint"

    @property
    def stage_ends(self) -> list[int]:
        """Number of the last block of each stage."""
        return [sum(self.stages[: i + 1]) - 1 for i in range(len(self.stages))]

    def _check_widths(self) -> None:
        if min(self.embed_dim, self.num_heads, self.in_chans, *self.stages) < 1:
            raise ValueError(
                f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, "
                f"in_chans={self.in_chans}, stages={self.stages}: all > 0"
            )

    def _check_geometry(self) -> None:
        ndim = len(self.input_size)
        for name in SIZES:
            value = tuple(getattr(self, name))
            if len(value) != ndim:
                size = tuple(self.input_size)
                raise ValueError(f"{name}={value} must have {ndim} numbers, like input_size={size}")
            least = 0 if name == "patch_padding" else 1
            if min(value) < least:
                raise ValueError(f"{name}={value}: none below {least}")
        if len(self.mask_unit_attn) != len(self.stages):
            raise ValueError(
                f"mask_unit_attn={tuple(self.mask_unit_attn)} needs one entry a stage, "
                f"stages={tuple(self.stages)}"
            )
        if not 0 <= self.q_pool < len(self.stages):
            raise ValueError(
                f"q_pool={self.q_pool} must be at least 0 and less than the number of stages, "
                f"{len(self.stages)}"
            )
        if self.pos_init not in POS_INIT:
            raise ValueError(f"pos_init={self.pos_init!r}: one of {', '.join(POS_INIT)}")
        if len(self.global_pos_size) != 2 or min(self.global_pos_size) < 1:
            size = tuple(self.global_pos_size)
            raise ValueError(f"global_pos_size={size} must be (height, width), both > 0")
        if not self.abs_win_pos_embed and tuple(self.global_pos_size) != GLOBAL_POS_SIZE:
            raise ValueError(
                f"global_pos_size={tuple(self.global_pos_size)} is for abs_win_pos_embed=True"
            )
        if self.abs_win_pos_embed and self.pos_init != "random":
            raise ValueError("abs_win_pos_embed=True has tables of its own kind: no pos_init")
        if self.sep_pos_embed and ndim != 3:
            raise ValueError(
                "sep_pos_embed=True is for video: input_size must be (frames, height, width)"
            )
        for d, name in enumerate("thw"[-ndim:]):
            self._check_dimension(d, name)

    def _check_dimension(self, d: int, name: str) -> None:
        pixels = self.input_size[d]
        patch = self.patch_stride[d]
        unit = self.mask_unit_size[d]
        stride = self.q_stride[d]
        if pixels <= 0 or pixels % (patch * unit):
            raise ValueError(
                f"input_size: {pixels} along {name} is not a multiple of a mask unit's "
                f"{patch * unit} (patch_stride {patch} x mask_unit_size {unit})"
            )
        if unit % stride**self.q_pool:
            raise ValueError(
                f"mask_unit_size: {unit} along {name} cannot be pooled {self.q_pool} times "
                f"by q_stride {stride}"
            )


@dataclass(frozen=True)
class HeadArgs(TrunkArgs):
    """A classifier's own arguments."""

    num_classes: int = 1000
    head_dropout: float = 0.0
    # What the classifier reads: the mean of the tokens, normed, as released; the means of every
    # time, side by side; the class token; or the mean of normed tokens. Default: the class token
    # where there is one, else the mean.
    head_pool: str | None = None
    head_init_scale: float = 0.001  # of the classifier's weights and biases at the start

    @property
    def pools_normed(self) -> bool:
        """Whether the default without a class token is norm_mean."""
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 0:
            raise ValueError(f"num_classes={self.num_classes} must not be negative")
        if self.head_pool is None:
            mean = "norm_mean" if self.pools_normed else "mean"
            object.__setattr__(self, "head_pool", "cls" if self.cls_token else mean)
        if self.head_pool not in HEAD_POOL:
            raise ValueError(f"head_pool={self.head_pool!r}: one of {', '.join(HEAD_POOL)}")
        if self.head_pool == "cls" and not self.cls_token:
            raise ValueError("head_pool='cls' needs cls_token=True")
        if self.head_pool == "time" and (len(self.input_size) != 3 or self.mask_unit_size[0] != 1):
            raise ValueError("head_pool='time' is for video, with mask units of one token in time")


@dataclass(frozen=True)
class DecoderArgs(TrunkArgs):
    """A masked autoencoder's own arguments.

    `decoder_num_heads`: the released code says 16, the paper's Table 11 says 8 for video; shapes do
    not tell.
    """

    num_classes: int = 0  # accepted for the official signature; there are no classes
    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    # Whether the decoder reads earlier stages, too (paper Table 3a).
    multi_scale: bool = True
    # Hidden units are deleted, or (`tokens`) one learned token stands for each of their tokens in
    # the encoder. Of MViTv2 also `separate`: deleted, and the others padded one by one.
    masking: str = "delete"
    # What is predicted of a hidden patch (targets.py).
    target: str = "pixel"

    @property
    def decoder_positions(self) -> str:
        """As `positions`, of the decoder's patches."""
        return "joint"

    @property
    def decoder_cls_token(self) -> bool:
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.decoder_embed_dim, self.decoder_depth, self.decoder_num_heads) < 1:
            raise ValueError(
                f"decoder_embed_dim={self.decoder_embed_dim}, decoder_depth={self.decoder_depth}, "
                f"decoder_num_heads={self.decoder_num_heads}: all > 0"
            )
        if self.decoder_embed_dim % self.decoder_num_heads:
            raise ValueError(
                f"decoder_num_heads={self.decoder_num_heads} must divide "
                f"decoder_embed_dim={self.decoder_embed_dim}"
            )
        if self.masking not in MASKING:
            raise ValueError(f"masking={self.masking!r}: one of {', '.join(MASKING)}")
        if self.target not in TARGETS:
            raise ValueError(f"target={self.target!r}: one of {', '.join(TARGETS)}")
        if self.target in ("pixel_mae_st", "pixel_videomae") and len(self.input_size) != 3:
            raise ValueError(f"target={self.target!r} is for video")


@dataclass(frozen=True)
class HieraArgs(HeadArgs):
    """Arguments of the classifier."""

    head_pool: str | None = "mean"


@dataclass(frozen=True)
class MAEArgs(DecoderArgs):
    """Arguments of the masked autoencoder. It pools twice, so that 4 tokens of a unit are left."""

    q_pool: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_separate(self)


@dataclass(frozen=True)
class ViTTrunkArgs(TrunkArgs):
    """Of a plain ViT: one stage, units of one token, no pooling. Defaults are B's, on images."""

    embed_dim: int = 768
    num_heads: int = 12
    stages: Sequence[int] = (12,)
    q_pool: int = 0
    mask_unit_size: Sequence[int] = (1, 1)
    mask_unit_attn: Sequence[bool] = (False,)
    patch_kernel: Sequence[int] = (16, 16)
    patch_stride: Sequence[int] = (16, 16)
    patch_padding: Sequence[int] = (0, 0)
    cls_token: bool = False  # one more token, which belongs to no place
    sincos_pos_embed: bool = False  # positions are waves that are not learned, as in VideoMAE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.q_pool or any(self.mask_unit_attn):
            raise ValueError("a plain ViT has no pooling and no mask-unit attention")
        if self.sincos_pos_embed and (self.sep_pos_embed or self.abs_win_pos_embed):
            raise ValueError("sincos_pos_embed=True: no sep_pos_embed, no abs_win_pos_embed")


@dataclass(frozen=True)
class ViTArgs(ViTTrunkArgs, HeadArgs):
    """Arguments of the plain ViT's classifier."""

    def __post_init__(self) -> None:
        if self.head_pool is None and self.sep_pos_embed:
            object.__setattr__(self, "head_pool", "mean")  # MAE-ST, which has a class token, too
        super().__post_init__()


@dataclass(frozen=True)
class ViTMAEArgs(ViTTrunkArgs, DecoderArgs):
    """Arguments of the plain ViT's masked autoencoder; defaults are VideoMAE's for B."""

    decoder_embed_dim: int = 384
    decoder_depth: int = 4
    decoder_num_heads: int = 6

    @property
    def decoder_positions(self) -> str:
        return "joint" if self.positions == "window" else self.positions

    @property
    def decoder_cls_token(self) -> bool:
        return self.cls_token

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_separate(self)


def _refuse_separate(args: DecoderArgs) -> None:
    if args.masking == "separate":
        raise ValueError("masking='separate' is for MViTv2: nothing here reaches beyond a unit")


@dataclass(frozen=True)
class BlockArgs:
    """One block of the encoder, as the arguments of the model determine it."""

    dim: int
    dim_out: int
    heads: int
    pool: int  # tokens pooled into one; 1 is none
    local: bool  # attention inside a unit
    drop_path_rate: float
    expand_proj: bool = True


def block_arguments(args: TrunkArgs) -> list[BlockArgs]:
    """The blocks of all stages, in order. Raises ValueError."""
    depth = sum(args.stages)
    dim = args.embed_dim
    heads = args.num_heads
    stage = 0
    blocks = []
    for i in range(depth):
        # Taken before the stage changes: the switch to global attention lags one block behind it.
        local = bool(args.mask_unit_attn[stage])
        dim_out = dim
        pool = 1
        if i - 1 in args.stage_ends:
            stage += 1
            dim_out = int(dim * args.dim_mul)
            heads = int(heads * args.head_mul)
            pool = math.prod(args.q_stride) if stage <= args.q_pool else 1
        if dim_out % heads:
            raise ValueError(
                f"num_heads: block {i} has {dim_out} channels, which {heads} heads do not divide"
            )
        # Plain numbers, also when the model is built on the device "meta".
        rate = args.drop_path_rate * i / max(depth - 1, 1)
        expand_proj = args.use_expand_proj or dim_out == dim
        if not expand_proj and dim_out != 2 * dim:
            raise ValueError(f"use_expand_proj=False needs dim_mul=2, not {args.dim_mul}")
        blocks.append(BlockArgs(dim, dim_out, heads, pool, local, rate, expand_proj))
        dim = dim_out
    return blocks

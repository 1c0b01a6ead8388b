"""The constructor arguments of MViTv2, and the steps that lead from it to Hiera (paper Table 1).

A step is a set of switches; each can be set by itself, too. Sizes are (frames, height, width) for
video and (height, width) for images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hiera_video.models.arguments import DecoderArgs, HeadArgs, TrunkArgs

MVITV2 = {
    "rel_pos": True,
    "pool_mode": "conv",
    "pool_everywhere": "qkv",
    "pool_overlap": True,
    "residual_pool": True,
    "kv_pool": True,
    "cls_token": True,
    "separate": False,
}
# What each step takes away. a: relative positions, and the class token. From there on overlapping
# kernels see one mask unit at a time, "separate-and-pad", which sparse pretraining needs.
CHANGES: dict[str, dict[str, Any]] = {
    "mvitv2": {},
    "a": {"rel_pos": False, "cls_token": False, "separate": True},
    "b": {"pool_mode": "max"},
    "c": {"pool_everywhere": "none"},
    "d": {"pool_overlap": False},
    "e": {"residual_pool": False},
    "f": {"kv_pool": False},
}
POOL_MODES = ("conv", "max")
POOL_EVERYWHERE = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "none": ()}
KERNEL = 3  # tokens along each dimension, of pooling that overlaps


def switches(step: str) -> dict[str, Any]:
    """All switches of MViTv2 after `step`. Raises ValueError."""
    if step not in CHANGES:
        raise ValueError(f"step={step!r}: one of {', '.join(CHANGES)}")
    found = dict(MVITV2)
    for name, changes in CHANGES.items():
        found |= changes
        if name == step:
            break
    return found


@dataclass(frozen=True)
class MViTTrunkArgs(TrunkArgs):
    """What MViTv2's classifier and masked autoencoder share; defaults are B's, on images.

    Where a switch is None, `step` decides.
    """

    sep_pos_embed: bool = True
    step: str = "mvitv2"
    rel_pos: bool | None = None  # relative positions in the blocks, in place of a table
    pool_mode: str | None = None  # of queries, keys and values: conv, a depthwise one, or max
    # Which of them are pooled by stride 1, too: qkv, kv (MViT of 2021) or none.
    pool_everywhere: str | None = None
    pool_overlap: bool | None = None  # kernels of 3 x 3 (x 3), or of the stride
    residual_pool: bool | None = None  # pooled queries are added to what attention finds
    kv_pool: bool | None = None  # keys and values are pooled; or attention inside mask units
    cls_token: bool | None = None  # type: ignore[assignment]  # resolved when it is made
    separate: bool | None = None  # overlapping kernels see one padded mask unit at a time
    kv_stride: Sequence[int] | None = None  # in stage 1; default: (1, 8, 8), images (4, 4)
    dim_mul_in_att: bool = True  # channels grow in the attention of a stage's first block, or in
    # the perceptron of the block before it (MViT of 2021, MaskFeat)

    def __post_init__(self) -> None:
        self._decide_switches()
        if self.kv_stride is None:
            stride = (1, 8, 8) if len(self.input_size) == 3 else (4, 4)
            object.__setattr__(self, "kv_stride", stride)
        if len(self.input_size) == 2:
            object.__setattr__(self, "sep_pos_embed", False)
        super().__post_init__()
        if self.pool_mode not in POOL_MODES:
            raise ValueError(f"pool_mode={self.pool_mode!r}: one of {', '.join(POOL_MODES)}")
        if self.pool_everywhere not in POOL_EVERYWHERE:
            known = ", ".join(POOL_EVERYWHERE)
            raise ValueError(f"pool_everywhere={self.pool_everywhere!r}: one of {known}")
        if self.pool_mode == "conv" and not self.pool_overlap:
            raise ValueError("pool_overlap=False is for pool_mode='max'")
        if not self.kv_pool and (self.pool_everywhere != "none" or self.pool_overlap):
            raise ValueError(
                "kv_pool=False, attention inside mask units, needs pool_everywhere='none' and "
                "pool_overlap=False"
            )
        if self.separate is False and not self.pool_overlap:
            raise ValueError("separate=False is for kernels that overlap: pool_overlap=True")
        if not self.use_expand_proj:
            raise ValueError("use_expand_proj=False is for Hiera")
        if self.rel_pos and self.abs_win_pos_embed:
            raise ValueError("abs_win_pos_embed=True needs rel_pos=False: step a and later")
        if self.cls_token and self.in_units:
            raise ValueError("cls_token=True: mask units on their own have none; step a and later")
        if self.rel_pos and self.in_units:
            raise ValueError(
                "rel_pos=True is for the whole grid of tokens: separate=False, masking='tokens'"
            )
        self._check_kv_stride()

    def _decide_switches(self) -> None:
        decided = switches(self.step)
        if len(self.input_size) == 2:
            decided["cls_token"] = False  # as published, that of images
        for name, value in decided.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def positions(self) -> str:
        return "none" if self.rel_pos else super().positions

    @property
    def in_units(self) -> bool:
        """Whether blocks see their tokens unit by unit, or as one grid."""
        return bool(self.separate) or not self.pool_overlap

    def _check_kv_stride(self) -> None:
        stride = tuple(self.kv_stride or ())
        if len(stride) != len(self.input_size):
            size = tuple(self.input_size)
            raise ValueError(
                f"kv_stride={stride} must have {len(size)} numbers, like input_size={size}"
            )
        if min(stride) < 1:
            raise ValueError(f"kv_stride={stride}: all > 0")

    @property
    def box(self) -> tuple[int, ...]:
        """Tokens that are pooled together, along each dimension: a mask unit, or the whole grid."""
        return tuple(self.mask_unit_size) if self.in_units else self.grid


@dataclass(frozen=True)
class MViTArgs(MViTTrunkArgs, HeadArgs):
    """Arguments of the classifier."""

    @property
    def pools_normed(self) -> bool:
        """Whether tokens are normed before their mean, as in PySlowFast, and not after it."""
        return self.step == "mvitv2"


@dataclass(frozen=True)
class MViTMAEArgs(MViTTrunkArgs, DecoderArgs):
    """Arguments of the masked autoencoder. Like Hiera's it pools twice."""

    q_pool: int = 2
    masking: str | None = None  # type: ignore[assignment]  # default: what the step allows

    def __post_init__(self) -> None:
        separate = self.separate
        self._decide_switches()
        if self.masking is None:
            # Relative positions and a class token are of the whole grid.
            whole = self.rel_pos or self.cls_token
            default = "tokens" if whole else "separate" if self.pool_overlap else "delete"
            object.__setattr__(self, "masking", default)
        if self.masking == "delete" and self.pool_overlap:
            raise ValueError(
                "masking='delete': kernels that overlap would see past what is deleted; "
                "'separate' or 'tokens'"
            )
        if separate is None and self.pool_overlap:
            object.__setattr__(self, "separate", self.masking == "separate")
        super().__post_init__()
        if self.masking != "tokens" and not self.in_units:
            raise ValueError(f"masking={self.masking!r} needs separate=True")


@dataclass(frozen=True)
class PoolingBlockArgs:
    """One block, as the arguments of the model determine it."""

    dim: int
    dim_att: int  # of its attention
    dim_out: int
    heads: int
    box: tuple[int, ...]  # tokens that are pooled together, before this block
    q_stride: tuple[int, ...]
    kv_stride: tuple[int, ...]
    local: bool  # attention inside a unit
    drop_path_rate: float


def pooling_blocks(args: MViTTrunkArgs) -> list[PoolingBlockArgs]:
    """The blocks of all stages, in order. Raises ValueError."""
    depth = sum(args.stages)
    dim = args.embed_dim
    heads = args.num_heads
    box = args.box
    kv_stride = tuple(args.kv_stride or ())
    none = (1,) * len(box)
    stage = 0
    blocks = []
    for i in range(depth):
        # As in Hiera, the switch to global attention lags one block behind the stage.
        local = not args.kv_pool and bool(args.mask_unit_attn[stage])
        q_stride = none
        dim_att = dim
        if i - 1 in args.stage_ends:
            stage += 1
            heads = int(heads * args.head_mul)
            if args.dim_mul_in_att:
                dim_att = int(dim * args.dim_mul)
            if stage <= args.q_pool:
                q_stride = tuple(args.q_stride)
                kv_stride = tuple(max(s // q, 1) for s, q in zip(kv_stride, q_stride))
        dim_out = dim_att
        if not args.dim_mul_in_att and i in args.stage_ends[:-1]:
            dim_out = int(dim * args.dim_mul)
        if dim_att % heads:
            raise ValueError(
                f"num_heads: block {i} has {dim_att} channels, which {heads} heads do not divide"
            )
        rate = args.drop_path_rate * i / max(depth - 1, 1)
        kv = kv_stride if args.kv_pool else none
        if any(n % s for n, s in zip(box, kv)):
            raise ValueError(
                f"kv_stride={tuple(args.kv_stride or ())}: block {i} pools {box} tokens by {kv}, "
                "which does not come out even"
            )
        blocks.append(
            PoolingBlockArgs(dim, dim_att, dim_out, heads, box, q_stride, kv, local, rate)
        )
        dim = dim_out
        box = tuple(n // q for n, q in zip(box, q_stride))
    return blocks

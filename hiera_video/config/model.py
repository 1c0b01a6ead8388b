"""The section `model` of a config: what is passed on to a model's constructor."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """The model: its name, and constructor arguments under their official names.

    What is left out keeps the named model's value (models/arguments.py).
    """

    # Name of a Hiera, an MViTv2 (mvit_v2_base_16x224), a plain ViT (vit_base_16x224), or of a
    # PyTorchVideo model: slow_r50, slowfast_r50, mvit_base_16x4, x3d_m.
    name: str = "hiera_base_16x224"
    # Frames, height, width. Default: data.num_frames, data.crop_size, data.crop_size.
    input_size: list[int] | None = None
    # Colour channels: 3, as videos are decoded.
    in_chans: int | None = None
    # Channels of the first stage.
    embed_dim: int | None = None
    # Attention heads of the first stage.
    num_heads: int | None = None
    # Number of classes. Default: the number of names in data.classes.
    num_classes: int | None = None
    # Blocks of each stage.
    stages: list[int] | None = None
    # How many stages begin with a pooling of the queries.
    q_pool: int | None = None
    # Tokens pooled into one along each dimension, at every pooling.
    q_stride: list[int] | None = None
    # Tokens of a mask unit along each dimension, before any pooling.
    mask_unit_size: list[int] | None = None
    # For each stage: attention inside a mask unit (true) or over all tokens (false).
    mask_unit_attn: list[bool] | None = None
    # Factor of the channels from stage to stage.
    dim_mul: float | None = None
    # Factor of the heads from stage to stage.
    head_mul: float | None = None
    # Kernel of the patch embedding.
    patch_kernel: list[int] | None = None
    # Stride of the patch embedding.
    patch_stride: list[int] | None = None
    # Padding of the patch embedding.
    patch_padding: list[int] | None = None
    # Whether the skip path of a block that widens is projected.
    use_expand_proj: bool | None = None
    # Hidden channels of a block's perceptron, as a factor of its channels.
    mlp_ratio: float | None = None
    # Stochastic depth: probability that the last block's branches are dropped for a sample.
    drop_path_rate: float | None = None
    # Dropout in front of the classifier.
    head_dropout: float | None = None
    # What the classifier reads: the mean of all tokens, (`time`) the mean of every time, (`cls`)
    # the class token, or (`norm_mean`) the mean of normed tokens.
    head_pool: str | None = None
    # Scale of the classifier's weights at the start.
    head_init_scale: float | None = None
    # Position embeddings of space and time added, in place of one of every position.
    sep_pos_embed: bool | None = None
    # Position tables that fit every resolution: one of a mask unit, repeated, and one of the whole,
    # interpolated.
    abs_win_pos_embed: bool | None = None
    # Places of the latter, height and width.
    global_pos_size: list[int] | None = None
    # How position tables start: random, as released, or waves, which shortens small pretrainings.
    pos_init: str | None = None
    # ViT: positions are waves that are not learned (VideoMAE).
    sincos_pos_embed: bool | None = None
    # ViT, MViTv2: a token that belongs to no place.
    cls_token: bool | None = None
    # MViTv2: how far it is on the way to Hiera (paper Table 1): mvitv2, a, b, c, d, e or f. Sets
    # the switches below, and cls_token.
    step: str | None = None
    # MViTv2: relative positions in the blocks, in place of position tables.
    rel_pos: bool | None = None
    # MViTv2: how queries, keys and values are pooled: conv or max.
    pool_mode: str | None = None
    # MViTv2: which of them are pooled by stride 1, too: qkv, kv or none.
    pool_everywhere: str | None = None
    # MViTv2: kernels of 3 tokens, which overlap, or of the stride.
    pool_overlap: bool | None = None
    # MViTv2: pooled queries are added to what attention finds.
    residual_pool: bool | None = None
    # MViTv2: keys and values are pooled (true), or attention stays inside mask units (false).
    kv_pool: bool | None = None
    # MViTv2: by how much keys and values are pooled in the first stage. Default: [1, 8, 8].
    kv_stride: list[int] | None = None
    # MViTv2: overlapping kernels see one mask unit at a time, padded with zeros.
    separate: bool | None = None
    # MViTv2: channels grow in attention, or in the perceptron of the block before.
    dim_mul_in_att: bool | None = None
    # Pretraining: channels of the decoder.
    decoder_embed_dim: int | None = None
    # Pretraining: blocks of the decoder.
    decoder_depth: int | None = None
    # Pretraining: attention heads of the decoder.
    decoder_num_heads: int | None = None
    # Pretraining: whether the decoder reads earlier stages, too.
    multi_scale: bool | None = None
    # Pretraining: what becomes of hidden units: delete, tokens (learned ones stand for them in the
    # encoder) or, of MViTv2, separate (deleted, and the others pooled one by one). Default: delete;
    # of MViTv2 as published, tokens; of its steps a, b and c, separate.
    masking: str | None = None
    # Pretraining: what is predicted: pixel, pixel_mae_st, pixel_videomae or hog
    # (models/targets.py).
    target: str | None = None

"""What is exported of a model: one function of a clip, with what it gives by name."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.inference import VideoModel
from hiera_video.models.attention import attend
from hiera_video.models.blocks import Attention, max_pool

INPUT = "clip"


class Graph(nn.Module):
    """clip [B, 3, T, S, S] -> a tensor for each of `names`.

    `logits` [B, classes], `features` [B, dim] (what the classifier reads) and, with `maps`, the map
    of every stage [B, t, h, w, C]. Of a masked autoencoder there are no logits. The clip is float
    and normalised or, with `pixels`, uint8 as it was decoded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: VideoModel, *, maps: bool = False, pixels: bool = False):
        super().__init__()
        encoder: Any = model.encoder
        self.encoder = encoder
        logits = ["logits"] if model.is_classifier else []
        stages = [f"stage{k}" for k in range(1, len(encoder.stage_ends) + 1)]
        self.names = [*logits, "features", *(stages if maps else [])]
        # Of normalise (data/transforms.py), whose cache an exporter cannot follow.
        shape = (1, -1, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(model.format.mean).view(shape))
        self.register_buffer("std", torch.tensor(model.format.std).view(shape))
        self.pixels = pixels

    def forward(self, clip: Tensor) -> tuple[Tensor, ...]:
        if self.pixels:
            clip = (clip.float() / 255 - self.mean) / self.std
        maps: Sequence[Tensor] = ()
        if "stage1" in self.names:
            features, maps = self.encoder.features_and_maps(clip)
        else:
            features = self.encoder.features(clip)
        logits = [self.encoder.head(features)] if "logits" in self.names else []
        return (*logits, features, *maps)

    def for_onnx(self) -> "Graph":
        """A copy with SplitAttention in the place of every Attention."""
        split = copy.deepcopy(self)
        for block in split.modules():
            for name, part in block.named_children():
                if isinstance(part, Attention):
                    setattr(block, name, SplitAttention(part))
        return split


class SplitAttention(nn.Module):
    """The same function, whose queries, keys and values are three products.

    Of one product for all three, which is what pays in torch, onnxruntime makes three copies. Two
    biases fall away, as the weights of attention sum to 1: the keys' changes nothing, and the
    values' is added behind it as well.
    """

    def __init__(self, attention: Attention):
        super().__init__()
        self.heads = attention.heads
        self.pool = attention.pool
        self.local = attention.local
        of_queries, _, of_values = attention.qkv.bias.chunk(3)
        weights = attention.qkv.weight.chunk(3)
        biases = (of_queries, None, None)
        self.parts = nn.ModuleList(map(_linear, weights, biases))
        weight = attention.proj.weight
        self.proj = _linear(weight, attention.proj.bias + weight @ of_values)

    def forward(self, x: Tensor) -> Tensor:
        """As Attention: [B, U, L, C] -> [B, U, L / pool, C_out]"""
        batch, units = x.shape[:2]
        q, k, v = (part(x) for part in self.parts)
        q = max_pool(q, self.pool)
        rows = batch * units if self.local else batch
        size = (rows, -1, self.heads, q.shape[-1] // self.heads)
        x = attend(*(part.reshape(size).transpose(1, 2) for part in (q, k, v)))
        return self.proj(x.transpose(1, 2).reshape(batch, units, -1, self.proj.in_features))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear

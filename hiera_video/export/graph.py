"""What is exported of a model: one function of a clip, with what it gives by name."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.inference import VideoModel

INPUT = "clip"
STAGES = ("stage1", "stage2", "stage3", "stage4")


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
        self.encoder: Any = model.encoder
        logits = ["logits"] if model.is_classifier else []
        self.names = [*logits, "features", *(STAGES if maps else [])]
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

"""What a model is trained for: a task is a model and its loss, `forward(batch) -> (loss, logs)`.

The batch is that of data/dataset.py, its clips on the device. Every view of a sample is a clip of its own here.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.data.dataset import Batch
from hiera_video.data.transforms import normalise
from hiera_video.models.mae import MaskedAutoencoder, draw_visible

Logs = dict[str, Tensor]
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ClassifyConfig:
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of the Beta distribution; 0 is off
    cutmix: float = 0.0  # the same
    mix_prob: float = 1.0  # share of the batches that are mixed
    switch_prob: float = 0.5  # share of them that are cut and not blended, where both are on


@dataclass(frozen=True)
class MAEConfig:
    mask_ratio: float = 0.9
    probe_videos: int = (
        1000  # of data.train and of data.val, for the nearest-neighbour probe every train.val_every epochs
    )


class Classify(nn.Module):
    """Cross-entropy against soft labels, with mixup or cutmix of the batch with itself in reverse order."""

    def __init__(self, model: nn.Module, config: ClassifyConfig, *, num_classes: int, mean: tuple, std: tuple):
        super().__init__()
        self.model, self.config, self.num_classes, self.mean, self.std = model, config, num_classes, mean, std

    def forward(self, batch: Batch) -> tuple[Tensor, Logs]:
        views = batch["clip"].shape[1]
        clips = normalised_clips(batch, self.mean, self.std)
        labels = batch["label"].repeat_interleave(views)
        target = soft_labels(labels, self.num_classes, self.config.label_smoothing)
        clips, target = mix(clips, target, self.config)
        logits = self.model(clips).float()
        return F.cross_entropy(logits, target), {}


class MaskedAutoencode(nn.Module):
    """Reconstruction of hidden pixels. Which units are hidden follows from the sample's seed, like its crop."""

    def __init__(self, model: MaskedAutoencoder, config: MAEConfig, *, mean: tuple, std: tuple):
        super().__init__()
        draw_visible(torch.zeros(1, model.num_units), config.mask_ratio)  # raises ValueError for a ratio of no use
        self.model, self.config, self.mean, self.std = model, config, mean, std

    def forward(self, batch: Batch) -> tuple[Tensor, Logs]:
        clips = normalised_clips(batch, self.mean, self.std)
        generator = torch.Generator()
        seeds = batch["seed"].flatten().tolist()
        noise = torch.stack([torch.rand(self.model.num_units, generator=generator.manual_seed(s)) for s in seeds])
        out = self.model(clips, mask_ratio=self.config.mask_ratio, noise=noise.to(clips.device, non_blocking=True))
        return out.loss, {}


def normalised_clips(batch: Batch, mean: tuple, std: tuple) -> Tensor:
    """uint8 [B, V, C, T, S, S] -> float32 [B * V, C, T, S, S]"""
    clips, erase, seeds = (batch[name].flatten(0, 1) for name in ("clip", "erase", "seed"))
    return normalise(clips, mean, std, erase=erase, seeds=seeds)


def soft_labels(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """int64 [N] -> float32 [N, num_classes]; a share `smoothing` is spread over all classes, the right one included."""
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def mix(clips: Tensor, target: Tensor, config: ClassifyConfig) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al.) or cutmix (Yun et al.), one draw a batch, from torch's generator (seeded by the loop)."""
    rng = np.random.default_rng(int(torch.randint(2**62, ())))
    if not (config.mixup or config.cutmix) or rng.random() >= config.mix_prob:
        return clips, target
    cut = config.cutmix > 0 and (not config.mixup or rng.random() < config.switch_prob)
    alpha = config.cutmix if cut else config.mixup
    share = float(rng.beta(alpha, alpha))  # of each clip itself
    other = clips.flip(0)
    if cut:
        height, width = clips.shape[-2:]
        h, w = (int(n * (1 - share) ** 0.5) for n in (height, width))
        y, x = int(rng.integers(height)), int(rng.integers(width))  # the box's centre; what lies outside is cut off
        top, bottom, left, right = (
            max(y - h // 2, 0),
            min(y + h // 2, height),
            max(x - w // 2, 0),
            min(x + w // 2, width),
        )
        clips = clips.clone()
        clips[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        clips = clips * share + other * (1 - share)
    return clips, target * share + target.flip(0) * (1 - share)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

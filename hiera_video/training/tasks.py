"""What a model is trained for: a task is a model and its loss, `forward(batch) -> (loss, logs)`.

The batch is that of data/dataset.py, its clips on the device. Every view of a sample is a clip of
its own here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.config import ClassifyConfig, MAEConfig
from hiera_video.data.dataset import Batch
from hiera_video.data.transforms import normalise
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.models.masking import CELL, running_cells
from hiera_video.models.token_dial import TokenDial
from hiera_video.training.losses import classification_loss

Logs = dict[str, Tensor]


class Classify(nn.Module):
    """Cross-entropy with soft labels; mixup or cutmix of the batch with itself in reverse order.

    Of several labels a video, a binary loss of each class (losses.py). With a token dial a share of
    the mask units alone is computed, drawn by each clip's seed.
    """

    class_weights: Tensor

    def __init__(
        self,
        model: Any,
        config: ClassifyConfig,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        class_weights: Tensor | None = None,
    ):
        """class_weights: [classes], of the loss; default 1 each"""
        super().__init__()
        self.model = model
        self.config = config
        self.num_classes = num_classes
        weights = torch.ones(num_classes) if class_weights is None else class_weights
        self.register_buffer("class_weights", weights, persistent=False)
        self.mean = mean
        self.std = std
        self._dial = TokenDial(config.keep_units, config.keep_units_by)

    def forward(self, batch: Batch) -> tuple[Tensor, Logs]:
        views = batch["clip"].shape[1]
        clips = normalised_clips(batch, self.mean, self.std)
        labels = batch["label"].repeat_interleave(views, dim=0)
        smoothing = self.config.label_smoothing
        if self.config.multilabel:
            target = labels * (1 - smoothing) + smoothing / 2
        else:
            target = soft_labels(labels, self.num_classes, smoothing)
        clips, target = mix(clips, target, self.config)
        units = None
        if self._dial.share < 1:
            units = self._dial.choose(self.model, clips, batch["seed"].flatten().tolist())
        logits = (self.model(clips) if units is None else self.model(clips, units)).float()
        return classification_loss(logits, target, self.config, self.class_weights), {}


class MaskedAutoencode(nn.Module):
    """Reconstruction of hidden pixels. A sample's seed decides what is hidden, and what predicted.

    Raises ValueError for a mask ratio that leaves nothing visible.
    """

    def __init__(
        self,
        model: MaskedAutoencoder,
        config: MAEConfig,
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__()
        model.draw_visible(hidden_draws(model, config, [0]).units, config.mask_ratio)  # may raise
        self.model = model
        self.config = config
        self.mean = mean
        self.std = std

    def forward(self, batch: Batch) -> tuple[Tensor, Logs]:
        clips = normalised_clips(batch, self.mean, self.std)
        seeds = batch["seed"].flatten().tolist()
        draws = hidden_draws(self.model, self.config, seeds).to(clips.device)
        out = self.model(
            clips,
            mask_ratio=self.config.mask_ratio,
            noise=draws.units,
            decoder_keep=self.config.decoder_keep,
            decoder_noise=draws.patches,
        )
        return out.loss, {}


class HiddenDraws(NamedTuple):
    """Decide what a masked autoencoder hides of each clip, and which of it is predicted."""

    units: Tensor  # [B, U], or [B, U / T] of tubes
    patches: Tensor | None  # [B, N]; None where all is predicted

    def to(self, device: torch.device) -> "HiddenDraws":
        patches = self.patches
        if patches is not None:
            patches = patches.to(device, non_blocking=True)
        return HiddenDraws(self.units.to(device, non_blocking=True), patches)


def hidden_draws(model: MaskedAutoencoder, config: MAEConfig, seeds: Sequence[int]) -> HiddenDraws:
    """The draws of each clip's seed."""
    generator = torch.Generator()
    patches = model.patch_index.numel()
    draws = model.num_tubes if config.mask == "tube" else model.num_units
    units: list[Tensor] = []
    orders: list[Tensor] = []
    phases: list[Tensor] = []
    for seed in seeds:
        generator.manual_seed(seed)
        units.append(torch.rand(draws, generator=generator))
        if config.decoder_keep < 1:
            orders.append(torch.rand(patches, generator=generator))
            phases.append(torch.randint(CELL, (), generator=generator))
    if not orders:
        return HiddenDraws(torch.stack(units), None)
    noise = torch.stack(orders)
    if config.decoder_keep_by == "running_cell":
        noise = running_cells(
            noise, torch.stack(phases), share=config.decoder_keep, grid=model.patch_grid
        )
    return HiddenDraws(torch.stack(units), noise)


def normalised_clips(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B, V, C, T, S, S] -> float32 [B * V, C, T, S, S], boxes erased"""
    clips = batch["clip"].flatten(0, 1)
    erase = torch.as_tensor(batch["erase"]).flatten(0, 1)
    seeds = torch.as_tensor(batch["seed"]).flatten(0, 1)
    return normalise(clips, mean, std, erase=erase, seeds=seeds)


def soft_labels(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """int64 [N] -> float32 [N, num_classes]

    A share `smoothing` is spread over all classes, the right one included.
    """
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def mix(clips: Tensor, target: Tensor, config: ClassifyConfig) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al.) or cutmix (Yun et al.) of a batch, by one draw from torch's generator.

    clips [N, C, T, S, S], target [N, num_classes]. The loop seeds the generator.
    """
    rng = np.random.default_rng(int(torch.randint(2**62, ())))
    if not (config.mixup or config.cutmix) or rng.random() >= config.mix_prob:
        return clips, target
    cut = config.cutmix > 0 and (not config.mixup or rng.random() < config.switch_prob)
    alpha = config.cutmix if cut else config.mixup
    share = float(rng.beta(alpha, alpha))  # of each clip itself
    other = clips.flip(0)
    if cut:
        height, width = clips.shape[-2:]
        top, bottom, left, right = _random_box(height, width, 1 - share, rng)
        clips = clips.clone()
        clips[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        clips = clips * share + other * (1 - share)
    if config.multilabel and config.mix_targets == "max":
        return clips, torch.maximum(target, target.flip(0))
    return clips, target * share + target.flip(0) * (1 - share)


def _random_box(
    height: int, width: int, area: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box with a share `area` of the frame.

    Its centre lies anywhere; what then lies outside the frame is cut off, so it may be smaller.
    """
    h = int(height * area**0.5)
    w = int(width * area**0.5)
    y = int(rng.integers(height))
    x = int(rng.integers(width))
    return max(y - h // 2, 0), min(y + h // 2, height), max(x - w // 2, 0), min(x + w // 2, width)

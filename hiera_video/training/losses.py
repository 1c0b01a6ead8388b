"""Losses of classification, of one label a video or of several.

Legend: N clips, C classes; logits and targets [N, C], targets from 0 to 1; weights [C].
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.config import ClassifyConfig


def classification_loss(
    logits: Tensor, target: Tensor, config: ClassifyConfig, weights: Tensor
) -> Tensor:
    """Cross-entropy, weighted by the class; or, of several labels, the config's binary loss.

    The mean over clips and, of several labels, over classes: weights are 1 on average over the
    examples, so that the rate of learning stays what it was.
    """
    if not config.multilabel:
        weighted = None if config.class_weights == "none" else weights
        return F.cross_entropy(logits, target, weight=weighted)
    # A class's weight is that of its examples: what is not there says little about a rare class.
    each = torch.where(target > 0.5, weights, 1.0)
    return (binary_losses(logits, target, config) * each).mean()


def binary_losses(logits: Tensor, target: Tensor, config: ClassifyConfig) -> Tensor:
    """[N, C]"""
    if config.multilabel_loss == "focal":
        # Lin et al., 2017: what is right already counts less.
        right = torch.sigmoid(logits) * target + torch.sigmoid(-logits) * (1 - target)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (1 - right) ** config.focal_gamma * losses
    if config.multilabel_loss == "asymmetric":
        # Ridnik et al., 2021: labels that are not there, the many, by a power and a margin of
        # their own.
        there, absent = config.asymmetric_gammas
        present = torch.sigmoid(logits)
        missing = (1 - present + config.asymmetric_margin).clamp(max=1)
        of_present = target * F.logsigmoid(logits) * (1 - present) ** there
        of_missing = (1 - target) * missing.clamp(min=1e-8).log() * (1 - missing) ** absent
        return -(of_present + of_missing)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def class_weights(examples: np.ndarray, config: ClassifyConfig) -> Tensor:
    """examples: [C], of every class -> float32 [C], 1 on average over the examples

    A class without an example has the weight of one that has one.
    """
    counts = np.maximum(examples.astype(np.float64), 1)
    if config.class_weights == "none":
        return torch.ones(len(counts))
    if config.class_weights == "inverse":
        weights = 1 / counts
    elif config.class_weights == "inverse_sqrt":
        weights = 1 / np.sqrt(counts)
    else:
        # Cui et al., 2019: the examples of a class overlap, and each new one adds less.
        weights = (1 - config.effective_beta) / (1 - config.effective_beta**counts)
    weights = weights * counts.sum() / (weights * counts).sum()
    return torch.from_numpy(weights).float()

"""Optimizer, parameter groups and the learning-rate schedule."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.config import OptimConfig
from hiera_video.system.distributed import full_tensor


def learning_rate(config: OptimConfig, progress: float, warmup: float) -> float:
    """A pure function of progress (0 to 1): a linear warm-up, then half a cosine down.

    warmup: share of the run.
    """
    if progress < warmup:
        return config.start_lr + (config.lr - config.start_lr) * progress / warmup
    done = (progress - warmup) / max(1 - warmup, 1e-12)
    return config.end_lr + (config.lr - config.end_lr) * 0.5 * (
        1 + math.cos(math.pi * min(done, 1.0))
    )


def layer_of(name: str, depth: int) -> int:
    """0 for the embeddings, i + 1 for block i, depth + 1 for what comes after the blocks."""
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if name.startswith(("patch_embed.", "pos_embed", "cls_token")) else depth + 1


def parameter_groups(model: Any, *, weight_decay: float, layer_decay: float) -> list[dict]:
    """Groups with their own `weight_decay` and `lr_scale`.

    No decay for vectors (biases, norms) and position tables. Layer decay: scale = d ** (depth + 1 -
    layer), so that the last block gets d and the head 1 (SlowFast and MAE-ST, where the paper's
    runs were made; Hiera's own later image code counts one power less). Raises ValueError if it is
    asked of a model without numbered blocks of its own.
    """
    blocks = getattr(model, "blocks", None)
    if layer_decay != 1.0 and blocks is None:
        raise ValueError(
            f"optim.layer_decay={layer_decay} is for models of numbered blocks; this one has none"
        )
    depth = len(blocks) if blocks is not None else 0
    undecayed = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name in undecayed else weight_decay
        scale = layer_decay ** (depth + 1 - layer_of(name, depth)) if layer_decay != 1.0 else 1.0
        group = groups.setdefault(
            (decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale}
        )
        group["params"].append(parameter)
    return list(groups.values())


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scales all gradients so that their common L2 norm is at most `limit` (0: not at all).

    Returns the norm before.
    """
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
    if limit:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


class Ema:
    """An exponential moving average of a model's parameters.

    average = decay * average + (1 - decay) * weights

    The decay begins low, so that a short run does not end with the weights it began with.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After that step, counted from 1."""
        weights = [p.detach() for _, p in model.named_parameters()]
        decay = ema_decay(self.decay, step)
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)


def ema_decay(decay: float, step: int) -> float:
    """Of that step: `decay`, or less where the average is still young (as timm and TensorFlow)."""
    return min(decay, (1 + step) / (10 + step))


def share_of_first(decay: float, steps: int) -> float:
    """What an average holds of the weights before the first step, after `steps` of them."""
    return math.prod(ema_decay(decay, step) for step in range(1, steps + 1))


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(
        model, weight_decay=config.weight_decay, layer_decay=config.layer_decay
    )
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    if config.name == "sgd":
        optimizer = torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
        if config.momentum:
            # As the first step would make them; where that one is skipped, it would leave anything.
            for group in groups:
                for parameter in group["params"]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    raise ValueError(f"optim.name={config.name!r} must be adamw or sgd")


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]

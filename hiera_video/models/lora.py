"""Low-rank adaptation (LoRA; Hu et al., ICLR 2022) of a Hiera's blocks.

    y = W x + alpha / rank * B (A x)        A [rank, in], B [out, rank]

W and everything else in the blocks and the embeddings stay as they are; A, B and what comes after
the blocks are trained. B begins at zero, so that training begins at the model as it is. The weights
that are kept are the merged ones, W + alpha / rank * B A, under the model's own names.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.models.linear import Linear
from hiera_video.models.trunk import Trunk

DOWN = "lora_a"
UP = "lora_b"


class LoraLinear(Linear):
    """The layer `base` with its own parameters, and A and B beside them."""

    def __init__(self, base: nn.Linear, *, rank: int, scale: float, draws: torch.Generator):
        nn.Module.__init__(self)
        self.in_features = base.in_features
        self.out_features = base.out_features
        self.scale = scale
        self.weight = base.weight
        self.bias = base.bias
        bound = 1 / math.sqrt(base.in_features)
        down = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=draws)
        device = base.weight.device
        self.lora_a = nn.Parameter(down.to(device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return _Adapted.apply(x, self.weight, self.bias, self.lora_a, self.lora_b, self.scale)


class _Adapted(torch.autograd.Function):
    """One product with the merged weight, and no gradient of it: only those of A and B.

    Beside two products with A and B and a sum over the output, this is what a plain layer does
    forward, and half of that backward.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        return F.linear(x, _merge(weight, down, up, scale), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, down, up, ctx.scale = inputs
        ctx.save_for_backward(x, weight, down, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up = ctx.saved_tensors
        kind = grad.dtype  # of autocast, where that is on
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ _merge(weight, down, up, ctx.scale).to(kind)).to(x.dtype)
        rows = grad.flatten(0, -2)
        inputs = x.flatten(0, -2).to(kind)
        grad_down = (rows @ up.to(kind)).t() @ inputs
        grad_up = rows.t() @ (inputs @ down.t().to(kind))
        scaled = ((ctx.scale * g).to(down.dtype) for g in (grad_down, grad_up))
        return grad_x, None, None, *scaled, None


def _merge(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    with torch.autocast(weight.device.type, enabled=False):
        return torch.addmm(weight, up, down, alpha=scale)


@dataclass(frozen=True)
class Lora:
    """rank: of A and B. alpha: their weight is alpha / rank."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def add_to(self, model: Trunk, *, seed: int) -> None:
        """Beside the linear layers of attention and perceptron, in all blocks that are trained."""
        draws = torch.Generator().manual_seed(seed)
        model.freeze_embeddings()
        model.blocks.requires_grad_(False)
        trained: Any = model.blocks[model.frozen_blocks :]
        for block in trained:
            for part, names in ((block.attn, ("qkv", "proj")), (block.mlp, ("fc1", "fc2"))):
                for name in names:
                    base = getattr(part, name)
                    lora = LoraLinear(base, rank=self.rank, scale=self.scale, draws=draws)
                    setattr(part, name, lora)

    def merged(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of a model without A and B that computes the same."""
        kept = {}
        for name, tensor in weights.items():
            layer, _, what = name.rpartition(".")
            if what in (DOWN, UP):
                continue
            if what == "weight" and f"{layer}.{UP}" in weights:
                down, up = weights[f"{layer}.{DOWN}"], weights[f"{layer}.{UP}"]
                tensor = _merge(tensor, down, up, self.scale)
            kept[name] = tensor
        return kept

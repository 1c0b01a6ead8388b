"""What an encoder is worth without training it: classifiers on its features, which stay as they are.

Nearest neighbours: a video's class is voted by the K most similar labelled ones (cosine similarity, weighted by
exp(similarity / T)), the way of Wu et al. 2018 and DINO. Linear: one layer on standardised features. Attentive: one query that
attends to all tokens of a map, as V-JEPA has it. Both are trained at several rates in one pass.

Legend: N labelled videos, M asked ones, dim channels, L tokens.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.data.annotations import VideoList
from hiera_video.data.dataset import Batch
from hiera_video.distributed import World

NEIGHBOURS, TEMPERATURE = 20, 0.07
AT_A_TIME = 1024  # asked videos whose similarities are held


def spread_rows(videos: VideoList, count: int) -> list[int]:
    """At most `count` labelled rows, evenly over the list."""
    labelled = np.flatnonzero(videos.labels >= 0)
    if len(labelled) <= count:
        return labelled.tolist()
    return labelled[np.linspace(0, len(labelled) - 1, count).astype(int)].tolist()


class FeatureBank:
    """A consumer of evaluate(): the mean feature of every video."""

    def __init__(self) -> None:
        self.rows: dict[int, Tensor] = {}

    def update(self, batch: Batch, out: dict[str, Tensor]) -> None:
        for row, feature in zip(batch["index"].tolist(), out["features"].mean(1)):
            self.rows[row] = feature

    def missing(self, row: int, reason: str) -> None:
        """Left out: a probe is a sample."""

    def merged(self, world: World, videos: VideoList) -> tuple[Tensor, Tensor]:
        """(features [N, dim], labels [N]) of all ranks, on rank 0, in list order; empty elsewhere."""
        rows = dict(sorted((row, f) for part in world.gather(self.rows) for row, f in part.items()))
        if not rows:
            return torch.zeros(0, 1), torch.zeros(0, dtype=torch.long)
        return torch.stack(list(rows.values())), torch.tensor([videos.label(row) for row in rows])


def nearest_neighbours(known: Tensor, labels: Tensor, asked: Tensor, *, k: int = NEIGHBOURS) -> Tensor:
    """known [N, dim] of classes labels [N], asked [M, dim] -> what the neighbours of each vote for, [M, classes]."""
    known, votes = F.normalize(known, dim=1), torch.zeros(len(asked), int(labels.max()) + 1)
    for some, votes_of_some in zip(asked.split(AT_A_TIME), votes.split(AT_A_TIME)):
        near = (F.normalize(some, dim=1) @ known.T).topk(min(k, len(known)), dim=1)
        votes_of_some.scatter_add_(1, labels[near.indices], (near.values / TEMPERATURE).exp())
    return votes


class LinearProbe(nn.Module):
    """features [B, dim] -> logits. Standardised by what it is told of the labelled ones, so that one rate fits every model."""

    def __init__(self, known: Tensor, num_classes: int):
        super().__init__()
        self.register_buffer("mean", known.mean(0))
        self.register_buffer("std", known.std(0) + 1e-6)
        self.layer = nn.Linear(known.shape[1], num_classes)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer((features - self.mean) / self.std)


class AttentiveProbe(nn.Module):
    """tokens [B, L, dim] -> logits: a learned query attends to the tokens, then a small perceptron, then a layer."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.before, self.between, self.after = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        heads = max((h for h in range(1, dim // 64 + 1) if dim % h == 0), default=1)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.perceptron = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.layer = nn.Linear(dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.before(tokens)
        pooled = self.query + self.attention(self.query.expand(len(tokens), -1, -1), tokens, tokens)[0]  # [B, 1, dim]
        pooled = pooled + self.perceptron(self.between(pooled))
        return self.layer(self.after(pooled)[:, 0])


def train_probes(
    probes: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    take: Callable[[Tensor, torch.Generator], Tensor],
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> None:
    """Trains all probes on the same batches, each with its own parameter group, at rates that fall by a cosine to 0.

    take: (rows, generator) -> their features; rows index `labels`.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(labels) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(batch_size):
            features = take(rows, generator)
            loss = sum(F.cross_entropy(probe(features), labels[rows]) for probe in probes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

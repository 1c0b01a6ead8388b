"""What an encoder is worth without training it: classifiers on features that stay as they are.

Nearest neighbours: a video's class is voted by the K most similar labelled ones (cosine similarity,
weighted by exp(similarity / T)), the way of Wu et al. 2018 and DINO. Linear: one layer on
standardised features. Attentive: one query that attends to all tokens of a map, as V-JEPA has it.
Both are trained at several rates in one pass.

Legend: N labelled videos, M videos in question, dim channels, L tokens.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.data.dataset import Batch
from hiera_video.data.lists import VideoList
from hiera_video.system.distributed import World

NEIGHBOURS = 20
TEMPERATURE = 0.07
RIDGE = 1.0
QUERIES = 1024  # videos whose similarities are held at a time


def spread_rows(videos: VideoList, count: int, *, labelled: bool = True) -> list[int]:
    """At most `count` rows, evenly over the list. labelled: rows without a label are left out."""
    rows = np.flatnonzero(videos.labels >= 0) if labelled else np.arange(len(videos))
    if len(rows) <= count:
        return rows.tolist()
    return rows[np.linspace(0, len(rows) - 1, count).astype(int)].tolist()


class Bank:
    """A consumer of evaluate(): every output of every video, its mean over the views."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Tensor]] = {}

    def update(self, batch: Batch, out: dict[str, Tensor]) -> None:
        means = {name: value.mean(1) for name, value in out.items()}
        for k, row in enumerate(batch["index"].tolist()):
            self.rows[row] = {name: mean[k] for name, mean in means.items()}

    def missing(self, row: int, reason: str) -> None:
        """Left out: a probe is a sample."""

    def merged(self, world: World, videos: VideoList) -> "Gathered | None":
        """Of all ranks, in list order, on rank 0; None elsewhere, and where no video was read."""
        found = {row: out for part in world.gather(self.rows) for row, out in part.items()}
        if not found:
            return None
        rows = sorted(found)
        outputs = {name: torch.stack([found[row][name] for row in rows]) for name in found[rows[0]]}
        return Gathered(outputs, torch.tensor([videos.label(row) for row in rows]))


class Gathered(NamedTuple):
    """Outputs of N videos, [N, ...] each, and their labels."""

    outputs: dict[str, Tensor]
    labels: Tensor


def nearest_neighbours(
    train_features: Tensor, labels: Tensor, queries: Tensor, *, k: int = NEIGHBOURS
) -> Tensor:
    """What the neighbours of each query vote for: [M, classes].

    train_features [N, dim], labels [N], queries [M, dim]
    """
    train_features = F.normalize(train_features, dim=1)
    votes = torch.zeros(len(queries), int(labels.max()) + 1)
    for some, votes_of_some in zip(queries.split(QUERIES), votes.split(QUERIES)):
        similarity = F.normalize(some, dim=1) @ train_features.T  # [some, N]
        near = similarity.topk(min(k, len(train_features)), dim=1)
        votes_of_some.scatter_add_(1, labels[near.indices], (near.values / TEMPERATURE).exp())
    return votes


def ridge(
    train_features: Tensor, labels: Tensor, queries: Tensor, *, strength: float = RIDGE
) -> Tensor:
    """Scores of a linear classifier in closed form: least squares on standardised features.

    Quick, and the same whenever it is asked; LinearProbe is the one to report. strength: of the
    penalty, as a share of the features' own energy. train_features [N, dim], labels [N], queries
    [M, dim] -> [M, classes]
    """
    mean = train_features.mean(0)
    std = train_features.std(0) + 1e-6
    x = ((train_features - mean) / std).double()
    z = ((queries - mean) / std).double()
    y = F.one_hot(labels).double()
    share = y.mean(0)
    gram = x @ x.T  # [N, N]
    penalty = strength * gram.diagonal().mean() * torch.eye(len(x), dtype=x.dtype)
    return (z @ x.T @ torch.linalg.solve(gram + penalty, y - share) + share).float()


class LinearProbe(nn.Module):
    """features [B, dim] -> logits: one layer on standardised features.

    They are standardised by the training features, so that one rate fits every model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, train_features: Tensor, num_classes: int):
        super().__init__()
        self.register_buffer("mean", train_features.mean(0))
        self.register_buffer("std", train_features.std(0) + 1e-6)
        self.layer = nn.Linear(train_features.shape[1], num_classes)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer((features - self.mean) / self.std)


class AttentiveProbe(nn.Module):
    """tokens [B, L, dim] -> logits: a learned query attends to the tokens, then a perceptron.

    One query needs no key and no value of a token: what it asks for is brought to the side of the
    tokens, and what it finds is projected when it is summed: the same attention in a tenth of the
    time.
    """

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.before = nn.LayerNorm(dim)
        self.between = nn.LayerNorm(dim)
        self.after = nn.LayerNorm(dim)
        heads = max((h for h in range(1, dim // 64 + 1) if dim % h == 0), default=1)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.perceptron = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.layer = nn.Linear(dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        pooled = self.query + self.attend(tokens)[:, None]  # [B, 1, dim]
        pooled = pooled + self.perceptron(self.between(pooled))
        return self.layer(self.after(pooled)[:, 0])

    def attend(self, tokens: Tensor) -> Tensor:
        """What `attention` gives for the query and the normalised tokens: [B, dim]."""
        heads = self.attention.num_heads
        dim = tokens.shape[-1]
        weights = self.attention.in_proj_weight.view(3, heads, -1, dim)  # query, key, value
        biases = self.attention.in_proj_bias.view(3, heads, -1)
        query = weights[0] @ self.query.flatten() + biases[0]  # [heads, channels of a head]
        # Biases of the keys, and of the tokens' norm, add the same to every token: softmax drops
        # them.
        asked = torch.einsum("hc,hcd->hd", query, weights[1]) * self.before.weight
        x = F.layer_norm(tokens, (dim,), eps=self.before.eps)
        scores = x @ asked.T / math.sqrt(query.shape[-1])  # [B, L, heads]
        found = scores.softmax(dim=1).transpose(1, 2) @ x  # [B, heads, dim]
        found = found * self.before.weight + self.before.bias
        values = torch.einsum("bhd,hcd->bhc", found, weights[2]) + biases[2]
        return self.attention.out_proj(values.flatten(1))


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
    """Trains all probes on the same batches, each with a parameter group of its own.

    The rates fall by a cosine to 0.

    take: (rows, generator) -> their features; rows index `labels`.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(labels) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(batch_size):
            features = take(rows, generator)
            losses = [F.cross_entropy(probe(features), labels[rows]) for probe in probes]
            loss = sum(losses[1:], losses[0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

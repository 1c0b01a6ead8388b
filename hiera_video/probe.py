"""What a pretrained encoder is worth without training anything on it: nearest neighbours among its features.

A video's class is voted by the K most similar videos of a labelled list (cosine similarity, weighted by exp(similarity / T)),
the way of Wu et al. 2018 and DINO.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.data.annotations import VideoList
from hiera_video.data.dataset import Batch
from hiera_video.distributed import World

NEIGHBOURS, TEMPERATURE = 20, 0.07


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
    """known [N, dim] of classes labels [N], asked [M, dim] -> the class that the neighbours of each vote for, int64 [M]."""
    similarity = F.normalize(asked, dim=1) @ F.normalize(known, dim=1).T
    near = similarity.topk(min(k, len(known)), dim=1)
    votes = torch.zeros(len(asked), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[near.indices], (near.values / TEMPERATURE).exp())
    return votes.argmax(1)

"""Figures of several labels a video: average precision, F1, and the thresholds that F1 is best at.

Average precision of a class: the mean, over its examples, of the precision among all that score as
high as it or higher (no interpolation; as in scikit-learn). Classes without an example have none
and are left out of means. F1: micro over all (video, class) pairs, macro the mean over classes.

Legend: N videos, C classes; scores and truth [N, C]; thresholds [C].
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

DEFAULT = 0.5  # threshold of a class that nothing was chosen for


class Counts(NamedTuple):
    """Of every class, over the videos: [C] each."""

    right: Tensor  # predicted, and there
    predicted: Tensor
    there: Tensor

    @property
    def precision(self) -> Tensor:
        return self.right / self.predicted.clamp(min=1)

    @property
    def recall(self) -> Tensor:
        return self.right / self.there.clamp(min=1)

    @property
    def f1(self) -> Tensor:
        return 2 * self.right / (self.predicted + self.there).clamp(min=1)


def count(scores: Tensor, truth: Tensor, thresholds: Tensor) -> Counts:
    predicted = scores >= thresholds
    there = truth.bool()
    of_classes = ((predicted & there).sum(0), predicted.sum(0), there.sum(0))
    return Counts(*(each.double() for each in of_classes))


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """-> double [C]; NaN for a class without an example"""
    found = torch.full((scores.shape[1],), torch.nan, dtype=torch.double)
    for c in range(scores.shape[1]):
        there = truth[:, c].bool()
        if not there.any():
            continue
        order = scores[:, c].argsort(descending=True, stable=True)
        sorted_scores = scores[order, c]
        right = there[order].double().cumsum(0)
        seen = torch.arange(1, len(order) + 1, dtype=torch.double)
        # Equal scores come together: the precision is that behind the last of them.
        last = torch.searchsorted(-sorted_scores, -sorted_scores, right=True) - 1
        precision = right[last] / seen[last]
        found[c] = precision[there[order]].mean()
    return found


def best_thresholds(scores: Tensor, truth: Tensor) -> Tensor:
    """The threshold of each class at which its F1 is highest: midway between two scores.

    Of several the highest. DEFAULT for a class without an example.
    """
    found = torch.full((scores.shape[1],), DEFAULT)
    for c in range(scores.shape[1]):
        there = truth[:, c].bool()
        if not there.any():
            continue
        order = scores[:, c].argsort(descending=True, stable=True)
        values = scores[order, c]
        right = there[order].double().cumsum(0)
        f1 = 2 * right / (torch.arange(1, len(order) + 1) + there.sum())
        cut = torch.ones(len(values), dtype=torch.bool)
        cut[:-1] = values[:-1] > values[1:]  # between two that differ
        f1[~cut] = -1
        best = int(f1.argmax())
        below = values[best + 1] if best + 1 < len(values) else 0.0
        found[c] = (values[best] + below) / 2
    return found


def figures(scores: Tensor, truth: Tensor, thresholds: Tensor) -> dict[str, Any]:
    """map, f1_micro and f1_macro in percent, over `map_classes` classes that have an example."""
    precision = average_precision(scores, truth)
    known = ~precision.isnan()
    counts = count(scores, truth, thresholds)
    total = Counts(*(each.sum() for each in counts))
    return {
        "map": _percent(precision[known].mean()) if known.any() else None,
        "map_classes": int(known.sum()),
        "f1_micro": _percent(total.f1),
        "f1_macro": _percent(counts.f1[known].mean()) if known.any() else None,
    }


def of_classes(scores: Tensor, truth: Tensor, thresholds: Tensor) -> list[dict[str, Any]]:
    """A row of classes.csv for each class; empty cells for one without an example."""
    precision = average_precision(scores, truth)
    counts = count(scores, truth, thresholds)
    rows = []
    for c in range(scores.shape[1]):
        row: dict[str, Any] = {"class": c, "videos": int(counts.there[c])}
        row["threshold"] = f"{float(thresholds[c]):.6f}"
        if counts.there[c]:
            row["ap"] = f"{100 * precision[c]:.2f}"
            row["precision"] = f"{100 * counts.precision[c]:.2f}"
            row["recall"] = f"{100 * counts.recall[c]:.2f}"
            row["f1"] = f"{100 * counts.f1[c]:.2f}"
        rows.append(row)
    return rows


def thresholds_of(metadata: dict[str, Any], classes: int) -> Tensor:
    """Those that a weight file has; DEFAULT where it has none."""
    stored: Sequence[float] = metadata.get("thresholds") or [DEFAULT] * classes
    return torch.tensor(stored, dtype=torch.float32)


def _percent(value: Tensor) -> float:
    return 100 * float(value)

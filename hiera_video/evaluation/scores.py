"""Scores of videos: what multi-view testing keeps of each, and what it amounts to.

Softmax of every view, averaged over the views of a video (paper App. A; PySlowFast); of several
labels a video (multilabel.py) the sigmoid. Of single views and of fewer views only the five best
classes are kept, and of several labels nothing.

Legend: V views of a video, S choices of fewer views, D shares of the mask units.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hiera_video.data.dataset import Batch
from hiera_video.data.lists import VideoList
from hiera_video.evaluation import multilabel
from hiera_video.system.distributed import World

TOP = 5  # classes that are kept
# scores [classes], views [], view_top [V, 5], subset_top [S, 5], dial_top [D, 5]
VideoScore = dict[str, Tensor]


def ranked(scores: Tensor) -> Tensor:
    """[..., classes] -> int64 [..., up to 5]: the best classes.

    Of equal scores the lower class comes first, everywhere.
    """
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :TOP]


def hits(top: Tensor, labels: Tensor) -> dict[str, float]:
    """top [N, up to 5], labels [N] -> top1 and top5 in percent"""
    right = top == labels[:, None]
    return {
        "top1": 100 * right[:, 0].double().mean().item(),
        "top5": 100 * right.any(1).double().mean().item(),
    }


def macro_f1(best: Tensor, labels: Tensor) -> float:
    """Percent: the mean of F1 over the classes that have videos. best, labels: [N]"""
    found = []
    for c in labels.unique():
        right = ((best == c) & (labels == c)).sum()
        found.append(2 * right / ((best == c).sum() + (labels == c).sum()))
    return 100 * torch.stack(found).double().mean().item()


def at_share(share: float) -> str:
    """Name of the logits at another share of the mask units."""
    return f"logits_at_{share:g}"


def class_name(names: Sequence[str], index: int) -> str:
    """Its name, or its number where it has none."""
    return names[index] if 0 <= index < len(names) else f"class {index}"


class FewerViews(NamedTuple):
    """Some of a video's views, to tell what fewer of them would have given."""

    clips: int
    crops: int
    views: list[int]


def fewer_views(clips: int, crops: int) -> list[FewerViews]:
    """1, 3, 5 .. clips spread over the video, each with the centre crop and with all crops."""
    chosen = []
    for n in sorted({*range(1, clips + 1, 2), clips}):
        if n == 1:
            spread = [(clips - 1) // 2]
        else:
            spread = np.linspace(0, clips - 1, n).round().astype(int).tolist()
        for k in sorted({1, crops}):
            columns = [crops // 2] if k == 1 else list(range(crops))
            views = [clip * crops + column for clip in spread for column in columns]
            chosen.append(FewerViews(n, k, views))
    return chosen


class DialPoint(NamedTuple):
    """A share of the mask units, and the cost of a view then."""

    keep_units: float
    gmacs: float


class ViewScores:
    """A consumer of evaluate(): the rows that were scored, by row of the list.

    clips: of every video; None where videos differ in it, and then nothing is kept of single views.
    thresholds: [classes], where a video has several labels.
    dial: shares of the mask units that are scored, the first one as the test's own.
    keep: called with the rows scored since it was called last, every `keep_every_s` seconds and by
    `flush`. Rows that cannot be read are not kept: a test that goes on tries them again.
    """

    def __init__(
        self,
        clips: int | None,
        crops: int,
        *,
        dial: Sequence[DialPoint] = (),
        thresholds: Tensor | None = None,
        keep: Callable[[dict[int, VideoScore]], None] | None = None,
        keep_every_s: float = 30.0,
    ):
        self.dial = dial
        self.clips = clips
        self.crops = crops
        self.thresholds = thresholds
        self.fewer = fewer_views(clips, crops) if clips and thresholds is None else []
        self.rows: dict[int, VideoScore] = {}
        self.bad: dict[int, str] = {}
        self._keep = keep
        self._keep_every_s = keep_every_s
        self._unkept: dict[int, VideoScore] = {}
        self._kept_at = time.monotonic()

    def update(self, batch: Batch, out: dict[str, Tensor]) -> None:
        for k, (row, logits) in enumerate(zip(batch["index"].tolist(), out["logits"])):
            views = self._probabilities(logits)  # [V, classes]
            score = {"scores": views.mean(0), "views": torch.tensor(len(views))}
            if self.fewer:
                means = torch.stack([views[fewer.views].mean(0) for fewer in self.fewer])
                score["view_top"] = ranked(views).int()
                score["subset_top"] = ranked(means).int()
            if self.dial:
                others = [out[at_share(p.keep_units)][k] for p in self.dial[1:]]
                means = torch.stack([v.softmax(-1).mean(0) for v in [logits, *others]])
                score["dial_top"] = ranked(means).int()
            self.rows[row] = score
            self._unkept[row] = score
        if time.monotonic() - self._kept_at > self._keep_every_s:
            self.flush()

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) if self.thresholds is None else logits.sigmoid()

    def missing(self, row: int, reason: str) -> None:
        self.bad[row] = reason

    def flush(self) -> None:
        """Has the rows kept that are not kept yet."""
        if self._unkept and self._keep is not None:
            self._keep(self._unkept)
        self._unkept = {}
        self._kept_at = time.monotonic()

    def merged(self, world: World, before: dict[int, VideoScore]) -> "ViewScores":
        """All ranks' rows and those of `before`, on rank 0, in list order; empty elsewhere."""
        merged = ViewScores(self.clips, self.crops, dial=self.dial, thresholds=self.thresholds)
        parts = world.gather((self.rows, self.bad))
        if parts:
            rows = dict(before)
            bad: dict[int, str] = {}
            for rows_of_rank, bad_of_rank in parts:
                rows |= rows_of_rank
                bad |= bad_of_rank
            merged.rows = dict(sorted(rows.items()))
            merged.bad = dict(sorted(bad.items()))
        return merged

    def of(self, rows: list[int]) -> Tensor:
        """Scores of those rows of the list: [rows, classes]."""
        return torch.stack([self.rows[row]["scores"] for row in rows])

    def labelled(self, videos: VideoList) -> tuple[list[int], Tensor]:
        """The scored rows that have a label, and their labels."""
        rows = [row for row in self.rows if videos.label(row) >= 0]
        return rows, torch.tensor([videos.label(row) for row in rows], dtype=torch.long)

    def truth(self, videos: VideoList) -> tuple[list[int], Tensor]:
        """As `labelled`, of lists with label sets: [rows, classes], 1 for each label."""
        rows = list(self.rows) if videos.has_label_sets else []
        targets = [torch.as_tensor(videos.target(row)) for row in rows]
        return rows, torch.stack(targets) if rows else torch.zeros(0, 0)

    def accuracy(self, videos: VideoList) -> Mapping[str, float | None]:
        """top1 and top5 over the labelled videos, in percent; None if there are none.

        Of several labels a video: map, f1_micro and f1_macro beside them.
        """
        if self.thresholds is not None:
            rows, truth = self.truth(videos)
            none = {"top1": None, "top5": None}
            if not rows:
                return none | {"map": None, "f1_micro": None, "f1_macro": None}
            return none | multilabel.figures(self.of(rows), truth, self.thresholds)
        rows, labels = self.labelled(videos)
        if not rows:
            return {"top1": None, "top5": None}
        return hits(ranked(self.of(rows)), labels)

    def metrics(self, videos: VideoList) -> dict[str, Any]:
        """What metrics.json holds. Percent, over the labelled videos."""
        return {
            **self.accuracy(videos),
            "videos": len(self.rows),
            "videos_expected": len(videos),
            "missing": [videos.named(row) for row in self.bad],
            "missing_reasons": list(self.bad.values()),
            "views": [self._clips(), self.crops],
            **self._details(videos),
        }

    def _details(self, videos: VideoList) -> dict[str, Any]:
        """Mean class accuracy, accuracy of single views, and what fewer views would have given."""
        if self.thresholds is not None:
            return {}
        rows, labels = self.labelled(videos)
        if not rows:
            return {}
        best = ranked(self.of(rows))[:, 0]
        of_class = [(best[labels == c] == c).double().mean() for c in labels.unique()]
        found = {
            "mean_class": 100 * torch.stack(of_class).mean().item(),
            "macro_f1": macro_f1(best, labels),
            **self._dialled(rows, labels),
        }
        if not self.fewer:
            return found
        view_top = torch.stack([self.rows[row]["view_top"] for row in rows])  # [N, V, 5]
        subset_top = torch.stack([self.rows[row]["subset_top"] for row in rows])  # [N, S, 5]
        single = hits(view_top.flatten(0, 1), labels.repeat_interleave(view_top.shape[1]))
        by_views = [
            {"clips": fewer.clips, "crops": fewer.crops, **hits(subset_top[:, s], labels)}
            for s, fewer in enumerate(self.fewer)
        ]
        return found | {
            "view_top1": single["top1"],
            "view_top5": single["top5"],
            "by_views": by_views,
        }

    def _dialled(self, rows: list[int], labels: Tensor) -> dict[str, Any]:
        """Accuracy at every share of the mask units."""
        if not self.dial:
            return {}
        top = torch.stack([self.rows[row]["dial_top"] for row in rows])  # [N, D, 5]
        points = [{**p._asdict(), **hits(top[:, d], labels)} for d, p in enumerate(self.dial)]
        return {"by_keep_units": points}

    def _clips(self) -> int | None:
        """Of every video; None where they differ."""
        if self.clips:
            return self.clips
        found = {int(score["views"]) // self.crops for score in self.rows.values()}
        return found.pop() if len(found) == 1 else None

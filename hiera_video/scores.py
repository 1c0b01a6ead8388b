"""Scores of videos: what multi-view testing keeps of each, what it amounts to, and the files that it leaves.

Softmax of every view, averaged over the views of a video (paper App. A; PySlowFast). Of single views and of fewer views only
the five best classes are kept. Finished videos are flushed to parts on the disk, so that a test that is killed goes on.
"""

import csv
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiera_video.data.annotations import VideoList
from hiera_video.data.dataset import Batch
from hiera_video.distributed import World
from hiera_video.files import written_whole

TOP = 5
VideoScore = dict[str, Tensor]  # scores [classes], views [], view_top [V, 5], subset_top [S, 5]


def ranked(scores: Tensor) -> Tensor:
    """[..., classes] -> int64 [..., up to 5]: the best classes. Of equal scores the lower class comes first, everywhere."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :TOP]


def subsets(clips: int, crops: int) -> list[tuple[int, int, list[int]]]:
    """(clips, crops, views) of what fewer views would have given: 1, 3, 5 .. clips spread over the video, 1 crop or all."""
    chosen = []
    for n in sorted({*range(1, clips + 1, 2), clips}):
        spread = [(clips - 1) // 2] if n == 1 else np.linspace(0, clips - 1, n).round().astype(int).tolist()
        for k in sorted({1, crops}):
            columns = [crops // 2] if k == 1 else range(crops)  # one: the centre
            chosen.append((n, k, [clip * crops + column for clip in spread for column in columns]))
    return chosen


class ViewScores:
    """A consumer of evaluate(): the rows that were scored, by row of the list.

    clips: None where videos differ in it; then nothing is kept of single views. parts: a folder that keeps what is done, every
    `part_every_s` seconds; None keeps nothing. Rows that cannot be read are not kept: a test that goes on tries them again.
    """

    def __init__(self, clips: int | None, crops: int, *, parts: Path | None = None, part_every_s: float = 30.0):
        self.clips, self.crops, self.subsets = clips, crops, subsets(clips, crops) if clips else []
        self.parts, self.part_every_s = parts, part_every_s
        self.rows: dict[int, VideoScore] = {}
        self.bad: dict[int, str] = {}
        self._unwritten: list[int] = []
        self._written_at = time.monotonic()

    def update(self, batch: Batch, out: dict[str, Tensor]) -> None:
        for row, logits in zip(batch["index"].tolist(), out["logits"]):
            views = logits.softmax(-1)  # [V, classes]
            self.rows[row] = {"scores": views.mean(0), "views": torch.tensor(len(views))}
            if self.subsets:
                fewer = torch.stack([views[chosen].mean(0) for _, _, chosen in self.subsets])
                self.rows[row] |= {"view_top": ranked(views).int(), "subset_top": ranked(fewer).int()}
            self._unwritten.append(row)
        if self.parts is not None and time.monotonic() - self._written_at > self.part_every_s:
            self.flush()

    def missing(self, row: int, reason: str) -> None:
        self.bad[row] = reason

    def flush(self) -> None:
        """Writes a part of what was scored since the last one. Its name is its first row's, which no other part holds."""
        if self._unwritten and self.parts is not None:
            write_part(self.parts / f"{self._unwritten[0]:08d}.safetensors", self.rows, self._unwritten)
        self._unwritten, self._written_at = [], time.monotonic()

    def merged(self, world: World, before: dict[int, VideoScore]) -> "ViewScores":
        """All ranks' rows and those of `before`, on rank 0, in list order."""
        whole = ViewScores(self.clips, self.crops)
        parts = world.gather((self.rows, self.bad))
        rows = before | {row: s for rows, _ in parts for row, s in rows.items()}
        whole.rows = dict(sorted(rows.items())) if parts else {}
        whole.bad = dict(sorted((row, r) for _, bad in parts for row, r in bad.items()))
        return whole

    # -- what it amounts to; percent, over the scored videos that have a label

    def accuracy(self, videos: VideoList) -> dict[str, float | None]:
        """top1 and top5; None if there is no label."""
        rows, labels = self._labelled(videos)
        if not rows:
            return {"top1": None, "top5": None}
        return hits(ranked(torch.stack([self.rows[row]["scores"] for row in rows])), labels)

    def details(self, videos: VideoList) -> dict:
        """Mean class accuracy, accuracy of single views, and what fewer views would have given."""
        rows, labels = self._labelled(videos)
        if not rows:
            return {}
        best = ranked(torch.stack([self.rows[row]["scores"] for row in rows]))[:, 0]
        of_class = [(best[labels == c] == c).double().mean() for c in labels.unique()]
        mean_class = {"mean_class": 100 * torch.stack(of_class).mean().item()}
        if not self.subsets:
            return mean_class
        view_top = torch.stack([self.rows[row]["view_top"] for row in rows])  # [N, V, 5]
        subset_top = torch.stack([self.rows[row]["subset_top"] for row in rows])  # [N, S, 5]
        single = hits(view_top.flatten(0, 1), labels.repeat_interleave(view_top.shape[1]))
        return mean_class | {
            "view_top1": single["top1"],
            "view_top5": single["top5"],
            "by_views": [
                {"clips": n, "crops": k, **hits(subset_top[:, s], labels)} for s, (n, k, _) in enumerate(self.subsets)
            ],
        }

    def _clips(self) -> int | None:
        """Of every video; None where they differ."""
        found = {int(s["views"]) // self.crops for s in self.rows.values()}
        return self.clips or (found.pop() if len(found) == 1 else None)

    def _labelled(self, videos: VideoList) -> tuple[list[int], Tensor]:
        rows = [row for row in self.rows if videos.label(row) >= 0]
        return rows, torch.tensor([videos.label(row) for row in rows], dtype=torch.long)

    # -- files

    def write(self, folder: Path, videos: VideoList, *, names: list[str], protocol: dict) -> dict:
        """All files of the test; metrics.json comes last. Returns the metrics."""
        folder.mkdir(parents=True, exist_ok=True)
        scores = torch.stack([s["scores"] for s in self.rows.values()]) if self.rows else torch.zeros(0, 0)
        write_predictions(folder / "predictions.csv", videos, list(self.rows), scores)
        save_file({"scores": scores, "index": torch.tensor(list(self.rows))}, folder / "scores.safetensors")
        rows, labels = self._labelled(videos)
        if rows:
            best = ranked(torch.stack([self.rows[row]["scores"] for row in rows]))
            write_classes(folder / "classes.csv", best, labels, names)
            write_confusion(folder / "confusion.csv", best[:, 0], labels)
        metrics = {
            **self.accuracy(videos),
            "videos": len(self.rows),
            "videos_expected": len(videos),
            "missing": [videos.written(row) for row in self.bad],
            "missing_reasons": list(self.bad.values()),
            "views": [self._clips(), self.crops],
            **self.details(videos),
        }
        write_json(folder / "protocol.json", protocol)
        write_json(folder / "metrics.json", metrics)
        return metrics


def hits(top: Tensor, labels: Tensor) -> dict[str, float]:
    """top [N, up to 5], labels [N] -> top1 and top5 in percent"""
    right = top == labels[:, None]
    return {"top1": 100 * right[:, 0].double().mean().item(), "top5": 100 * right.any(1).double().mean().item()}


def write_predictions(file: Path, videos: VideoList, rows: Iterable[int], scores: Tensor) -> None:
    """`path,label,prediction,top1_class..,top1_score..`; scores [rows, classes]"""
    with open(file, "w", newline="", errors="surrogateescape") as f:
        writer = csv.writer(f)
        places = range(1, TOP + 1)
        writer.writerow(
            ["path", "label", "prediction", *(f"top{k}_class" for k in places), *(f"top{k}_score" for k in places)]
        )
        for row, score, classes in zip(rows, scores, ranked(scores).tolist()):
            blank = [""] * (TOP - len(classes))  # a model of fewer classes
            top = [f"{score[c]:.6f}" for c in classes]
            writer.writerow([videos.written(row), videos.label(row), classes[0], *classes, *blank, *top, *blank])


def write_classes(file: Path, best: Tensor, labels: Tensor, names: list[str]) -> None:
    """Accuracy of every class that has videos, and what it is taken for most often."""
    with open(file, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["class", "name", "videos", "top1", "top5", "taken_for", "taken_for_name", "times"])
        for c in labels.unique().tolist():
            top = best[labels == c]
            right = hits(top, torch.full((len(top),), c))
            wrong, times = top[top[:, 0] != c, 0].unique(return_counts=True)
            row = [c, names[c] if names else "", len(top), f"{right['top1']:.2f}", f"{right['top5']:.2f}"]
            if len(wrong):
                other = int(wrong[times.argmax()])
                row += [other, names[other] if names else "", int(times.max())]
            writer.writerow(row + [""] * (8 - len(row)))


def write_confusion(file: Path, best: Tensor, labels: Tensor) -> None:
    """`label,prediction,videos`: the confusion matrix without its zeros."""
    pairs, counts = torch.stack([labels, best], 1).unique(dim=0, return_counts=True)
    with open(file, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["label", "prediction", "videos"])
        writer.writerows([*pair, count] for pair, count in zip(pairs.tolist(), counts.tolist()))


def write_part(file: Path, rows: dict[int, VideoScore], which: list[int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.stack([rows[row][name] for row in which]) for name in rows[which[0]]}
    with written_whole(file) as temporary:
        save_file({**tensors, "index": torch.tensor(which)}, temporary)


def read_parts(folder: Path, *, card: dict) -> dict[int, VideoScore]:
    """The rows that an earlier process scored under the same card; parts of another card or damaged ones are removed."""
    stored = folder / "card.json"
    try:
        same = json.loads(stored.read_text()) == card
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(stored, card)
        return {}
    rows: dict[int, VideoScore] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            part = load_file(file)
        except (OSError, SafetensorError):
            file.unlink()
            continue
        index = part.pop("index").tolist()
        rows |= {row: {name: t[k] for name, t in part.items()} for k, row in enumerate(index)}
    return rows


def write_json(file: Path, content: dict, *, shared: bool = False) -> None:
    with written_whole(file, shared=shared) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")

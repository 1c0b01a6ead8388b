"""The files that a test leaves, and the parts that keep it while it goes on.

Legend: top [N, up to 5], the best classes of N videos; scores [N, classes]; names one a class.
"""

import csv
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hiera_video.data.lists import VideoList
from hiera_video.data.tables import SEVERAL
from hiera_video.evaluation import multilabel
from hiera_video.evaluation.scores import TOP, VideoScore, ViewScores, hits, ranked
from hiera_video.system.files import write_json, written_whole
from hiera_video.system.tensors import save_file


def write_test(
    folder: Path,
    scores: ViewScores,
    videos: VideoList,
    *,
    names: list[str],
    protocol: dict[str, Any],
) -> dict[str, Any]:
    """Writes all files of a test; metrics.json comes last. Returns the metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(scores.rows)
    of_videos = scores.of(rows) if rows else torch.zeros(0, 0)
    thresholds = scores.thresholds
    write_predictions(folder / "predictions.csv", videos, rows, of_videos, thresholds=thresholds)
    write_scores(folder / "scores.safetensors", of_videos, rows)
    labelled, labels = scores.labelled(videos) if thresholds is None else scores.truth(videos)
    if labelled and thresholds is not None:
        of_classes = multilabel.of_classes(of_videos, labels, thresholds)
        write_label_classes(folder / "classes.csv", of_classes, names)
    elif labelled:
        top = ranked(scores.of(labelled))
        write_classes(folder / "classes.csv", top, labels, names)
        write_confusion(folder / "confusion.csv", top[:, 0], labels)
    metrics = scores.metrics(videos)
    write_json(folder / "protocol.json", protocol)
    write_json(folder / "metrics.json", metrics)
    return metrics


def write_scores(file: Path, scores: Tensor, rows: list[int]) -> None:
    """scores [rows, classes], and which row of the list each is of"""
    save_file({"scores": scores, "index": torch.tensor(rows)}, file)


def write_predictions(
    file: Path,
    videos: VideoList,
    rows: Iterable[int],
    scores: Tensor,
    *,
    thresholds: Tensor | None = None,
) -> None:
    """`path,label,prediction,top1_class,..,top1_score,..`; scores [rows, classes]

    Of a list with segments, `start_s,end_s` too. thresholds: of several labels a video, which are
    joined by `;` as in tables, those that are predicted, too.
    """
    with open(file, "w", newline="", errors="surrogateescape") as f:
        writer = csv.writer(f)
        places = range(1, TOP + 1)
        classes_head = [f"top{k}_class" for k in places]
        scores_head = [f"top{k}_score" for k in places]
        segment_head = ["start_s", "end_s"] if videos.has_segments else []
        writer.writerow(["path", "label", "prediction", *classes_head, *scores_head, *segment_head])
        for row, score, classes in zip(rows, scores, ranked(scores).tolist()):
            blank = [""] * (TOP - len(classes))  # a model of fewer classes
            top = [f"{score[c]:.6f}" for c in classes]
            label: object = videos.label(row)
            prediction: object = classes[0]
            if thresholds is not None:
                label = joined(videos.label_set(row)) if videos.has_label_sets else ""
                prediction = joined((score >= thresholds).nonzero().flatten().tolist())
            line = [videos.written(row), label, prediction]
            line += [*classes, *blank, *top, *blank]
            if videos.has_segments:
                line += videos.segment(row) or ("", "")
            writer.writerow(line)


def joined(classes: Iterable[int]) -> str:
    return SEVERAL.join(map(str, classes))


def write_label_classes(file: Path, of_classes: list[dict[str, Any]], names: list[str]) -> None:
    """Average precision and F1 of every class of several labels a video."""
    with open(file, "w", newline="") as f:
        columns = ["class", "name", "videos", "ap", "f1", "precision", "recall", "threshold"]
        writer = csv.DictWriter(f, columns, restval="")
        writer.writeheader()
        for row in of_classes:
            writer.writerow({**row, "name": names[row["class"]] if names else ""})


def write_classes(file: Path, best: Tensor, labels: Tensor, names: list[str]) -> None:
    """Accuracy of every class that has videos, and what it is taken for most often."""
    with open(file, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(
            ["class", "name", "videos", "top1", "top5", "taken_for", "taken_for_name", "times"]
        )
        for c in labels.unique().tolist():
            top = best[labels == c]
            right = hits(top, torch.full((len(top),), c))
            wrong, times = top[top[:, 0] != c, 0].unique(return_counts=True)
            name = names[c] if names else ""
            row = [c, name, len(top), f"{right['top1']:.2f}", f"{right['top5']:.2f}"]
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


def write_part(folder: Path, rows: dict[int, VideoScore]) -> None:
    """Keeps some rows on the disk, so that a test that is killed goes on.

    The part is named after its first row, which no other part holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(rows))
    tensors = {name: torch.stack([score[name] for score in rows.values()]) for name in rows[first]}
    with written_whole(folder / f"{first:08d}.safetensors") as temporary:
        save_file({**tensors, "index": torch.tensor(list(rows))}, temporary)


def read_parts(folder: Path, *, card: dict[str, Any]) -> dict[int, VideoScore]:
    """The rows that an earlier process scored under the same card.

    Parts of another card, and damaged ones, are removed.
    """
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
        for k, row in enumerate(part.pop("index").tolist()):
            rows[row] = {name: tensor[k] for name, tensor in part.items()}
    return rows

"""What happens when, measured: segments that were found against those that are there.

Average precision at a temporal intersection over union, by ActivityNet's rules (eval_detection.py):
detections of a class in all videos, the surest first, each take the segment that they overlap most
of those that nobody took yet; precision is interpolated (the highest at any higher recall). Frames:
precision, recall and F1 of every class on a grid over the videos.

Legend: S segments, D detections.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hiera_video.evaluation.segments import Segment

TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
GRID_S = 0.1  # of the frames that are compared


class Detection(NamedTuple):
    video: str
    start_s: float
    end_s: float
    score: float


def temporal_iou(start: float, end: float, segments: np.ndarray) -> np.ndarray:
    """segments: [S, 2] -> [S]"""
    overlap = np.minimum(segments[:, 1], end) - np.maximum(segments[:, 0], start)
    overlap = overlap.clip(min=0)
    union = (segments[:, 1] - segments[:, 0]) + (end - start) - overlap
    return overlap / union


def detection_ap(
    truth: Mapping[str, Sequence[tuple[float, float]]],
    found: Sequence[Detection],
    tious: Sequence[float] = TIOUS,
) -> np.ndarray:
    """Of one class. truth: video -> its segments -> average precision at each of `tious`"""
    total = sum(map(len, truth.values()))
    if total == 0 or not found:
        return np.zeros(len(tious))
    segments = {video: np.array(of_video, dtype=float) for video, of_video in truth.items()}
    order = sorted(found, key=lambda detection: -detection.score)
    right = np.zeros((len(tious), len(order)))
    taken = [{video: set[int]() for video in segments} for _ in tious]
    for d, detection in enumerate(order):
        there = segments.get(detection.video)
        if there is None or len(there) == 0:
            continue
        overlaps = temporal_iou(detection.start_s, detection.end_s, there)
        for k, tiou in enumerate(tious):
            for s in np.argsort(-overlaps, kind="stable"):
                if overlaps[s] < tiou:
                    break
                if s not in taken[k][detection.video]:
                    taken[k][detection.video].add(int(s))
                    right[k, d] = 1
                    break
    hits = right.cumsum(1)
    precision = hits / np.arange(1, len(order) + 1)
    recall = hits / total
    return np.array([interpolated(p, r) for p, r in zip(precision, recall)])


def interpolated(precision: np.ndarray, recall: np.ndarray) -> float:
    """The area under the highest precision at any higher recall."""
    heights = np.concatenate([[0.0], precision, [0.0]])
    steps = np.concatenate([[0.0], recall, [1.0]])
    heights = np.maximum.accumulate(heights[::-1])[::-1]
    rises = np.flatnonzero(steps[1:] != steps[:-1]) + 1
    return float(((steps[rises] - steps[rises - 1]) * heights[rises]).sum())


def frame_figures(
    truth: Mapping[str, Sequence[Segment]],
    found: Mapping[str, Sequence[Segment]],
    lengths_s: Mapping[str, float],
    label: str,
) -> tuple[float, float, float]:
    """precision, recall and F1 of a class, on a grid over all videos"""
    right = predicted = there = 0
    for video, length_s in lengths_s.items():
        at = np.arange(0, length_s, GRID_S) + GRID_S / 2
        ours = covered(found.get(video, ()), label, at)
        theirs = covered(truth.get(video, ()), label, at)
        right += int((ours & theirs).sum())
        predicted += int(ours.sum())
        there += int(theirs.sum())
    f1 = 2 * right / max(predicted + there, 1)
    return right / max(predicted, 1), right / max(there, 1), f1


def covered(segments: Sequence[Segment], label: str | None, at: np.ndarray) -> np.ndarray:
    """bool, of every moment of `at`; label: None for any"""
    inside = np.zeros(len(at), dtype=bool)
    for segment in segments:
        if label is None or segment.label == label:
            inside |= (at >= segment.start_s) & (at < segment.end_s)
    return inside


def detection_figures(
    truth: Mapping[str, Sequence[Segment]],
    found: Mapping[str, Sequence[Segment]],
    lengths_s: Mapping[str, float],
    labels: Sequence[str],
) -> dict[str, Any]:
    """Percent: mAP at every tIoU and their mean, and F1 of frames; a row for every class.

    Of the background: precision and recall of the frames in which nothing is found.

    truth, found: video -> segments. labels: the classes that are counted; one without a segment
    counts in no mean.
    """
    rows = []
    for label in labels:
        of_class = {
            video: [(s.start_s, s.end_s) for s in segments if s.label == label]
            for video, segments in truth.items()
        }
        detections = [
            Detection(video, s.start_s, s.end_s, s.score)
            for video, segments in found.items()
            for s in segments
            if s.label == label
        ]
        count = sum(map(len, of_class.values()))
        precision, recall, f1 = frame_figures(truth, found, lengths_s, label)
        row = {"class": label, "segments": count, "found": len(detections)}
        row |= {f"ap_{t:g}": 100 * ap for t, ap in zip(TIOUS, detection_ap(of_class, detections))}
        row |= {"precision": 100 * precision, "recall": 100 * recall, "f1": 100 * f1}
        rows.append(row)
    told = [row for row in rows if row["segments"]]

    def mean(key: str) -> float | None:
        return float(np.mean([row[key] for row in told])) if told else None

    nothing = [np.zeros(0, dtype=bool)]
    silent = [np.zeros(0, dtype=bool)]
    for video, length_s in lengths_s.items():
        at = np.arange(0, length_s, GRID_S) + GRID_S / 2
        nothing.append(~covered(truth.get(video, ()), None, at))
        silent.append(~covered(found.get(video, ()), None, at))
    both = (np.concatenate(nothing) & np.concatenate(silent)).sum()

    means = {f"map_{t:g}": mean(f"ap_{t:g}") for t in TIOUS}
    known = [value for value in means.values() if value is not None]
    return {
        **means,
        "map": float(np.mean(known)) if known else None,
        "frame_f1": mean("f1"),
        "background_precision": 100 * float(both / max(np.concatenate(silent).sum(), 1)),
        "background_recall": 100 * float(both / max(np.concatenate(nothing).sum(), 1)),
        "classes": rows,
    }

"""Segments from scores over time, and how they are measured, by hand."""

import numpy as np
import pytest

from hiera_video.evaluation.detection import (
    Detection,
    detection_ap,
    detection_figures,
    interpolated,
    temporal_iou,
)
from hiera_video.evaluation.segments import (
    Segment,
    SegmentSettings,
    find_segments,
    runs,
    smoothed,
)


def test_hysteresis():
    scores = np.array([0.1, 0.35, 0.6, 0.4, 0.2, 0.45, 0.4, 0.1, 0.9])
    assert runs(scores, high=0.5, low=0.3) == [(1, 3), (8, 8)]
    assert runs(scores, high=0.3, low=0.3) == [(1, 3), (5, 6), (8, 8)]
    assert runs(scores[:2], high=0.5, low=0.3) == []


def test_segments_of_two_classes():
    times = np.stack([np.arange(6.0), np.arange(6.0) + 2], 1)  # a window a second, of two
    scores = np.array([[0.9, 0], [0.8, 0.6], [0.1, 0.7], [0.1, 0.4], [0.6, 0.1], [0.0, 0.1]])
    found = find_segments(times, scores, ["a", "b"], SegmentSettings())
    assert found == [
        Segment("a", pytest.approx(0.85), 0.0, 2.5),
        Segment("b", pytest.approx(0.1 * 17 / 3), 1.5, 4.5),
        Segment("a", 0.6, 4.5, 5.5),
    ]
    longer = find_segments(times, scores, ["a", "b"], SegmentSettings(least_s=2))
    assert [s.label for s in longer] == ["a", "b"]
    smooth = smoothed(times.mean(1), scores, 2.0)
    assert smooth[0, 0] == pytest.approx(0.85) and smooth[4, 0] == pytest.approx(0.7 / 3)
    assert find_segments(times, scores, ["a", "b"], SegmentSettings(smooth_s=2.0, high=0.6))
    for wrong in ({"low": 0.6}, {"high": 1.5}, {"smooth_s": -1}, {"least_s": -1}):
        with pytest.raises(ValueError):
            SegmentSettings(**wrong)


def test_average_precision_by_the_rules_of_activitynet():
    """Two videos; a duplicate, one that is late, one in a video without segments."""
    assert temporal_iou(0, 2, np.array([[1.0, 3.0], [5, 6]])).tolist() == [1 / 3, 0]
    truth = {"one": [(0.0, 10.0), (20.0, 30.0)], "two": [(5.0, 10.0)], "three": []}
    found = [
        Detection("one", 0, 10, 0.9),  # right
        Detection("one", 1, 10, 0.8),  # of the same segment: wrong
        Detection("one", 20, 26, 0.7),  # tIoU 0.6
        Detection("three", 0, 5, 0.6),  # wrong
        Detection("two", 5, 10, 0.5),  # right
    ]
    at_half, at_most = detection_ap(truth, found, (0.5, 0.7))
    # Hits at 0.5: 1 0 1 0 1; precision 1, 1/2, 2/3, 2/4, 3/5; interpolated 1, 2/3, 3/5.
    assert at_half == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # Hits at 0.7: 1 0 0 0 1 of three segments.
    assert at_most == pytest.approx((1 + 2 / 5) / 3)
    assert detection_ap(truth, [], (0.5,)).tolist() == [0]
    assert interpolated(np.array([0.5]), np.array([1.0])) == 0.5


def test_a_second_segment_is_taken_where_the_best_is_gone():
    truth = {"v": [(0.0, 10.0), (2.0, 12.0)]}
    found = [Detection("v", 1, 11, 0.9), Detection("v", 0, 10, 0.8)]
    assert detection_ap(truth, found, (0.5,)).tolist() == [1.0]


def ap_by_hand(truth, found, tiou):
    """ActivityNet's average precision, step by step. truth, found: (video, start, end[, score])"""
    left = list(truth)
    marks = []
    for video, start, end, _ in sorted(found, key=lambda row: -row[3]):
        best, chosen = 0.0, None
        for row in left:
            if row[0] == video:
                shared = max(0.0, min(end, row[2]) - max(start, row[1]))
                overlap = shared / (max(end, row[2]) - min(start, row[1])) if shared else 0.0
                if overlap > best:
                    best, chosen = overlap, row
        is_hit = best >= tiou
        if is_hit:
            left.remove(chosen)
        marks.append(is_hit)
    area = 0.0
    for k, is_hit in enumerate(marks):
        if is_hit:  # recall rises by one; precision is the highest from here on
            later = [sum(marks[: j + 1]) / (j + 1) for j in range(k, len(marks))]
            area += max(later) / len(truth)
    return area


def test_fifty_rows_by_hand():
    """mAP at every tIoU and F1 of frames, of 50 segments and 60 that were found."""
    rng = np.random.default_rng(3)
    videos = [f"v{k}" for k in range(6)]
    labels = ["a", "b", "c"]
    truth = {video: [] for video in videos}
    found = {video: [] for video in videos}
    for _ in range(50):
        start = rng.uniform(0, 50)
        video = rng.choice(videos)
        label = rng.choice(labels)
        segment = Segment(label, 1.0, start, start + rng.uniform(1, 5))
        truth[video].append(segment)
        if rng.random() < 0.8:
            near = segment.start_s + rng.normal(0, 0.4), segment.end_s + rng.normal(0, 0.4)
            label = segment.label if rng.random() < 0.8 else rng.choice(labels)
            found[video].append(Segment(label, rng.uniform(0.3, 1), *near))
    for _ in range(60 - sum(map(len, found.values()))):
        start = rng.uniform(0, 50)
        found[rng.choice(videos)].append(Segment("a", rng.uniform(0, 0.5), start, start + 2))
    figures = detection_figures(truth, found, dict.fromkeys(videos, 60.0), labels)
    means = []
    for tiou in (0.3, 0.4, 0.5, 0.6, 0.7):
        of_classes = []
        for label in labels:
            there = [(v, s.start_s, s.end_s) for v in videos for s in truth[v] if s.label == label]
            ours = [
                (v, s.start_s, s.end_s, s.score)
                for v in videos
                for s in found[v]
                if s.label == label
            ]
            of_classes.append(100 * ap_by_hand(there, ours, tiou))
        means.append(sum(of_classes) / 3)
        assert figures[f"map_{tiou:g}"] == pytest.approx(means[-1])
        row = [c[f"ap_{tiou:g}"] for c in figures["classes"]]
        assert row == pytest.approx(of_classes)
    assert figures["map"] == pytest.approx(sum(means) / 5) and 20 < figures["map"] < 90
    f1 = []
    for label in labels:
        right = ours = theirs = 0
        for video in videos:
            for tick in range(600):
                at = tick / 10 + 0.05
                is_ours = any(s.label == label and s.start_s <= at < s.end_s for s in found[video])
                is_there = any(s.label == label and s.start_s <= at < s.end_s for s in truth[video])
                right += is_ours and is_there
                ours += is_ours
                theirs += is_there
        f1.append(100 * 2 * right / (ours + theirs))
    assert figures["frame_f1"] == pytest.approx(sum(f1) / 3)


def test_figures_of_frames():
    truth = {"v": [Segment("a", 1, 0, 4), Segment("b", 1, 4, 8)]}
    found = {"v": [Segment("a", 0.9, 1, 5)], "w": [Segment("b", 0.4, 0, 2)]}
    figures = detection_figures(truth, found, {"v": 10.0, "w": 2.0}, ["a", "b", "c"])
    a, b, c = figures["classes"]
    assert (a["precision"], a["recall"], a["f1"]) == pytest.approx((75, 75, 75))
    assert (b["precision"], b["recall"], c["f1"]) == (0, 0, 0)
    assert a["ap_0.5"] == 100 and a["ap_0.7"] == 0 and c["segments"] == 0
    # No segment: 8 to 10 of v, all of w. Nothing found: 0 to 1 and 5 to 10 of v. Both: 8 to 10.
    assert figures["background_precision"] == pytest.approx(100 * 2 / 6)
    assert figures["background_recall"] == pytest.approx(100 * 2 / 4)
    assert figures["map_0.5"] == 50 and figures["frame_f1"] == pytest.approx(37.5)
    assert figures["map"] == pytest.approx(np.mean([50, 50, 50, 50, 0]))

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


def test_figures_of_frames():
    truth = {"v": [Segment("a", 1, 0, 4), Segment("b", 1, 4, 8)]}
    found = {"v": [Segment("a", 0.9, 1, 5)], "w": [Segment("b", 0.4, 0, 2)]}
    figures = detection_figures(truth, found, {"v": 10.0, "w": 2.0}, ["a", "b", "c"])
    a, b, c = figures["classes"]
    assert (a["precision"], a["recall"], a["f1"]) == pytest.approx((75, 75, 75))
    assert (b["precision"], b["recall"], c["f1"]) == (0, 0, 0)
    assert a["ap_0.5"] == 100 and a["ap_0.7"] == 0 and c["segments"] == 0
    # By hand, in tenths of a second.
    assert figures["map_0.5"] == 50 and figures["frame_f1"] == pytest.approx(37.5)
    assert figures["map"] == pytest.approx(np.mean([50, 50, 50, 50, 0]))

"""What a review shows: the videos or segments of a test, the worst and the least certain first."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from hiera_video.config import Config
from hiera_video.data.lists import VideoList
from hiera_video.stages.inputs import build_classes, read_list
from hiera_video.system.errors import UserError

SHOWN = 5  # classes of an item, the best ones


@dataclass(frozen=True)
class Item:
    """A row of the tested list."""

    row: int
    path: str  # as the list has it
    place: str  # where it lies
    segment: tuple[float, float] | None  # seconds
    labels: tuple[str, ...]
    best: tuple[tuple[str, float], ...]  # class and score
    wrong: float  # 0 to 1: how far the scores are from the labels; 0 without labels
    unsure: float  # 0 to 1: how near they are to saying something else


def read_items(config: Config, run: Path) -> tuple[list[Item], VideoList, list[str]]:
    """(items in the order of the list, the list, names of the classes). Raises UserError."""
    try:
        stored = load_file(run / "test/scores.safetensors")
    except (OSError, SafetensorError) as e:
        raise UserError(f"{run} holds no finished test: {e}") from e
    videos = read_list(config, "data.test")
    names = build_classes(config, videos).names
    scores = stored["scores"].numpy()
    rows = stored["index"].tolist()
    if rows and (max(rows) >= len(videos) or not names):
        raise UserError(f"{run}: its test was of another list, or its classes have no names")
    multilabel = config.classify.multilabel
    items = []
    for row, score in zip(rows, scores):
        numbers = _labels(videos, row)
        order = np.argsort(-score, kind="stable")[:SHOWN]
        items.append(
            Item(
                row,
                videos.written(row),
                videos.path(row),
                videos.segment(row),
                tuple(names[k] for k in numbers),
                tuple((names[k], float(score[k])) for k in order),
                how_wrong(score, numbers, multilabel=multilabel),
                how_unsure(score, multilabel=multilabel),
            )
        )
    return items, videos, names


def how_wrong(score: np.ndarray, labels: list[int], *, multilabel: bool) -> float:
    """Of one label: what its probability lacks; of several: the largest error of any."""
    if multilabel:
        truth = np.zeros_like(score)
        truth[labels] = 1
        return float(np.abs(truth - score).max())
    return 1 - float(score[labels[0]]) if labels else 0.0


def how_unsure(score: np.ndarray, *, multilabel: bool) -> float:
    """Of one label: how near the second class is; of several: how near any is to a half."""
    if multilabel:
        return 1 - 2 * float(np.abs(score - 0.5).min())
    if len(score) < 2:
        return 0.0
    first, second = np.sort(score)[[-1, -2]]
    return 1 - float(first - second)


def orders(items: list[Item], count: int) -> dict[str, list[int]]:
    """Rows of at most `count` items, in every order that the page offers."""
    worst = sorted(items, key=lambda item: -item.wrong)
    unsure = sorted(items, key=lambda item: -item.unsure)
    return {
        "worst": [item.row for item in worst[:count]],
        "unsure": [item.row for item in unsure[:count]],
    }


def _labels(videos: VideoList, row: int) -> list[int]:
    if videos.has_label_sets:
        return videos.label_set(row)
    return [videos.label(row)] if videos.label(row) >= 0 else []

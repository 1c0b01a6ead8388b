"""Rows of a list in which nothing happens: parts of its videos that lie between segments."""

from collections.abc import Sequence

import numpy as np

from hiera_video.data.lists import VideoList
from hiera_video.data.tables import END, LABEL, PATH, START, Table, as_csv
from hiera_video.system.errors import UserError


def gaps_between(
    segments: Sequence[tuple[float, float]],
    *,
    distance_s: float,
    least_s: float,
    length_s: float = 0.0,
) -> list[tuple[float, float]]:
    """Parts between segments, `distance_s` away from them and `least_s` long or longer.

    length_s: of the video, where it is known; else what comes behind the last one is left out.
    """
    found = []
    free_from = 0.0
    behind = length_s + distance_s
    for start, end in [*sorted(segments), (behind, behind)]:
        if start - distance_s - free_from >= least_s:
            found.append((free_from, start - distance_s))
        free_from = max(free_from, end + distance_s)
    return found


Gap = tuple[str, float, float]  # path, start and end in seconds


def spread_over(gaps: Sequence[Gap], count: int) -> list[Gap]:
    """`count` of the gaps, evenly over the time of all: long ones come more often than short ones.

    None where there is no gap.
    """
    if not gaps:
        return []
    lengths = np.cumsum([end - start for _, start, end in gaps])
    places = (np.arange(count) + 0.5) / count * lengths[-1]
    return [gaps[k] for k in np.searchsorted(lengths, places)]


def with_background(
    videos: VideoList, share: float, *, label: str, distance_s: float, least_s: float, key: str
) -> VideoList:
    """The list with `share` times as many rows more, each of them a gap of one of its videos.

    label: of these rows; empty for none. Long gaps have more rows than short ones; a clip is drawn
    anywhere in its gap. Raises UserError where there is no gap.
    """
    if not videos.has_segments or videos.header is None or LABEL not in videos.header:
        raise UserError(f"data.background_share: {key} is no table with labels and segments")
    of_videos: dict[str, list[tuple[float, float]]] = {}
    for row in range(len(videos)):
        segment = videos.segment(row)
        whole = (0.0, float("inf"))  # a row without one is all of its video
        of_videos.setdefault(videos.written(row), []).append(segment or whole)
    gaps = []
    for path, segments in of_videos.items():
        for gap in gaps_between(segments, distance_s=distance_s, least_s=least_s):
            gaps.append((path, *gap))
    if not gaps:
        raise UserError(
            f"data.background_share: no gap between segments of {key} is {least_s:.2f} s long, "
            f"{distance_s:g} s away from them"
        )
    records = [videos.line(row) for row in range(len(videos))]
    segments = [videos.segment(row) or (np.nan, np.nan) for row in range(len(videos))]
    for path, start, end in spread_over(gaps, max(1, round(share * len(videos)))):
        cells = dict.fromkeys(videos.header, "")
        cells |= {PATH: path, LABEL: label, START: f"{start:.3f}", END: f"{end:.3f}"}
        records.append(as_csv([cells[name] for name in videos.header]))
        segments.append((start, end))
    return VideoList.from_records(
        Table(videos.header, records, segments=segments), root=videos.root, source=videos.source
    )

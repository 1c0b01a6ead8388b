"""Segments over time, truth above what was found: two bars a video, for an HTML page."""

from collections.abc import Mapping, Sequence
from html import escape

from hiera_video.evaluation.segments import Segment
from hiera_video.pictures.charts import GREY, GROUPS
from hiera_video.pictures.timeline import clock

# Pixels.
WIDTH = 900
LEFT = 60
BAR = 16
GAP = 4
AXIS = 18


def colours_of(labels: Sequence[str]) -> dict[str, str]:
    """Of the first labels; the others share one."""
    return {label: GROUPS[k] if k < len(GROUPS) else GREY for k, label in enumerate(labels)}


def two_bars(
    truth: Sequence[Segment],
    found: Sequence[Segment],
    length_s: float,
    colours: Mapping[str, str],
) -> str:
    """SVG. Segments of several classes at one time share the height of their bar."""
    scale = (WIDTH - LEFT) / max(length_s, 1e-6)
    parts = []
    for name, segments, top in (("truth", truth, 0), ("found", found, BAR + GAP)):
        parts.append(f'<text x="0" y="{top + BAR - 4}">{name}</text>')
        parts.append(
            f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT}" height="{BAR}" fill="#f3f4f6"/>'
        )
        labels = sorted({segment.label for segment in segments})
        height = BAR / max(len(labels), 1)
        for segment in segments:
            x = LEFT + segment.start_s * scale
            width = max((segment.end_s - segment.start_s) * scale, 1)
            y = top + labels.index(segment.label) * height
            times = f"{segment.start_s:.2f}-{segment.end_s:.2f} s"
            score = "" if name == "truth" else f", {segment.score:.2f}"
            place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
            parts.append(
                f'<rect class="{name}" {place} fill="{colours.get(segment.label, GREY)}">'
                f"<title>{escape(segment.label)} {times}{score}</title></rect>"
            )
    bottom = 2 * BAR + GAP + AXIS
    for k in range(5):
        second = length_s * k / 4
        anchor = ("start", "middle", "middle", "middle", "end")[k]
        x = LEFT + second * scale
        parts.append(
            f'<text x="{x:.1f}" y="{bottom - 4}" text-anchor="{anchor}">{clock(second)}</text>'
        )
    return f'<svg viewBox="0 0 {WIDTH} {bottom}" role="img">{"".join(parts)}</svg>'

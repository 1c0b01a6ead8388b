"""Values of several seeds side by side: a dot each, a line at their mean. One SVG file."""

import statistics
from collections.abc import Mapping, Sequence
from html import escape

from hiera_video.pictures.charts import COLOURS, number, ticks

Panel = Mapping[str, Sequence[float]]  # name of a row -> its values
# Pixels.
LABELS = 230
WIDTH = 760
ROW = 26
TITLE = 34
AXIS = 30
FONT = "font-family='system-ui, sans-serif' font-size='13'"


def dot_plot(title: str, panels: Mapping[str, Panel]) -> str:
    """One panel below the other, on the same axis."""
    values = [v for panel in panels.values() for row in panel.values() for v in row]
    marks = ticks(min(0.0, *values), max(values), count=5)
    low = marks[0]
    scale = (WIDTH - LABELS - 60) / (marks[-1] - low)
    parts = [f"<text x='0' y='16' font-weight='600'>{escape(title)}</text>"]
    y = TITLE
    for name, panel in panels.items():
        bottom = y + 22 + ROW * len(panel)
        parts.append(f"<text x='0' y='{y + 14}' fill='#6b7280'>{escape(name)}</text>")
        for mark in marks:
            x = LABELS + (mark - low) * scale
            parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{y + 20}' y2='{bottom}' {GRID}/>")
            parts.append(
                f"<text x='{x:.1f}' y='{bottom + 16}' text-anchor='middle' fill='#6b7280'>"
                f"{number(mark)}</text>"
            )
        for k, (row, found) in enumerate(panel.items()):
            middle = y + 22 + ROW * k + ROW / 2
            places = [LABELS + (v - low) * scale for v in found]
            parts += _row(row, places, statistics.mean(found), middle, COLOURS[k % len(COLOURS)])
        y = bottom + AXIS
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {y}' {FONT}>"
    return f"{head}<rect width='100%' height='100%' fill='#fff'/>{''.join(parts)}</svg>\n"


GRID = "stroke='#e5e7eb'"


def _row(name: str, places: list[float], mean: float, y: float, colour: str) -> list[str]:
    parts = [f"<text x='{LABELS - 10}' y='{y + 4}' text-anchor='end'>{escape(name)}</text>"]
    for x in places:
        parts.append(f"<circle cx='{x:.1f}' cy='{y}' r='4' fill='{colour}' fill-opacity='.55'/>")
    x = statistics.mean(places)
    parts.append(
        f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{y - 9}' y2='{y + 9}' stroke='{colour}' "
        "stroke-width='2'/>"
    )
    right = max(places) + 10
    parts.append(f"<text x='{right:.1f}' y='{y + 4}'>{mean:.1f}</text>")
    return parts

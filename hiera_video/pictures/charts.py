"""Curves, bars and matrices for a report, as text that goes straight into HTML."""

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

Points = Sequence[tuple[float, float]]
COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed")
# Pixels of a drawing and of its margins.
WIDTH = 460
HEIGHT = 210
LEFT = 52
RIGHT = 12
TOP = 12
BOTTOM = 26
MOST_POINTS = 400  # of a line
MARKED_POINTS = 60  # above which a line has no marks
DARK = (8, 48, 107)  # of a matrix's largest value; 0 is white
NAMED_ROWS = 40  # of a matrix, above which names cannot be read
LONGEST = 24  # letters of a name beside a matrix
LETTER = 7  # pixels
# Of a map: its side and margin in pixels, and the colours of its groups.
SCATTER = 640
MARGIN = 10
GROUPS = (*COLOURS, "#dc2626", "#0891b2", "#ca8a04", "#db2777", "#4d7c0f", "#1e3a8a")
GREY = "#9ca3af"


@dataclass(frozen=True)
class _Axes:
    """From values to places in the drawing; on a log scale y is the logarithm of the value."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def x(self, value: float) -> float:
        across = (value - self.low_x) / (self.high_x - self.low_x)
        return LEFT + across * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        up = (value - self.low_y) / (self.high_y - self.low_y)
        return HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def curves(
    title: str, series: Mapping[str, Points], *, log_scale: bool = False, step: str = "step"
) -> str:
    """A line for each series over the training step, or what `step` names; empty without points.

    On a log scale values of 0 are left out.
    """
    drawn: dict[str, list[tuple[float, float]]] = {}  # on the scale of the drawing
    latest: dict[str, float] = {}
    for name, points in series.items():
        good = [p for p in points if math.isfinite(p[1]) and (p[1] > 0 or not log_scale)]
        if good:
            thin = thinned(good)
            latest[name] = thin[-1][1]
            drawn[name] = [(x, math.log10(y) if log_scale else float(y)) for x, y in thin]
    if not drawn:
        return ""
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    y_ticks = (log_ticks if log_scale else ticks)(min(ys), max(ys))
    axes = _Axes(
        low_x=min(xs),
        high_x=max(max(xs), min(xs) + 1e-9),
        low_y=min(*ys, y_ticks[0]),
        high_y=max(*ys, y_ticks[-1]),
    )
    parts = _grid(axes, ticks(min(xs), max(xs)), y_ticks, log_scale)
    key = ""
    for (name, points), colour in zip(drawn.items(), COLOURS):
        parts += _line(axes, name, points, colour, log_scale=log_scale, step=step)
        value = f"<b>{number(latest[name])}</b>"
        key += f'<span class="key" style="--c:{colour}">{escape(name)} {value}</span>'
    return (
        f'<figure class="curve"><figcaption>{escape(title)} {key}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _grid(axes: _Axes, x_ticks: list[float], y_ticks: list[float], log_scale: bool) -> list[str]:
    parts = []
    for tick in y_ticks:
        y = axes.y(tick)
        text = number(10**tick if log_scale else tick)
        ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
        parts.append(f'<line class="grid" {ends}/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in x_ticks:
        if axes.low_x <= tick <= axes.high_x:
            place = f'x="{axes.x(tick):.1f}" y="{HEIGHT - 8}"'
            parts.append(f'<text {place} text-anchor="middle">{number(tick)}</text>')
    return parts


def _line(
    axes: _Axes, name: str, points: Points, colour: str, *, log_scale: bool, step: str
) -> list[str]:
    """The line and, where they are few, its points with their values."""
    places = [(axes.x(x), axes.y(y)) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    style = f'fill="none" stroke="{colour}" stroke-width="1.6"'
    parts = [f'<polyline {style} points="{line}"/>']
    if len(points) <= MARKED_POINTS:
        for (x, y), (where, value) in zip(places, points):
            shown = number(10**value if log_scale else value)
            tip = f"<title>{escape(name)} {shown} at {step} {number(where)}</title>"
            circle = f'cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"'
            parts.append(f"<circle {circle}>{tip}</circle>")
    return parts


class Spot(NamedTuple):
    x: float
    y: float
    group: str  # that has its colour
    name: str  # said when it is pointed at


def scatter(title: str, spots: Sequence[Spot]) -> str:
    """Places on a plane; the largest groups in colours, the others grey."""
    sizes = Counter(spot.group for spot in spots).most_common(len(GROUPS))
    colour_of = {group: colour for (group, _), colour in zip(sizes, GROUPS)}
    low_x = min(spot.x for spot in spots)
    low_y = min(spot.y for spot in spots)
    scale = (SCATTER - 2 * MARGIN) / max(
        max(spot.x for spot in spots) - low_x, max(spot.y for spot in spots) - low_y, 1e-9
    )
    parts = []
    for spot in spots:
        x = MARGIN + (spot.x - low_x) * scale
        y = MARGIN + (spot.y - low_y) * scale
        colour = colour_of.get(spot.group, GREY)
        tip = f"<title>{escape(spot.group)}: {escape(spot.name)}</title>"
        circle = f'cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity="0.7"'
        parts.append(f"<circle {circle}>{tip}</circle>")
    key = ""
    for group, colour in colour_of.items():
        key += f'<span class="key" style="--c:{colour}">{escape(shortened(group))}</span>'
    if len({spot.group for spot in spots}) > len(GROUPS):
        key += f'<span class="key" style="--c:{GREY}">others</span>'
    style = f'style="max-width:{SCATTER}px" viewBox="0 0 {SCATTER} {SCATTER}"'
    return (
        f'<figure class="map"><figcaption>{escape(title)} {key}</figcaption>'
        f'<svg {style} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """(name, percent, remark) each."""
    lines = []
    for name, percent, remark in rows:
        width = max(0.0, min(100.0, percent))
        lines.append(
            f'<div class="bar"><span class="name" title="{escape(name)}">{escape(name)}</span>'
            f'<span class="track"><i style="width:{width:.1f}%"></i></span>'
            f'<span class="value">{percent:.1f}</span>'
            f'<span class="remark" title="{escape(remark)}">{escape(remark)}</span></div>'
        )
    return f'<div class="bars">{"".join(lines)}</div>'


def matrix(shares: np.ndarray, names: Sequence[str], *, alt: str, side: int = 480) -> str:
    """Values from 0 to 1, [rows, columns], as a picture of squares; names: of a few rows."""
    cell = max(1, side // len(shares))
    strength = np.sqrt(np.clip(shares, 0, 1))[..., None]  # small shares must be seen too
    colours = (255 + strength * (np.array(DARK) - 255)).round().astype(np.uint8)
    if len(shares) <= NAMED_ROWS:
        return _named_matrix(shares, colours, [shortened(name) for name in names], alt, cell)
    image = Image.fromarray(colours.repeat(cell, axis=0).repeat(cell, axis=1))
    return picture(image, alt=alt, kind="PNG", css="matrix")


def _named_matrix(
    shares: np.ndarray, colours: np.ndarray, names: Sequence[str], alt: str, cell: int
) -> str:
    """A drawing of it; squares say what they are when they are pointed at."""
    margin = 8 + LETTER * max(map(len, names))
    size = margin + cell * len(names)
    parts = []
    for row, name in enumerate(names):
        middle = margin + cell * (row + 0.5)
        parts.append(
            f'<text x="{margin - 6}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>'
            f'<text transform="translate({middle + 4} {margin - 6}) rotate(-90)">'
            f"{escape(name)}</text>"
        )
        for column, other in enumerate(names):
            colour = ",".join(map(str, colours[row, column]))
            place = f'x="{margin + cell * column}" y="{margin + cell * row}"'
            tip = escape(f"{name}: {shares[row, column]:.1%} taken for {other}")
            square = f'{place} width="{cell}" height="{cell}" fill="rgb({colour})"'
            parts.append(f"<rect {square}><title>{tip}</title></rect>")
    style = f'style="width:{size}px" viewBox="0 0 {size} {size}"'
    return f'<svg {style} role="img" aria-label="{escape(alt)}">{"".join(parts)}</svg>'


def shortened(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def picture(image: Image.Image, *, alt: str, kind: str = "JPEG", css: str = "") -> str:
    """An <img> that carries its own data."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {}))
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img class="{css}" width="{image.width}" height="{image.height}" alt="{escape(alt)}" '
        f'src="data:image/{kind.lower()};base64,{data}">'
    )


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most MOST_POINTS, each the mean of its neighbours."""
    if len(points) <= MOST_POINTS:
        return list(points)
    return [
        tuple(part.mean(0)) for part in np.array_split(np.array(points, dtype=float), MOST_POINTS)
    ]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values around [low, high]."""
    span = (high - low) or max(abs(high), 1.0) * 0.1
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.floor(low / step)
    return [k * step for k in range(first, max(math.ceil(high / step), first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of round values around [low, high].

    These are 1, 2 and 5 times powers of ten, or the powers alone where that would be too many.
    """
    for parts in ((1, 2, 5), (1,)):
        steps = range(math.floor(low), math.ceil(high) + 2)
        every = [math.log10(m) + k for k in steps for m in parts]
        first = max((k for k, t in enumerate(every) if t <= low), default=0)
        last = next(k for k, t in enumerate(every) if t >= high and k > first)
        if last - first < 7:
            break
    return every[first : last + 1]


def number(value: float) -> str:
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2g}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"

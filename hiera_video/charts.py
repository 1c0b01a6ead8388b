"""Pictures for report.py, as text that goes straight into HTML: curves, bars and matrices."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

Points = Sequence[tuple[float, float]]
COLOURS = ("#2563eb", "#d97706", "#059669")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 210, 52, 12, 12, 26
MOST_POINTS = 400
DARK = (8, 48, 107)  # of a matrix's largest value; 0 is white


def curves(title: str, series: dict[str, Points], *, log_scale: bool = False) -> str:
    """A line for each series over the training step. Empty without points; on a log scale values of 0 are left out."""
    series = {
        name: [p for p in points if math.isfinite(p[1]) and (p[1] > 0 or not log_scale)]
        for name, points in series.items()
    }
    series = {name: thinned(points) for name, points in series.items() if points}
    if not series:
        return ""
    value = math.log10 if log_scale else float
    xs = [x for points in series.values() for x, _ in points]
    ys = [value(y) for points in series.values() for _, y in points]
    x_ticks = ticks(min(xs), max(xs))
    y_ticks = (log_ticks if log_scale else ticks)(min(ys), max(ys))
    low_x, high_x = min(xs), max(max(xs), min(xs) + 1e-9)
    low_y, high_y = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / (high_x - low_x)
        up = (y - low_y) / (high_y - low_y)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in y_ticks:
        y = place(low_x, tick)[1]
        text = number(10**tick if log_scale else tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in x_ticks:
        if low_x <= tick <= high_x:
            x = place(tick, low_y)[0]
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{number(tick)}</text>')
    for (name, points), colour in zip(series.items(), COLOURS):
        line = " ".join("{:.1f},{:.1f}".format(*place(x, value(y))) for x, y in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{line}"/>')
        for x, y in points if len(points) <= 60 else []:
            cx, cy = place(x, value(y))
            tip = f"<title>{escape(name)} {number(y)} at step {number(x)}</title>"
            parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="2.6" fill="{colour}">{tip}</circle>')
    key = "".join(
        f'<span class="key" style="--c:{colour}">{escape(name)} <b>{number(points[-1][1])}</b></span>'
        for (name, points), colour in zip(series.items(), COLOURS)
    )
    return (
        f'<figure class="curve"><figcaption>{escape(title)} {key}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """(name, percent, remark) each."""
    lines = [
        f'<div class="bar"><span class="name" title="{escape(name)}">{escape(name)}</span>'
        f'<span class="track"><i style="width:{max(0.0, min(100.0, percent)):.1f}%"></i></span>'
        f'<span class="value">{percent:.1f}</span><span class="remark" title="{escape(remark)}">{escape(remark)}</span></div>'
        for name, percent, remark in rows
    ]
    return f'<div class="bars">{"".join(lines)}</div>'


def matrix(shares: np.ndarray, *, alt: str, side: int = 480) -> str:
    """Values from 0 to 1, [rows, columns], as a picture of squares."""
    cell = max(1, side // max(shares.shape))
    strength = np.sqrt(np.clip(shares, 0, 1))[..., None]  # small shares must be seen too
    pixels = (255 + strength * (np.array(DARK) - 255)).round().astype(np.uint8)
    image = Image.fromarray(pixels.repeat(cell, axis=0).repeat(cell, axis=1))
    return picture(image, alt=alt, kind="PNG", css="matrix")


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
    return [tuple(part.mean(0)) for part in np.array_split(np.array(points, dtype=float), MOST_POINTS)]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values around [low, high]."""
    span = (high - low) or max(abs(high), 1.0) * 0.1
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.floor(low / step)
    return [k * step for k in range(first, max(math.ceil(high / step), first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of 1, 2 and 5 times powers of ten, or of the powers alone where those were too many, around [low, high]."""
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

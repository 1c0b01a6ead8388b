"""What happens when, in a video: scores of windows as CSV, as a picture, and drawn on the video.

Legend: W windows, scores [W, classes], times [W, 2] in seconds.
"""

import csv
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hiera_video.data.decode.process import BoundedReader
from hiera_video.evaluation.scores import TOP, class_name, ranked
from hiera_video.system.files import written_whole

# Ends of names.
TABLE = ".timeline.csv"
FACTS = ".timeline.json"  # of the video, for those who read the table
ROWS = 8  # classes in the picture
# Pixels of the picture: its width, of which names take some; heights of a row and of the axis.
WIDTH = 1200
NAMES = 260
ROW = 30
AXIS = 34
Font = Any  # Pillow's scalable font
BLUE = (37, 99, 235)
GREY = (107, 114, 128)
DRAWN = 3  # classes written on a frame
FRAMES_HELD = 32


def write_csv(file: Path, times: np.ndarray, scores: torch.Tensor, names: list[str]) -> None:
    """`start_s,end_s,top1_class,top1_name,top1_score,..`"""
    with written_whole(file) as temporary, open(temporary, "w", newline="") as f:
        writer = csv.writer(f)
        head = ["start_s", "end_s"]
        for k in range(1, min(TOP, scores.shape[1]) + 1):
            head += [f"top{k}_class", f"top{k}_name", f"top{k}_score"]
        writer.writerow(head)
        for (start, end), score, classes in zip(times, scores, ranked(scores).tolist()):
            row = [f"{start:.3f}", f"{end:.3f}"]
            for c in classes:
                row += [c, class_name(names, c), f"{score[c]:.6f}"]
            writer.writerow(row)


def draw_picture(
    file: Path, times: np.ndarray, scores: torch.Tensor, names: list[str], *, title: str
) -> None:
    """A row for each of the classes that any window is surest of, time from left to right.

    The darker, the surer.
    """
    shown = ranked_by_peak(scores)
    page = Image.new("RGB", (WIDTH, AXIS + len(shown) * ROW + AXIS), "white")
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(14)
    pen.text((8, 8), title, "black", font)
    first = float(times[:, 0].min())
    last = float(times[:, 1].max())
    scale = (WIDTH - NAMES - 16) / max(last - first, 1e-6)
    edges = np.append(times[:, 0], last)  # a window counts until the next one begins
    for k, c in enumerate(shown):
        top = AXIS + k * ROW
        pen.text((8, top + 7), shortened(class_name(names, c), NAMES - 16, font), "black", font)
        for start, end, score in zip(edges[:-1], edges[1:], scores[:, c].tolist()):
            colour = tuple(round(255 + (part - 255) * score) for part in BLUE)
            left = NAMES + (start - first) * scale
            right = NAMES + (end - first) * scale
            pen.rectangle((left, top + 3, max(right, left), top + ROW - 3), fill=colour)
    for k in range(6):
        second = first + (last - first) * k / 5
        x = NAMES + (second - first) * scale
        text = clock(second)
        x = min(x, WIDTH - 4 - font.getlength(text))
        pen.text((x, page.height - AXIS + 8), text, GREY, font)
    with written_whole(file) as temporary:
        page.save(temporary, "PNG")


def draw_video(
    file: Path,
    video: BoundedReader,
    times: np.ndarray,
    scores: torch.Tensor,
    names: list[str],
) -> None:
    """The video, without sound, with the best classes of the window around each frame.

    Raises VideoError.
    """
    centres = times.mean(1)
    grid = video.info.grid()
    fps = Fraction(video.info.fps).limit_denominator(1001)
    with (
        written_whole(file) as temporary,
        av.open(str(temporary), "w", format="mp4") as container,
    ):
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20"})
        stream.pix_fmt = "yuv420p"
        font: Font = None
        for start in range(0, len(grid), FRAMES_HELD):
            part = grid[start : start + FRAMES_HELD]
            needed, back = np.unique(part, return_inverse=True)
            for index, frame in zip(part, video.get(needed)[back]):
                # The codec wants even sides.
                height = frame.shape[0] - frame.shape[0] % 2
                width = frame.shape[1] - frame.shape[1] % 2
                if font is None:
                    stream.height = height
                    stream.width = width
                    font = ImageFont.load_default(max(10, height // 18))
                window = int(np.abs(centres - video.info.times[index]).argmin())
                image = Image.fromarray(frame[:height, :width])
                image = labelled(image, scores[window], names, font)
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


def labelled(image: Image.Image, scores: torch.Tensor, names: list[str], font: Font) -> Image.Image:
    """With the best classes at the bottom, each on a bar as long as its score."""
    pen = ImageDraw.Draw(image, "RGBA")
    line = round(font.size * 1.35)
    best = ranked(scores).tolist()[:DRAWN]
    top = image.height - line * len(best)
    pen.rectangle((0, top, image.width, image.height), fill=(0, 0, 0, 150))
    for k, c in enumerate(best):
        y = top + k * line
        score = float(scores[c])
        pen.rectangle((0, y + 1, image.width * score, y + line - 1), fill=(*BLUE, 190))
        text = shortened(f"{score:.0%} {class_name(names, c)}", image.width - 8, font)
        pen.text((4, y + line * 0.1), text, "white", font)
    return image


def ranked_by_peak(scores: torch.Tensor) -> list[int]:
    """At most ROWS classes, those with the highest score in any window first."""
    return scores.max(0).values.sort(descending=True, stable=True).indices[:ROWS].tolist()


def shortened(text: str, width: float, font: Font) -> str:
    while font.getlength(text) > width and len(text) > 2:
        text = f"{text[:-2]}…"
    return text


def clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{int(rest):02d}" if hours else f"{minutes}:{rest:04.1f}"

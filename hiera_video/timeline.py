"""What happens when, in a video. Scores of windows over the whole video, as CSV, as a picture, and drawn on it.

Legend: W windows, scores [W, classes], times [W, 2] in seconds.
"""

import csv
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hiera_video.data.dataset import Batch, ClipDataset
from hiera_video.data.packets import VideoError
from hiera_video.files import written_whole
from hiera_video.scores import TOP, ranked

ROWS = 8  # classes in the picture
WIDTH, NAMES, ROW, AXIS = 1200, 260, 30, 34  # pixels of the picture
BLUE, GREY = (37, 99, 235), (107, 114, 128)
DRAWN, AT_A_TIME = 3, 32  # classes written on a frame; frames that are held


def windows_of(dataset: ClipDataset, row: int) -> Iterator[Batch]:
    """Chunks of a video's windows. Raises VideoError."""
    for batch in dataset.chunks(row, 0):
        if batch["clip"] is None:
            raise VideoError(batch["bad"][0][1])
        yield batch


def write_csv(file: Path, times: np.ndarray, scores: torch.Tensor, names: list[str]) -> None:
    """`start_s,end_s,top1_class,top1_name,top1_score,..`"""
    with written_whole(file) as temporary, open(temporary, "w", newline="") as f:
        writer = csv.writer(f)
        places = range(1, min(TOP, scores.shape[1]) + 1)
        writer.writerow(
            ["start_s", "end_s", *(f"top{k}_{what}" for k in places for what in ("class", "name", "score"))]
        )
        for (start, end), score, classes in zip(times, scores, ranked(scores).tolist()):
            best = [cell for c in classes for cell in (c, named(names, c), f"{score[c]:.6f}")]
            writer.writerow([f"{start:.3f}", f"{end:.3f}", *best])


def draw_picture(file: Path, times: np.ndarray, scores: torch.Tensor, names: list[str], *, title: str) -> None:
    """A row for each of the classes that any window is surest of, time from left to right; the darker, the surer."""
    shown = ranked_by_peak(scores)
    page = Image.new("RGB", (WIDTH, AXIS + len(shown) * ROW + AXIS), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    pen.text((8, 8), title, "black", font)
    first, last = float(times[:, 0].min()), float(times[:, 1].max())
    scale = (WIDTH - NAMES - 16) / max(last - first, 1e-6)
    edges = np.append(times[:, 0], last)  # a window counts until the next one begins
    for k, c in enumerate(shown):
        top = AXIS + k * ROW
        pen.text((8, top + 7), shortened(named(names, c), NAMES - 16, font), "black", font)
        for start, end, score in zip(edges[:-1], edges[1:], scores[:, c].tolist()):
            colour = tuple(round(255 + (part - 255) * score) for part in BLUE)
            left, right = NAMES + (start - first) * scale, NAMES + (end - first) * scale
            pen.rectangle((left, top + 3, max(right, left), top + ROW - 3), fill=colour)
    for k in range(6):
        second = first + (last - first) * k / 5
        x, text = NAMES + (second - first) * scale, clock(second)
        pen.text((min(x, WIDTH - 4 - font.getlength(text)), page.height - AXIS + 8), text, GREY, font)
    with written_whole(file) as temporary:
        page.save(temporary, "PNG")


def draw_video(
    file: Path, dataset: ClipDataset, row: int, times: np.ndarray, scores: torch.Tensor, names: list[str]
) -> None:
    """The video, without sound, with the best classes of the window around each frame. Raises VideoError."""
    centres = times.mean(1)
    with (
        dataset.decoding.open(dataset.videos.path(row), "auto") as video,
        written_whole(file) as temporary,
        av.open(str(temporary), "w", format="mp4") as container,
    ):
        grid, fps = video.info.grid(), video.info.fps
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "20"})
        stream.pix_fmt, font = "yuv420p", None
        for start in range(0, len(grid), AT_A_TIME):
            part = grid[start : start + AT_A_TIME]
            needed, back = np.unique(part, return_inverse=True)
            for index, frame in zip(part, video.get(needed)[back]):
                height, width = (n - n % 2 for n in frame.shape[:2])  # the codec wants even sides
                if font is None:
                    stream.height, stream.width = height, width
                    font = ImageFont.load_default(max(10, height // 18))
                at = int(np.abs(centres - video.info.times[index]).argmin())
                image = labelled(Image.fromarray(frame[:height, :width]), scores[at], names, font)
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


def labelled(image: Image.Image, scores: torch.Tensor, names: list[str], font: ImageFont.FreeTypeFont) -> Image.Image:
    """With the best classes at the bottom, each on a bar as long as its score."""
    pen, line = ImageDraw.Draw(image, "RGBA"), round(font.size * 1.35)
    best = ranked(scores).tolist()[:DRAWN]
    top = image.height - line * len(best)
    pen.rectangle((0, top, image.width, image.height), fill=(0, 0, 0, 150))
    for k, c in enumerate(best):
        y, score = top + k * line, float(scores[c])
        pen.rectangle((0, y + 1, image.width * score, y + line - 1), fill=(*BLUE, 190))
        text = shortened(f"{score:.0%} {named(names, c)}", image.width - 8, font)
        pen.text((4, y + line * 0.1), text, "white", font)
    return image


def ranked_by_peak(scores: torch.Tensor) -> list[int]:
    """At most ROWS classes, those with the highest score in any window first."""
    return scores.max(0).values.sort(descending=True, stable=True).indices[:ROWS].tolist()


def named(names: list[str], c: int) -> str:
    return names[c] if names else f"class {c}"


def shortened(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    while font.getlength(text) > width and len(text) > 2:
        text = f"{text[:-2]}…"
    return text


def clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{int(rest):02d}" if hours else f"{minutes}:{rest:04.1f}"

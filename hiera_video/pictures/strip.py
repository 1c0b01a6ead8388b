"""Some frames of a video side by side, as a picture that stands in a page."""

import numpy as np
from PIL import Image

from hiera_video.data.decode.source import VideoSource
from hiera_video.pictures import charts
from hiera_video.system.errors import Unavailable, VideoError

FRAMES = 3
HEIGHT = 96  # pixels
GAP = 2


def strip(
    source: VideoSource, path: str, *, alt: str, span: tuple[float, float] | None = None
) -> str:
    """HTML; nothing where the video cannot be read. span: seconds; default all of it."""
    try:
        frames = spread_frames(source, path, FRAMES, span=span)
    except (VideoError, Unavailable):
        return ""
    height, width = frames.shape[1:3]
    size = (max(1, round(width * HEIGHT / height)), HEIGHT)
    step = size[0] + GAP
    image = Image.new("RGB", (len(frames) * step - GAP, HEIGHT), "white")
    for k, frame in enumerate(frames):
        image.paste(Image.fromarray(frame).resize(size), (k * step, 0))
    return charts.picture(image, alt=alt)


def spread_frames(
    source: VideoSource, path: str, count: int, *, span: tuple[float, float] | None = None
) -> np.ndarray:
    """At most `count` frames, evenly over a video or a part: uint8 [N, H, W, 3].

    Raises VideoError.
    """
    with source.open(path) as video:
        first = 0
        last = video.info.num_frames - 1
        if span is not None:
            first, last = np.searchsorted(video.info.times, span).clip(0, last).tolist()
        inner = np.linspace(first, last, count + 2)[1:-1]  # neither the first nor the last one
        return video.get(np.unique(inner.astype(int)))

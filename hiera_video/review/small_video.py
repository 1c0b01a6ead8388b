"""A video, or a segment of one, as a small MP4 that every browser plays."""

import math
from pathlib import Path
from typing import Any

import av
import numpy as np

from hiera_video.review.items import Item
from hiera_video.system.errors import VideoError
from hiera_video.system.files import written_whole

SIDE = 360  # of a frame, at most, in pixels
FPS = 30.0
MOST_S = 60.0


def small_video(item: Item, file: Path, open_video: Any) -> Path:
    """The file, which is made once. open_video: as VideoSource.open. Raises VideoError, OSError."""
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with open_video(item.place) as video, written_whole(file) as whole:
        info = video.info
        start, end = item.segment or (0.0, math.inf)
        end = min(end, start + MOST_S)
        times = np.arange(start, min(end, info.num_frames / info.fps), 1 / min(info.fps, FPS))
        if len(times) == 0:
            raise VideoError("the segment begins behind the end of its video")
        frames = np.searchsorted(info.times, times + 1e-6, side="right") - 1
        frames = frames.clip(0, info.num_frames - 1)
        # By its name it would not be known as MP4.
        with av.open(str(whole), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream: Any = container.add_stream("libx264", rate=round(min(info.fps, FPS)))
            stream.pix_fmt = "yuv420p"
            is_first = True
            numbers = np.unique(frames)
            for some, images in video.parts(numbers):
                for number, image in zip(some, images):
                    height, width = image.shape[:2]
                    shrink = min(1.0, SIDE / max(height, width))
                    if is_first:
                        stream.width = max(2, 2 * round(width * shrink / 2))
                        stream.height = max(2, 2 * round(height * shrink / 2))
                        is_first = False
                    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                    for _ in range(int((frames == number).sum())):  # one that stays is repeated
                        container.mux(stream.encode(frame.reformat(stream.width, stream.height)))
            container.mux(stream.encode())
    return file

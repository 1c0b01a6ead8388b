"""What testing one large video takes: frames are cropped and resized as they come."""

import subprocess
import sys

import av
import numpy as np
import pytest
from conftest import ROOT

# Peak of the worker above what its imports took, and of its decoding process, in bytes.
PROGRAM = """
import sys
from pathlib import Path
import torch
from hiera_video.data.dataset import ClipDataset, Key
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import VideoList
from hiera_video.data.sampling import ClipShape, UniformClips
from hiera_video.data.transforms import EvalCrops

def peak(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

torch.set_num_threads(1)
source = VideoSource(timeout_s=300)
videos = ClipDataset(
    VideoList([sys.argv[1]], [0]),
    sample=UniformClips(ClipShape(), 5),
    transform=EvalCrops(224, 224, 3),
    source=source,
)
before = peak("self")
views = videos[Key(0, 0)]["clip"]
assert views.shape == (15, 3, 16, 224, 224), views.shape
print(peak("self") - before, peak(source.process._child.pid))
source.close()
"""


@pytest.mark.trial
@pytest.mark.parametrize(
    "width, height, limit", [(1920, 1080, 350e6), (3840, 2160, 900e6)], ids=["1080p", "4K"]
)
def test_five_by_three_views_of_a_large_video(tmp_path, width, height, limit):
    y, x = np.mgrid[0:height, 0:width]
    with av.open(tmp_path / "large.mp4", "w") as file:
        stream = file.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        for number in [*range(120), None]:
            picture = None
            if number is not None:
                moving = ((x + 7 * number) // 3 ^ (y + 3 * number) // 5) & 255
                frame = np.stack([moving, x // 16 & 255, y // 9 & 255], axis=2).astype(np.uint8)
                picture = av.VideoFrame.from_ndarray(frame)
            file.mux(stream.encode(picture))
    command = [sys.executable, "-c", PROGRAM, tmp_path / "large.mp4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    worker, child = map(int, done.stdout.split())
    print(f"{height} lines: worker {worker / 1e6:.0f} MB, decoding process {child / 1e6:.0f} MB")
    assert worker + child < limit

"""Which frames make a clip: every sampler on a video of 10 s at 30 frames/s, as a picture.

python examples/draw_sampling.py [PICTURE]
"""

import sys

import numpy as np
from PIL import Image, ImageDraw

from hiera_video.data.sampling import (
    ClipShape,
    RandomClip,
    RandomSegments,
    SlidingWindows,
    UniformClips,
    UniformSegments,
)

FRAMES, FPS = 300, 30.0
LEFT, ROW, SCALE = 220, 14, 3  # pixels: names, height of a clip, width of a frame

picture = sys.argv[1] if len(sys.argv) > 1 else "sampling.png"
shape = ClipShape(num_frames=16, sampling_rate=4)  # a clip of 64 frames, every 4th of them
samplers = {
    "RandomClip (training)": RandomClip(shape),
    "UniformClips, 5 (testing)": UniformClips(shape, 5),
    "SlidingWindows (features)": SlidingWindows(shape, hop_s=1.0),
    "RandomSegments (SSv2 training)": RandomSegments(16),
    "UniformSegments, 2 (SSv2 testing)": UniformSegments(16, 2),
}

rng = np.random.default_rng(0)
drawn = {name: sample(FRAMES, FPS, rng) for name, sample in samplers.items()}  # [clips, 16] each
rows = sum(len(clips) + 1 for clips in drawn.values())
page = Image.new("RGB", (LEFT + FRAMES * SCALE + 10, rows * ROW + 10), "white")
pen = ImageDraw.Draw(page)
y = 5
for name, clips in drawn.items():
    pen.text((5, y), name, "black")
    for clip in clips:
        pen.line((LEFT, y + ROW / 2, LEFT + FRAMES * SCALE, y + ROW / 2), "#e5e7eb")
        for frame in clip:
            x = LEFT + int(frame) * SCALE
            pen.rectangle((x, y + 2, x + SCALE - 1, y + ROW - 3), "#2563eb")
        y += ROW
    y += ROW
page.save(picture)
print(f"{picture}: {len(drawn)} samplers")

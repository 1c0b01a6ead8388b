"""Features of videos, and the videos that are nearest to one of them.

python examples/nearest_videos.py [WEIGHTS [FOLDER]]
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import hiera_video

weights = sys.argv[1] if len(sys.argv) > 1 else "runs/demo/finetune"
folder = Path(sys.argv[2] if len(sys.argv) > 2 else "data/moving_shapes/val")

model = hiera_video.load(weights)
videos = sorted(folder.rglob("*.mp4"))[:40]

# One vector a video: the mean over its windows.
features = torch.stack([model.features(video).features.mean(0) for video in videos])

# Cosine similarity of all pairs, without each video itself.
similarity = F.normalize(features, dim=1) @ F.normalize(features, dim=1).T
similarity.fill_diagonal_(-1)

print(f"nearest to {videos[0].relative_to(folder)}:")
for score, k in zip(*similarity[0].topk(3)):
    print(f"  {score:.3f}  {videos[int(k)].relative_to(folder)}")

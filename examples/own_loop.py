"""A Hiera inside your own training loop: our data set and model, everything else yours.

python examples/own_loop.py [FOLDER [STEPS]]

Twenty steps show that it runs; chance is a loss of 2.08 on the demo's eight classes.
"""

import sys

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from hiera_video.data.dataset import ClipDataset, Key, collate
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import read_videos
from hiera_video.data.sampling import ClipShape, RandomClip
from hiera_video.data.transforms import TrainCrop, normalise
from hiera_video.models import create_hiera

folder = sys.argv[1] if len(sys.argv) > 1 else "data/moving_shapes"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20

# 8 frames, every second one, and a random crop of 64 x 64. Videos that cannot be read are replaced.
dataset = ClipDataset(
    read_videos("train.csv", root=folder),
    sample=RandomClip(ClipShape(num_frames=8, sampling_rate=2)),
    transform=TrainCrop(size=64, scale=(0.8, 1.0)),
    source=VideoSource(),
    substitute=True,
)
# A sample is named by (epoch, index): the same name, the same crop.
torch.manual_seed(0)
rows = torch.randint(len(dataset), (steps, 8)).tolist()
batches = [[Key(step, row) for row in of_step] for step, of_step in enumerate(rows)]
loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate)

model = create_hiera(
    "hiera_tiny_16x224",
    input_size=(8, 64, 64),
    embed_dim=32,
    stages=(1, 2, 3, 1),
    num_classes=8,
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
for step, batch in enumerate(loader):
    clips = normalise(batch["clip"][:, 0])  # one view a video: uint8 -> float [B, 3, T, S, S]
    loss = F.cross_entropy(model(clips), batch["label"])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 5 == 0 or step == steps - 1:
        print(f"step {step} loss {loss.item():.3f}")

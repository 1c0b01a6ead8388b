"""Load a model and predict a video.

python examples/predict.py [WEIGHTS [VIDEO]]
"""

import sys

import hiera_video

weights = sys.argv[1] if len(sys.argv) > 1 else "runs/demo/finetune"
video = sys.argv[2] if len(sys.argv) > 2 else "data/moving_shapes/val/closed_open_wide/00000.mp4"

# A run folder or a weight file. It knows its classes and how its clips are made.
model = hiera_video.load(weights)

# 5 clips x 3 crops, their softmax scores averaged.
for prediction in model.predict(video, top=3):
    print(f"{prediction.score:7.2%}  {prediction.label}")

# What happens when: scores of windows over the whole video.
timeline = model.timeline(video, hop_s=0.2)
for (start, end), scores in zip(timeline.times, timeline.scores):
    best = int(scores.argmax())
    print(f"{start:4.1f} to {end:4.1f} s: {model.name_of(best)} {scores[best]:.2f}")

# A video that cannot be read is an error of its own kind.
try:
    model.predict("no_such_video.mp4")
except hiera_video.VideoError as e:
    print(f"no_such_video.mp4: {e}")

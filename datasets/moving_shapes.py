"""MovingShapes: a small labelled video data set that is drawn, in real MP4 files (H.264).

    python datasets/moving_shapes.py data/moving_shapes

Eight classes: a disc or a square that moves left, right, up or down. Colour, size, speed, place and
the (dark) ground vary. A single frame does not tell the direction, so a model has to look at
motion, and videos must never be mirrored. The frames are wider than high, so that three test crops
differ. Train and val never share a seed. Writes train.csv, val.csv (paths relative to the folder)
and classes.txt. The same arguments give the same pixels; a finished folder is left as it is.
"""

import argparse
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH = 96
HEIGHT = 64
NUM_FRAMES = 24
FPS = 30
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SHAPES = ("disc", "square")
CLASSES = [f"{shape} moving {direction}" for shape in SHAPES for direction in DIRECTIONS]


def draw_video(label: int, seed: int) -> np.ndarray:
    """uint8 [NUM_FRAMES, HEIGHT, WIDTH, 3]"""
    rng = np.random.default_rng([label, seed])
    shape = SHAPES[label // 4]
    (dx, dy) = list(DIRECTIONS.values())[label % 4]
    radius = rng.uniform(10, 14)
    speed = rng.uniform(2.0, 2.8)
    background = rng.uniform(30, 50, 3)
    colour = rng.uniform(180, 250, 3)
    # The place at half time; near the middle, so that the shape is at least partly in each of the
    # three crops.
    centre = np.array([rng.uniform(34, 62), rng.uniform(26, 38)])
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    # A ground that is not flat gives a masked autoencoder something to predict.
    slope = rng.uniform(-0.1, 0.1, 2)
    ramp = ((x - WIDTH / 2) * slope[0] + (y - HEIGHT / 2) * slope[1])[..., None]
    frames = []
    for t in range(NUM_FRAMES):
        cx, cy = centre + np.array([dx, dy]) * speed * (t - NUM_FRAMES / 2)
        if shape == "disc":
            distance = np.hypot(x - cx, y - cy) - radius
        else:
            distance = np.maximum(abs(x - cx), abs(y - cy)) - radius * 0.88  # about the same area
        inside = np.clip(0.5 - distance, 0, 1)[..., None]  # a soft edge, one pixel wide
        image = background + ramp + inside * (colour - background)
        frames.append(np.clip(image, 0, 255).astype(np.uint8))
    return np.stack(frames)


def write_video(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        # mbtree=0: x264's macroblock tree gave other bytes for the same frames in a fifth of the
        # videos, even in one thread.
        options = {"crf": "20", "preset": "veryfast", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.width = frames.shape[2]
        stream.height = frames.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def make_dataset(folder: Path, *, train: int, val: int) -> None:
    """Writes `train` and `val` videos, evenly over the classes, in folders train/ and val/."""
    if (folder / "val.csv").exists():
        print(f"{folder}: there already")
        return
    (folder / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for split, count, first_seed in (("train", train, 0), ("val", val, 1_000_000)):
        rows = []
        for i in range(count):
            label = i % len(CLASSES)
            path = Path(split, CLASSES[label].replace(" ", "_"), f"{i:05d}.mp4")
            write_video(folder / path, draw_video(label, first_seed + i))
            rows.append(f"{path} {label}\n")
        # val.csv comes last and says that all is there.
        (folder / f"{split}.csv").write_text("".join(rows))
    print(f"{folder}: {train} training and {val} validation videos, {len(CLASSES)} classes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=800, help="number of training videos")
    parser.add_argument("--val", type=int, default=160, help="number of validation videos")
    args = parser.parse_args()
    make_dataset(args.folder, train=args.train, val=args.val)


if __name__ == "__main__":
    main()

"""MovingShapes: a small labelled video data set that is drawn, in real MP4 files (H.264).

    python datasets/moving_shapes.py data/moving_shapes

A mouth says one of eight words. A word is three poses out of four (closed, open, wide, round) in
an order, so no single frame tells it, and the poses differ by little. Place, size, tilt, colours,
texture, light, tempo and a camera that drifts vary, too, but the words are a good part of what
does: that is what a pretraining needs. The frames are wider than high, so that three test crops
differ. Train and val never share a seed. Writes train.csv, val.csv (paths relative to the folder)
and classes.txt. The same arguments give the same pixels; a finished folder is left as it is.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np

WIDTH = 96
HEIGHT = 64
NUM_FRAMES = 28
AROUND = 2  # still frames before and after the word: clips of 24 frames differ
FPS = 30
# How far the lips are apart, and how wide the mouth is, as shares of its size.
POSES = {"closed": (0.31, 0.97), "open": (0.59, 0.94), "wide": (0.38, 1.06), "round": (0.43, 0.83)}
CLASSES = [
    "closed open wide",
    "closed wide open",
    "open closed wide",
    "wide closed open",
    "open wide closed",
    "wide open closed",
    "closed round open",
    "open round closed",
]


def draw_video(label: int, seed: int) -> np.ndarray:
    """uint8 [NUM_FRAMES, HEIGHT, WIDTH, 3]"""
    rng = np.random.default_rng([label, seed])
    gap, width = draw_word(rng, CLASSES[label].split())
    size = rng.uniform(15, 17)
    lip = rng.uniform(4, 5)
    tilt = rng.uniform(-0.1, 0.1)
    skin = np.array([190, 150, 130]) + rng.uniform(-10, 10, 3)
    lips = skin * rng.uniform([0.8, 0.5, 0.5], [0.9, 0.6, 0.6])
    dark = skin * rng.uniform(0.2, 0.3)
    teeth = np.full(3, rng.uniform(190, 230))
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    light = rng.normal(0, 8, 2)
    slope = light[0] * (x / HEIGHT - 0.75) + light[1] * (y / HEIGHT - 0.5)
    ground = draw_texture(rng) * rng.uniform(3, 8)
    # The mouth and the ground drift together, with a tremble.
    time = np.linspace(-1, 1, NUM_FRAMES)[:, None]
    drift = rng.normal(0, 1, 2) * time + rng.normal(0, 0.3, (NUM_FRAMES, 2))
    centre = np.array([WIDTH / 2, HEIGHT / 2]) + rng.uniform(-4, 4, 2)
    frames = []
    for t in range(NUM_FRAMES):
        dx = x - centre[0] - drift[t, 0]
        dy = y - centre[1] - drift[t, 1]
        along = np.cos(tilt) * dx + np.sin(tilt) * dy
        across = np.cos(tilt) * dy - np.sin(tilt) * dx
        half = np.array([size * width[t], size * 0.75 * gap[t] + 0.6])
        top, left = np.round(-drift[t, ::-1]).astype(int)
        around = np.roll(ground, (-top, -left), (0, 1))[:HEIGHT, :WIDTH] + slope
        image = skin + around[..., None]
        image = blend(image, lips, ellipse(along, across, half + lip))
        inside = blend(np.broadcast_to(dark, image.shape), teeth, -across - half[1] * 0.45)
        image = blend(image, inside, ellipse(along, across, half))
        frames.append(np.clip(image + rng.normal(0, 1, image.shape), 0, 255).astype(np.uint8))
    return np.stack(frames)


def draw_word(rng: np.random.Generator, word: list[str]) -> np.ndarray:
    """Gap and width of the mouth in every frame: [2, NUM_FRAMES]"""
    poses = np.array([POSES[pose] for pose in word]) * rng.normal(1, 0.05, (3, 2))
    lasts = rng.uniform(0.7, 1.3, 4)
    at = 0.02 + 0.9 * np.cumsum(lasts)[:3] / lasts.sum()
    time = (np.arange(NUM_FRAMES) - AROUND) / (NUM_FRAMES - 1 - 2 * AROUND)
    return np.stack([np.interp(time, at, pose) for pose in poses.T])


def draw_texture(rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of unit variance, twice as high and as wide as a frame."""
    frequency = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, (2 * WIDTH, 2 * HEIGHT))))
    frequency[0, 0] = np.inf
    noise = rng.normal(size=(2, *frequency.shape))
    texture = np.fft.ifft2((noise[0] + 1j * noise[1]) / frequency**1.8).real
    return texture / texture.std()


def ellipse(x: np.ndarray, y: np.ndarray, half: np.ndarray) -> np.ndarray:
    """How far inside an ellipse of these half axes a point is, about in pixels."""
    return (1 - np.hypot(x / half[0], y / half[1])) * half.min()


def blend(image: np.ndarray, other: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The other one where `inside` is positive, with an edge one pixel wide."""
    share = np.clip(inside + 0.5, 0, 1)[..., None]
    return image + share * (other - image)


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


def make_video(path: Path, label: int, seed: int) -> None:
    write_video(path, draw_video(label, seed))


def make_dataset(folder: Path, *, train: int, val: int) -> None:
    """Writes `train` and `val` videos, evenly over the classes, in folders train/ and val/.

    A folder that holds other classes ends it with exit status 2.
    """
    names = "".join(f"{name}\n" for name in CLASSES)
    if (folder / "val.csv").exists():
        if (folder / "classes.txt").read_text() != names:
            print(f"error: {folder} holds other videos: remove it", file=sys.stderr)
            sys.exit(2)
        print(f"{folder}: there already")
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text(names)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for split, count, first_seed in (("train", train, 0), ("val", val, 1_000_000)):
            labels = [i % len(CLASSES) for i in range(count)]
            paths = [
                Path(split, CLASSES[label].replace(" ", "_"), f"{i:05d}.mp4")
                for i, label in enumerate(labels)
            ]
            seeds = range(first_seed, first_seed + count)
            files = [folder / path for path in paths]
            list(pool.map(make_video, files, labels, seeds, chunksize=8))
            # val.csv comes last and says that all is there.
            rows = "".join(f"{path} {label}\n" for path, label in zip(paths, labels))
            (folder / f"{split}.csv").write_text(rows)
    print(f"{folder}: {train} training and {val} validation videos, {len(CLASSES)} classes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=1600, help="number of training videos")
    parser.add_argument("--val", type=int, default=320, help="number of validation videos")
    args = parser.parse_args()
    make_dataset(args.folder, train=args.train, val=args.val)


if __name__ == "__main__":
    main()

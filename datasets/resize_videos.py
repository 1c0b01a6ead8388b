"""Re-encodes videos once so that every epoch decodes them several times faster.

    python datasets/resize_videos.py /k400/train.csv /k400/val.csv --output /k400_256

H.264 with the short side given (--short-side, never enlarged), a keyframe every --keyframes frames,
in between one frame in four that others build on (PyAV and `auto` do not decode the rest unless a
clip wants them), no loop filter (tune fastdecode), no sound. Frames, their times and their order
stay; a rotation is applied.

Writes the videos under --output with the same relative paths (suffix .mp4), the lists beside them,
failed.csv (path,reason) and settings.json: other settings need another folder. Each video is made
in a process that is killed after --timeout seconds, counted again, and only then given its name:
the same command goes on where it was stopped, and a damaged video is left out of the new lists. At
the end it says what was saved.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import numpy as np
from tqdm import tqdm

from hiera_video.data.decode.readers import inspect_video, open_video
from hiera_video.data.lists import VideoList, read_videos
from hiera_video.data.sampling import random_clip
from hiera_video.system.errors import UserError, VideoError, run_command

SAMPLED = 8  # videos whose clips are timed before and after


def target_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width), even, the short side at most `short_side`."""
    scale = min(1.0, short_side / min(height, width))
    return tuple(max(2, 2 * round(side * scale / 2)) for side in (height, width))


def reencode(source: str, target: Path, *, short_side: int, keyframes: int, crf: int) -> None:
    """Writes the new file.

    Raises VideoError for a frame that does not decode, and when the result has another number of
    frames.
    """
    with open_video(source, "pyav") as video:
        frames, height, width = video.info.num_frames, *video.get([0]).shape[1:3]
        step = 1 / Fraction(video.info.fps).limit_denominator(100_000)
        size = target_size(height, width, short_side)
        # In thousandths of a frame.
        stamps = np.round(video.info.times / float(step) * 1000).astype(np.int64)
        with av.open(
            str(target), "w", format="mp4", container_options={"movflags": "faststart"}
        ) as container:
            stream = container.add_stream("libx264", rate=1 / step)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            stream.codec_context.time_base = step / 1000
            stream.codec_context.thread_count = 1
            groups = "scenecut=0:open-gop=0:bframes=3:b-adapt=0:b-pyramid=none"
            options = {
                "preset": "medium",
                "tune": "fastdecode",
                "crf": crf,
                "g": keyframes,
                "x264-params": groups,
            }
            stream.options = {k: str(v) for k, v in options.items()}
            for first in range(0, frames, 32):  # bounded memory
                for k, image in enumerate(
                    video.get(np.arange(first, min(first + 32, frames))), start=first
                ):
                    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                    frame = frame.reformat(
                        size[1], size[0], "yuv420p", interpolation="AREA", threads=1
                    )
                    frame.pts = int(stamps[k])
                    frame.time_base = step / 1000
                    container.mux(stream.encode(frame))
            container.mux(stream.encode())
    report = inspect_video(target)
    if report.frames != frames or report.damage or (report.height, report.width) != size:
        raise VideoError(
            f"the new file has {report.frames} frames of {report.width}x{report.height} "
            f"{report.damage}"
        )


class Resizer:
    """Makes one video after the other, each in a process of its own.

    Returns why it failed; empty if the video is there.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def __call__(self, source: str, target: Path) -> str:
        if target.exists():
            return ""
        temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
        args = self.args
        target.parent.mkdir(parents=True, exist_ok=True)
        settings = [
            f"--short-side={args.short_side}",
            f"--keyframes={args.keyframes}",
            f"--crf={args.crf}",
        ]
        command = [sys.executable, __file__, "--one", source, str(temporary), *settings]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout)
        except subprocess.TimeoutExpired:
            temporary.unlink(missing_ok=True)
            return f"took more than {args.timeout:g} s"
        if done.returncode:
            temporary.unlink(missing_ok=True)
            lines = done.stderr.strip().splitlines()
            return (
                lines[-1].removeprefix("error: ")
                if lines
                else f"the process ended with {done.returncode}"
            )
        temporary.replace(target)
        return ""


def new_name(written: str) -> str:
    return str(Path(written).with_suffix(".mp4"))


def clip_ms(paths: list[str]) -> float:
    """Mean time of a 16x4 clip."""
    rng = np.random.default_rng(0)
    spent = 0.0
    for path in paths:
        for _ in range(4):
            began = time.perf_counter()
            with open_video(path) as video:
                video.get(random_clip(video.info.num_frames, video.info.fps, rng=rng)[0])
            spent += time.perf_counter() - began
    return 1e3 * spent / (4 * len(paths))


def resize_lists(lists: dict[str, VideoList], args: argparse.Namespace) -> None:
    jobs = {}  # target -> source; a video may stand in several lists
    for videos in lists.values():
        for i in range(len(videos)):
            written = videos.written(i)
            if os.path.isabs(written) or ".." in Path(written).parts:
                raise UserError(
                    f"{videos.source}: {written} is not below --root; lists need paths relative to "
                    "it"
                )
            source = jobs.setdefault(args.output / new_name(written), videos.path(i))
            if source != videos.path(i):
                raise UserError(
                    f"{videos.source}: {written} and {source} would both become {new_name(written)}"
                )
    with ThreadPoolExecutor(args.workers) as pool:
        results = pool.map(Resizer(args), jobs.values(), jobs)
        shown = tqdm(
            zip(jobs, results), total=len(jobs), unit="videos", disable=not sys.stderr.isatty()
        )
        failed = {}
        for target, why in shown:
            if why:
                failed[target] = why
                tqdm.write(f"left out: {jobs[target]}: {why}")
    with open(args.output / "failed.csv", "w", newline="") as f:
        csv.writer(f).writerows(
            [("path", "reason"), *((jobs[t], why) for t, why in failed.items())]
        )
    for name, videos in lists.items():
        rows = [
            i for i in range(len(videos)) if args.output / new_name(videos.written(i)) not in failed
        ]
        lines = [videos.line(i, new_name(videos.written(i))) + "\n" for i in rows]
        (args.output / name).write_text(
            videos.head() + "".join(lines), encoding="utf-8", errors="surrogateescape"
        )
    for folder in {Path(videos.source).parent for videos in lists.values()}:
        if (folder / "classes.txt").is_file():
            shutil.copy(folder / "classes.txt", args.output)
    done = [t for t in jobs if t not in failed]
    if not done:
        raise UserError(
            f"none of the {len(jobs)} videos could be made; {args.output / 'failed.csv'} says why"
        )
    before = sum(os.path.getsize(jobs[target]) for target in done)
    after = sum(os.path.getsize(target) for target in done)
    sampled = [done[i] for i in np.linspace(0, len(done) - 1, min(SAMPLED, len(done))).astype(int)]
    ms = [clip_ms([jobs[t] for t in sampled]), clip_ms([str(t) for t in sampled])]
    print(
        f"{len(done)} of {len(jobs)} videos in {args.output}: {before / 2**20:.1f} MiB -> "
        f"{after / 2**20:.1f} MiB; a 16x4 clip "
        f"{ms[0]:.1f} ms -> {ms[1]:.1f} ms, {ms[0] / ms[1]:.1f} times cheaper ({len(sampled)} "
        "videos sampled)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lists", type=Path, nargs="*", help="`path label` a line")
    parser.add_argument("--root", type=Path, help="folder of relative paths; default: each list's")
    parser.add_argument("--output", type=Path, help="folder of the new videos and lists")
    parser.add_argument("--short-side", type=int, default=256, help="pixels")
    parser.add_argument("--keyframes", type=int, default=16, help="frames from one to the next")
    parser.add_argument("--crf", type=int, default=20, help="quality; smaller is better and larger")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one video")
    # The process of one video: source, target.
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    settings = {"short_side": args.short_side, "keyframes": args.keyframes, "crf": args.crf}
    if args.one:
        try:
            reencode(args.one[0], Path(args.one[1]), **settings)
        except VideoError as e:
            raise UserError(str(e)) from e
        return
    if not args.lists or args.output is None:
        raise UserError("give one list or more, and --output")
    for name in ("short_side", "keyframes", "workers", "timeout"):
        if getattr(args, name) < (2 if name == "short_side" else 1):
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)} is too small")
    if len({file.name for file in args.lists}) < len(args.lists):
        raise UserError("two of the lists have the same name")
    lists = {
        file.name: read_videos(
            file.absolute(), root=args.root or file.absolute().parent, key="list"
        )
        for file in args.lists
    }
    args.output.mkdir(parents=True, exist_ok=True)
    if any(
        (args.output / name).exists() and (args.output / name).samefile(f)
        for name, f in zip(lists, args.lists)
    ):
        raise UserError(
            f"--output {args.output} is the folder of the lists themselves; give another"
        )
    check_settings(args.output / "settings.json", settings)
    resize_lists(lists, args)


def check_settings(file: Path, settings: dict[str, int]) -> None:
    """Raises UserError where the videos that are there were made in another way."""
    if not file.exists():
        file.write_text(json.dumps(settings) + "\n")
        return
    for name, before in json.loads(file.read_text()).items():
        if settings.get(name) != before:
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"--output {file.parent} holds videos made with {option} {before}, not "
                f"{settings.get(name)}; give another folder"
            )


if __name__ == "__main__":
    run_command(main)

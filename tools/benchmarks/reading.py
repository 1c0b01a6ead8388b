"""Side-by-side speed of reading clips: ours, PyTorchVideo's loader, plain decord.

    python tools/benchmark.py loader /k400/val/*.mp4    # one clip; repeats; where the time goes
    python tools/benchmark.py views /k400/val/*.mp4     # 5 clips x 3 crops from one decode or 15

`views` also measures what the test loop costs beside the forward pass. Contenders take turns on the
same files and the same clips, in one process and on one core each. A clip is 16 frames, stride 4,
at a random place, as uint8 RGB; PyTorchVideo gives the 64 frames of its window as float32. Without
videos a Kinetics-like one is made (340x256, 10 s, 30 fps, keyframe interval 250, B frames, about 1
Mbit/s): --keyframes sets another interval. --step-ms: what a model's step takes, to say how many
workers feed it.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from benchmarks.shared import (
    describe,
    make_kinetics_like,
    make_parser,
    print_table,
    write_figures,
)
from benchmarks.views import benchmark_views

from hiera_video.data.dataset import collate
from hiera_video.data.decode import pyav_reader
from hiera_video.data.decode.packets import Manifest
from hiera_video.data.decode.process import DecodeProcess
from hiera_video.data.decode.readers import missing_decoder, open_video
from hiera_video.data.sampling import (
    random_clip,
)
from hiera_video.data.transforms import TrainCrop
from hiera_video.system.errors import UserError, VideoError

CLIP_S = 64 / 30


# -- one clip


def ours(
    path: str, indices: np.ndarray, *, decoder: str, manifest: Manifest | None = None
) -> np.ndarray:
    with open_video(path, decoder, manifest=manifest) as video:
        return video.get(indices)


def bounded(path: str, indices: np.ndarray, *, process: DecodeProcess) -> np.ndarray:
    with process.open(path, "auto") as video:
        return video.get(indices)


def plain_decord(path: str, indices: np.ndarray) -> np.ndarray:
    import decord

    frames = decord.VideoReader(path, num_threads=1).get_batch(indices.tolist())
    return frames.asnumpy() if hasattr(frames, "asnumpy") else frames.numpy()


class PyTorchVideo:
    """Clips of its LabeledVideoDataset, one file at a time; the sound is not decoded."""

    def __init__(self, decoder: str):
        from pytorchvideo.data import LabeledVideoDataset, make_clip_sampler

        self.make = partial(
            LabeledVideoDataset,
            clip_sampler=make_clip_sampler("random", CLIP_S),
            video_sampler=torch.utils.data.SequentialSampler,
            decode_audio=False,
            decoder=decoder,
        )

    def __call__(self, path: str, indices: np.ndarray) -> torch.Tensor:
        return next(iter(self.make([(path, {"label": 0})])))["video"]


def codec_seconds(path: str, indices: np.ndarray) -> float:
    """The floor: the wanted frames and those they need, decoded from memory and not converted."""
    with open_video(path, "pyav") as video:
        packets = video.packets
    if not packets.pts:
        return float("nan")
    wanted = {packets.pts[i] for i in indices}
    spent = 0.0
    groups = {}
    for pts in wanted:
        key = max((k for k in packets.keyframes if k[0] <= pts), default=packets.keyframes[0])
        groups.setdefault(key, set()).add(pts)
    for start, stamps in groups.items():
        with av.open(path) as container:
            stream = container.streams.best("video")
            stream.codec_context.thread_count = 1
            for target in start:  # time of showing or of decoding: formats differ
                container.seek(target, stream=stream, backward=True)
                demuxed = container.demux(stream)
                held = [next(demuxed)]
                if held[0].pts == start[0]:
                    break
            for packet in demuxed:
                held.append(packet)
                if packet.dts is None or packet.dts > max(stamps):
                    break
            codec = stream.codec_context
            left = set(stamps)
            began = time.perf_counter()
            for packet in held:
                codec.skip_frame = (
                    "DEFAULT" if packet.is_keyframe or packet.pts in stamps else "NONREF"
                )
                left -= {frame.pts for frame in packet.decode()}
                if not left:
                    break
            spent += time.perf_counter() - began
    return spent


def benchmark_loader(args: argparse.Namespace, videos: list[str]) -> dict:
    rng = np.random.default_rng(0)
    folder = tempfile.TemporaryDirectory()
    manifest = Manifest(Path(folder.name) / "manifest.sqlite")
    process = DecodeProcess(timeout_s=60, manifest=Path(folder.name) / "manifest.sqlite")
    contenders: dict[str, Callable] = {
        "ours, auto": partial(ours, decoder="auto", manifest=manifest),
        "ours, auto, no manifest": partial(ours, decoder="auto"),
        "ours, auto, in its process": partial(bounded, process=process),
    }
    for decoder in ("decord", "torchcodec"):
        if not missing_decoder(decoder):
            contenders[f"ours, {decoder}"] = partial(ours, decoder=decoder, manifest=manifest)
    if not missing_decoder("decord"):
        contenders["plain decord"] = plain_decord
    for decoder in ("decord", "pyav"):
        if not missing_decoder(decoder):
            contenders[f"PyTorchVideo, {decoder}"] = PyTorchVideo(decoder)
    infos = {path: info_of(path) for path in videos}
    for call in contenders.values():
        call(videos[0], np.arange(16))  # warm: imports, page cache, manifest
    times: dict[str, list[float]] = {name: [] for name in contenders}
    floors: list[float] = []
    for k in range(args.rounds):
        path = videos[k % len(videos)]
        indices = random_clip(infos[path].num_frames, infos[path].fps, 16, 4, rng=rng)[0]
        for name, call in contenders.items():
            random.seed(k)  # PyTorchVideo's sampler
            began = time.perf_counter()
            call(path, indices)
            times[name].append(time.perf_counter() - began)
        floors.append(codec_seconds(path, indices))
    means = {name: statistics.fmean(t) for name, t in times.items()}
    best = means["ours, auto"]
    print_table(
        [[name, f"{1e3 * t:.1f}", f"{1 / t:.1f}", f"{t / best:.2f}"] for name, t in means.items()],
        ["one 16x4 clip", "mean ms", "clips/s a worker", "times ours"],
    )
    share = statistics.fmean(floors) / best
    print(f"pure codec time: {1e3 * statistics.fmean(floors):.1f} ms, {share:.0%} of ours")
    process.close()
    result = {"one_clip_ms": {k: 1e3 * v for k, v in means.items()}, "codec_share": share}
    if sys.platform.startswith("linux"):
        result |= watchdog_cost(videos[0], pairs=args.pairs)
    return result | repeats(videos, args.rounds) | where_time_goes(videos, args)


def watchdog_cost(path: str, pairs: int, clips: int = 8) -> dict:
    """CPU time of decoding in an own process, parent and child, over decoding here: a median."""
    rng = np.random.default_rng(3)
    info = info_of(path)
    ratios = []
    process = DecodeProcess(timeout_s=60)
    bounded(path, np.arange(16), process=process)  # it is up; its start is not counted
    ticks = os.sysconf("SC_CLK_TCK")

    def child_s() -> float:
        fields = Path(f"/proc/{process._child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    for _ in range(pairs):
        drawn = [random_clip(info.num_frames, info.fps, 16, 4, rng=rng)[0] for _ in range(clips)]
        began = time.process_time()
        for indices in drawn:
            ours(path, indices, decoder="auto")
        here = time.process_time() - began
        began = time.process_time() + child_s()
        for indices in drawn:
            bounded(path, indices, process=process)
        ratios.append((time.process_time() + child_s() - began) / here)
    process.close()
    cost = statistics.median(ratios) - 1
    print(
        f"decoding in a process that can be killed: {cost:+.1%} CPU time (median of {pairs} pairs "
        f"of {clips} clips)"
    )
    return {"watchdog_cpu": cost}


def info_of(path: str):
    with open_video(path, "pyav") as video:
        return video.info


def repeats(videos: list[str], rounds: int) -> dict:
    """Four clips of a video from one decode, against one clip."""
    single = []
    four = []
    rng = np.random.default_rng(1)
    for k in range(rounds):
        path = videos[k % len(videos)]
        info = info_of(path)
        clips = [random_clip(info.num_frames, info.fps, 16, 4, rng=rng)[0] for _ in range(4)]
        began = time.perf_counter()
        ours(path, np.unique(np.concatenate(clips)), decoder="auto")
        four.append(time.perf_counter() - began)
        began = time.perf_counter()
        for clip in clips:
            ours(path, clip, decoder="auto")
        single.append((time.perf_counter() - began) / 4)
    ratio = statistics.fmean(four) / statistics.fmean(single)
    print(
        f"four clips from one decode: {1e3 * statistics.fmean(four):.1f} ms, {ratio:.2f} times one "
        "clip"
    )
    return {"four_clips_over_one": ratio}


def where_time_goes(videos: list[str], args: argparse.Namespace) -> dict:
    """A training sample, step by step."""
    spent: dict[str, float] = dict.fromkeys(
        ("open, scan", "seek, demux", "decode", "convert", "augment", "collate"), 0.0
    )
    rng = np.random.default_rng(2)
    crop = TrainCrop(size=224, flip=0.5, magnitude=7.0, erase=0.25)
    for k in range(args.rounds):
        path = videos[k % len(videos)]
        with clocked(spent, "open, scan"):
            reader = pyav_reader.PyAVReader(path)
        indices = random_clip(reader.info.num_frames, reader.info.fps, 16, 4, rng=rng)[0]
        codec = codec_seconds(path, indices)
        timed: Any = reader
        timed._image = clock_of(spent, "convert", reader._image)
        before = spent["convert"]
        began = time.perf_counter()
        try:
            frames = reader.get(indices)
        finally:
            reader.close()
        total = time.perf_counter() - began
        spent["decode"] += codec
        spent["seek, demux"] += total - codec - (spent["convert"] - before)
        with clocked(spent, "augment"):
            views = crop(torch.from_numpy(frames).permute(0, 3, 1, 2), rng)
        with clocked(spent, "collate"):
            sample = {
                "clip": views.clips,
                "erase": views.erase,
                "seed": torch.zeros(1),
                "times": 0,
                "label": 0,
            }
            collate([{**sample, "index": 0, "row": 0, "bad": []}] * 2)
    total = sum(spent.values())
    rows = [[name, f"{1e3 * s / args.rounds:.2f}", f"{s / total:.0%}"] for name, s in spent.items()]
    print_table(rows, ["a training sample", "mean ms", "share"])
    clip_ms = 1e3 * total / args.rounds
    print(f"one worker makes {1e3 / clip_ms:.1f} samples a second")
    if args.step_ms:
        workers = args.batch * clip_ms / args.step_ms
        print(
            f"a step of {args.batch} clips in {args.step_ms:g} ms needs {int(np.ceil(workers))} "
            f"workers ({workers:.1f})"
        )
    return {"sample_ms": {k: 1e3 * v / args.rounds for k, v in spent.items()}}


@contextmanager
def clocked(spent: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    spent[name] += time.perf_counter() - began


def clock_of(spent: dict[str, float], name: str, work: Callable) -> Callable:
    def timed(*arguments):
        with clocked(spent, name):
            return work(*arguments)

    return timed


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("command", choices=("loader", "views"))
    add("videos", nargs="*", help="default: one that is made here")
    add("--rounds", type=int, default=30, help="from 20 on, `views` times the test stage, too")
    add("--pairs", type=int, default=20, help="of decoding with and without an own process")
    add("--keyframes", type=int, default=250, help="interval in the video that is made")
    add("--step-ms", type=float, help="time of a model's step, to say how many workers it needs")
    add("--batch", type=int, default=8, help="clips in that step")
    return parser


def main(args: argparse.Namespace) -> None:
    missing = [video for video in args.videos if not Path(video).is_file()]
    if missing:
        raise UserError(f"there is no video {missing[0]}")
    if args.rounds < 1:
        raise UserError(f"--rounds {args.rounds} must be > 0")
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        # PyTorchVideo's decord would take every core.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    machine = describe("cpu")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.mp4"
        videos = args.videos or [str(make_kinetics_like(made, keyframes=args.keyframes))]
        try:
            if args.command == "loader":
                result = benchmark_loader(args, videos)
            else:
                result = benchmark_views(args, videos)
        except VideoError as e:
            raise UserError(str(e)) from e
    write_figures(args.json, {**machine, **result})

"""Testing with many views: one decode of a video for all of them, against one decode a view."""

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from benchmarks.loops import evaluation_overhead
from benchmarks.shared import print_table

from hiera_video.data.dataset import ClipDataset, Key
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import VideoList
from hiera_video.data.sampling import ClipSampler, ClipShape, UniformClips, uniform_clips
from hiera_video.data.transforms import EvalCrops, Plan, Transform, Views
from hiera_video.system.errors import VideoError


class OneView:
    """View k of the 15: what a loader does that decodes for every view."""

    def __init__(self, k: int):
        self.k = k
        self._crops = EvalCrops(224, 224, 3)

    def sample(self, count: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        return uniform_clips(count, fps, 16, 4, num_clips=5)[self.k // 3][None]

    def plan(self, height: int, width: int, rng: np.random.Generator) -> Plan:
        all_three = self._crops.plan(height, width)

        def one(frames: torch.Tensor) -> Views:
            views = all_three.views(frames)
            k = self.k % 3
            return Views(views.clips[k : k + 1], views.erase[k : k + 1])

        return Plan(all_three.shrink, one)


def benchmark_views(args: argparse.Namespace, videos: list[str]) -> dict[str, Any]:
    listed = VideoList(videos, [0] * len(videos))

    def data_set(sample: ClipSampler, transform: Transform) -> ClipDataset:
        source = VideoSource(timeout_s=60)
        return ClipDataset(listed, sample=sample, transform=transform, source=source)

    together = data_set(UniformClips(ClipShape(), 5), EvalCrops(224, 224, 3))
    apart = []
    for k in range(15):
        view = OneView(k)
        apart.append(data_set(view.sample, view))
    key = Key(0, 0)
    equal = torch.equal(torch.cat([d[key]["clip"] for d in apart]), together[key]["clip"])
    if not equal:
        raise VideoError("views from one decode differ from those decoded one by one")
    times: dict[str, list[float]] = {"one decode": [], "15 decodes": []}
    for k in range(max(args.rounds // 5, 3)):
        key = Key(0, k % len(videos))
        for name, datasets in (("one decode", [together]), ("15 decodes", apart)):
            began = time.perf_counter()
            for dataset in datasets:
                dataset[key]
            times[name].append(time.perf_counter() - began)
    means = {name: statistics.fmean(t) for name, t in times.items()}
    ratio = means["one decode"] / means["15 decodes"]
    rows = [[name, f"{1e3 * t:.1f}", f"{t / means['15 decodes']:.3f}"] for name, t in means.items()]
    print_table(rows, ["5 clips x 3 crops", "mean ms a video", "of 15 decodes"])
    found: dict[str, Any] = {"views_ms": {k: 1e3 * v for k, v in means.items()}, "ratio": ratio}
    if tested := args.rounds // 20:
        found["testing"] = evaluation_overhead("tiny", videos=tested)
    return found

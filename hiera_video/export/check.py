"""A file that was written beside the model that it is of: the same clips through both."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hiera_video.export.formats import Run
from hiera_video.export.graph import Graph

ROUNDS = 7  # of timing, one after the other
REST_S = 0.3  # in which the threads of the last one stop to wait for more work


@dataclass(frozen=True)
class Comparison:
    differences: dict[str, float]  # the largest of each output, relative to its largest value
    agreement: float | None  # share of the clips with the same best class
    clips: int
    eager_s: float  # of one clip, median
    exported_s: float

    @property
    def largest(self) -> float:
        return max(self.differences.values())


@torch.inference_mode()
def compare(
    graph: Graph, run: Run, clips: Tensor, *, timed: tuple[Run, Run] | None = None
) -> Comparison:
    """clips [N, ..]: as the graph takes them. One by one, and the first three together.

    timed: what takes time, where that is not the two of them.
    """
    batches = [*clips.split(1), clips[:3]]
    differences = dict.fromkeys(graph.names, 0.0)
    same = []
    for batch in batches:
        for name, ours, theirs in zip(graph.names, graph(batch), run(batch)):
            if theirs.shape != ours.shape:
                raise ValueError(f"{name} is {list(theirs.shape)}, not {list(ours.shape)}")
            gap = (theirs.float() - ours).abs().max() / ours.abs().max().clamp(min=1)
            # What is not a number is no small difference.
            differences[name] = max(differences[name], float(gap.nan_to_num(torch.inf)))
            if name == "logits":
                same += (theirs.argmax(-1) == ours.argmax(-1)).tolist()
    times: tuple[list[float], list[float]] = ([], [])
    works: tuple[Run, Run] = timed or (graph, run)
    for _ in range(ROUNDS):
        for work, found in zip(works, times):
            time.sleep(REST_S)
            began = time.perf_counter()
            work(clips[:1])
            found.append(time.perf_counter() - began)
    eager_s, exported_s = (float(np.median(found)) for found in times)
    agreement = float(np.mean(same[: len(clips)])) if same else None
    return Comparison(differences, agreement, len(clips), eager_s, exported_s)

"""The ranks of a run side by side: which of them the others wait for.

All ranks take a step together, so that its time is everyone's. What a rank needs for itself is the
time until its backward pass, which begins to wait for the others: for data, and for its forward
passes. (With `fsdp` forward passes wait for the others, too; then data alone tells ranks apart.)
"""

import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from hiera_video.system.distributed import World

SLOW = 3.0  # times the median of all ranks
SLOW_FOR_S = 60.0


class RankFigures(NamedTuple):
    """Of one rank, since the last line of the log."""

    name: str
    data_wait: float  # share of the time
    own_s: float  # of a step, until the backward pass
    memory_gib: float  # the most so far


class ForwardClock:
    """Time of the forward passes; on a GPU by its own clock, so that nothing waits for it."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        began = self._now()
        yield
        self._spans.append((began, self._now()))

    def seconds(self) -> float:
        """The sum. The GPU must have come to the end of them."""
        if self._on_gpu:
            return sum(began.elapsed_time(ended) for began, ended in self._spans) / 1e3
        return sum(ended - began for began, ended in self._spans)

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def rank_name(world: World) -> str:
    return f"rank {world.rank} on {platform.node()}"


def spread(ranks: Sequence[RankFigures]) -> dict[str, Any]:
    """<figure>_min, _mean, _max and _max_rank, the name of the rank that has the most."""
    row: dict[str, Any] = {}
    for figure in RankFigures._fields[1:]:
        values = [getattr(rank, figure) for rank in ranks]
        most = max(values)
        row[f"{figure}_min"] = min(values)
        row[f"{figure}_mean"] = statistics.fmean(values)
        row[f"{figure}_max"] = most
        row[f"{figure}_max_rank"] = ranks[values.index(most)].name
    return row


class SlowRanks:
    """Finds ranks that hold up the others."""

    def __init__(self) -> None:
        self._slow_s: dict[str, float] = {}  # for how long each has been slow

    def note(self, ranks: Sequence[RankFigures], elapsed: float) -> list[str]:
        """elapsed: since the call before. Returns a line for every rank that is slow by now.

        Each is named once, until it is slow anew.
        """
        # Of an even number the lower one: of two ranks, one may be slow.
        median = statistics.median_low(rank.own_s for rank in ranks)
        lines = []
        for rank in ranks:
            before = self._slow_s.get(rank.name, 0.0)
            now = before + elapsed if rank.own_s > SLOW * median else 0.0
            self._slow_s[rank.name] = now
            if before < SLOW_FOR_S <= now:
                lines.append(
                    f"WARNING: {rank.name} holds up the others: for {now:.0f} s it needs "
                    f"{rank.own_s:.3g} s of its own a step, the median rank {median:.3g} s; it "
                    f"waits for data {rank.data_wait:.0%} of the time"
                )
        return lines

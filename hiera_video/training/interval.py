"""What happens between two lines of the log, and what all ranks settle there.

The loop waits for the device only once in an interval; here the ranks agree on what they have seen
since: the loss, gradients that were not finite, videos that could not be read.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hiera_video.data.dataset import Batch
from hiera_video.system.distributed import World
from hiera_video.system.errors import RunStopped
from hiera_video.system.log import RunLog
from hiera_video.system.memory import peak_gib
from hiera_video.training.plan import Plan
from hiera_video.training.ranks import ForwardClock, RankFigures, SlowRanks, rank_name, spread

ASK_S = 5.0
WAITS_LONG = 0.05  # share of the time spent waiting for data, above which the log says what to do


class Settled(NamedTuple):
    """An interval, on all ranks alike."""

    loss: float  # mean over the ranks and the steps that were not skipped
    grad_norm: float  # of the last step, before clipping
    skipped: list[int]  # steps of the interval, from 0, whose gradients were not finite
    bad: bool  # some rank met a video that cannot be read


class Interval:
    """Collects the steps since the last line of the log, on this rank."""

    def __init__(self, device: torch.device) -> None:
        self.forward = ForwardClock(device)
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []  # of the gradients, before clipping
        self.rows: list[list[int]] = []  # of the list, step by step
        self.clips = 0
        self.waited_s = 0.0  # for data
        self.since = time.monotonic()

    def add(self, loss: Tensor, norm: Tensor, batch: Batch) -> None:
        self.losses.append(loss.detach())
        self.norms.append(norm.detach())
        self.rows.append(batch["row"].tolist())
        self.clips += batch["clip"].shape[0] * batch["clip"].shape[1]

    def settle(self, world: World, *, bad: bool) -> Settled:
        """On all ranks together; the one place that waits for the device.

        The gradients' norm is the same on all ranks; the rest is averaged over them.
        """
        norms = torch.stack(self.norms).float()
        finite = torch.isfinite(norms)
        losses = torch.stack(self.losses).float()
        loss = losses.where(finite, 0).sum() / finite.sum()
        flag = torch.tensor([float(bad)], device=finite.device)
        seen = world.mean(torch.cat([loss[None], norms[-1:], finite.float(), flag])).tolist()
        skipped = [k for k, share in enumerate(seen[2:-1]) if share < 1]
        return Settled(seen[0], seen[1], skipped, seen[-1] > 0)

    def rows_of(self, steps: list[int]) -> list[int]:
        """Rows of the list that this rank saw in those steps of the interval."""
        return [row for k in steps for row in self.rows[k]]


class IntervalLog:
    """Writes an interval to metrics.jsonl and to the log."""

    def __init__(self, log: RunLog, plan: Plan, world: World, *, log_every: int):
        self._log = log
        self._plan = plan
        self._world = world
        self._log_every = log_every
        self._slow_ranks = SlowRanks()
        self._said_waiting = False

    def write(
        self, step: int, settled: Settled, interval: Interval, *, lr: float, left: str
    ) -> None:
        """On all ranks together. left: the time until the end of the run, in words."""
        world = self._world
        elapsed = time.monotonic() - interval.since
        own_s = (interval.waited_s + interval.forward.seconds()) / len(interval.losses)
        ranks = world.gather_all(
            RankFigures(
                rank_name(world), interval.waited_s / elapsed, own_s, peak_gib(world.device)
            )
        )
        speed = interval.clips * world.size / elapsed
        waiting = max(rank.data_wait for rank in ranks)
        by_rank = spread(ranks) if world.size > 1 else {}
        epoch = self._plan.epoch(step)
        self._log.metrics(
            {
                "split": "train",
                "step": step,
                "epoch": epoch,
                "loss": _if_finite(settled.loss),
                "lr": lr,
                "grad_norm": _if_finite(settled.grad_norm),
                "clips_per_s": speed,
                "data_wait": waiting,
                "memory_gib": max(rank.memory_gib for rank in ranks),
                **by_rank,
            }
        )
        whose = f" ({by_rank['data_wait_max_rank']})" if by_rank and waiting > WAITS_LONG else ""
        self._log.say(
            f"step {step}/{self._plan.steps} epoch {epoch} loss {settled.loss:.4f} lr {lr:.2e} "
            f"{speed:.1f} clips/s, {waiting:.0%} of it waiting for data{whose}, {left} left"
        )
        for line in self._slow_ranks.note(ranks, elapsed):
            self._log.say(line)
        # The first lines hold the start of the workers.
        if waiting > WAITS_LONG and not self._said_waiting and step > self._log_every:
            self._said_waiting = True
            self._log.say(
                f"training waits for data {waiting:.0%} of the time: raise data.num_workers, "
                "re-encode the videos once (datasets/resize_videos.py), or take more clips from a "
                "decode (train.repeats)"
            )


def _if_finite(value: float) -> float | None:
    """JSON knows no others."""
    return value if math.isfinite(value) else None


class StopVote:
    """Whether some rank is asked to stop, which all ranks learn in the same step.

    They ask each other about every ASK_S, however long a step takes: what sends the signal may
    wait no longer than half a minute.
    """

    def __init__(self, world: World, first_step: int):
        """first_step: steps that were taken before this process began."""
        self._world = world
        self._since = time.monotonic()
        self._last = first_step  # when they last asked each other
        self._next = first_step

    def asked(self, step: int, *, now: bool) -> bool:
        """On all ranks together, after every step. now: whether they meet in any case."""
        if self._world.size == 1:
            return bool(self._world.stop_asked())
        if step < self._next and not now:
            return False
        elapsed = time.monotonic() - self._since
        votes = self._world.gather_all((bool(self._world.stop_asked()), elapsed))
        taken = step - self._last
        a_step = max(seconds for _, seconds in votes) / taken
        self._last = step
        # Steps may become slower at any time.
        self._next = step + max(min(int(ASK_S / a_step), 2 * taken), 1)
        self._since = time.monotonic()
        return any(asked for asked, _ in votes)


class SkippedSteps:
    """Steps whose gradients were not finite: the optimizer left them out."""

    def __init__(self) -> None:
        self.in_a_row = 0  # at the end of the last interval

    def note(self, skipped: list[int], steps: int) -> int:
        """Of an interval of so many steps. Returns how many followed each other at the most."""
        longest = 0
        for k in range(steps):
            self.in_a_row = self.in_a_row + 1 if k in skipped else 0
            longest = max(longest, self.in_a_row)
        return longest


class BadVideos:
    """Rows that could not be read, on any rank.

    Says each once. `settle` stops the run above a stated share of the list.
    """

    def __init__(
        self, name: Callable[[int], str], *, num_videos: int, max_fraction: float, log: RunLog
    ):
        self.name = name
        self.num_videos = num_videos
        self.max_fraction = max_fraction
        self.log = log
        self.reasons: dict[int, str] = {}
        self.new: list[tuple[int, str]] = []  # on this rank, not yet told to the others

    def note(self, bad: list[tuple[int, str]]) -> None:
        self.new += [(row, reason) for row, reason in bad if row not in self.reasons]

    def settle(self, world: World) -> None:
        """On all ranks together. Raises RunStopped, on all of them."""
        found = [pair for part in world.gather_all(self.new) for pair in part]
        for row, reason in sorted(found):
            if row not in self.reasons:
                self.reasons[row] = reason
                self.log.say(
                    f"bad video, replaced by the next good one: {self.name(row)}: {reason}"
                )
        self.new = []
        if len(self.reasons) > self.max_fraction * self.num_videos:
            row, reason = list(self.reasons.items())[-1]
            raise RunStopped(
                f"{len(self.reasons)} of {self.num_videos} videos cannot be read, more than "
                f"data.max_bad_fraction={self.max_fraction}; the last: {self.name(row)}: {reason}"
            )

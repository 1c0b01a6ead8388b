"""In which order samples are seen, by which rank and worker, and the loaders that bring them."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hiera_video.data.dataset import Batch, ClipDataset, Key, collate
from hiera_video.system.signals import ignore_stop_signals

AHEAD = 4  # pieces of work that a worker begins before they are asked for


@dataclass(frozen=True)
class Prefetch:
    """How samples travel from the workers of a rank: in parts of a batch, `ahead` a worker.

    What is on its way lies in shared memory, so that its bytes are bounded and not its batches: one
    batch of a masked autoencoder may be half a gibibyte.
    """

    part: int  # samples
    ahead: int
    num_workers: int
    sample_bytes: int

    @classmethod
    def make(
        cls,
        samples: int,
        sample_bytes: int,
        *,
        num_workers: int,
        limit_gib: float,
        cut: bool = True,
    ) -> "Prefetch":
        """For batches of so many samples.

        cut: whether they may be. One part a worker is the least, whatever the limit.
        """
        if not num_workers:
            return cls(samples, 0, 0, sample_bytes)
        limit = int(limit_gib * 2**30 / sample_bytes / num_workers)  # samples of a worker
        part = min(max(limit // AHEAD, 1), samples) if cut else samples
        return cls(part, min(max(limit // part, 1), AHEAD), num_workers, sample_bytes)

    @property
    def bytes(self) -> int:
        """In shared memory, at most."""
        return self.num_workers * self.ahead * self.part * self.sample_bytes


class Order(Protocol):
    """An endless order of samples, each of which depends on its place alone."""

    def key(self, position: int) -> Key:
        """No key stands in it twice."""


class Shuffled:
    """Passes over the shuffled list, laid end to end: no video is dropped at the end of a pass."""

    def __init__(self, num_videos: int, *, seed: int):
        self.num_videos = num_videos
        self.seed = seed
        self._shuffled: dict[int, np.ndarray] = {}

    def key(self, position: int) -> Key:
        epoch, offset = divmod(position, self.num_videos)
        if epoch not in self._shuffled:
            self._shuffled = {e: order for e, order in self._shuffled.items() if e == epoch - 1}
            rng = np.random.default_rng([self.seed, epoch])
            self._shuffled[epoch] = rng.permutation(self.num_videos)
        return Key(epoch, int(self._shuffled[epoch][offset]))


class Balanced:
    """Every class as often as the others, its videos in turn (class-aware sampling, Shen et al.,
    2016).

    Rounds of all classes in random orders are laid end to end. The epoch of a key counts how often
    its class has gone through its videos, so that a video that comes again looks another way; of
    a video that has several labels, each of its classes counts for itself.
    """

    def __init__(self, rows: Sequence[np.ndarray], *, seed: int):
        """rows: of every class that has any"""
        self._rows = rows
        self._seed = seed
        self._order_of: dict[tuple[int, ...], np.ndarray] = {}

    def key(self, position: int) -> Key:
        classes = len(self._rows)
        turn, place = divmod(position, classes)
        c = int(self._permuted(classes, turn)[place])
        rows = self._rows[c]
        passed, offset = divmod(turn, len(rows))
        row = rows[self._permuted(len(rows), passed, c)[offset]]
        return Key(passed * classes + c, int(row))

    def _permuted(self, count: int, *names: int) -> np.ndarray:
        if names not in self._order_of:
            if len(self._order_of) > 4 * len(self._rows) + 16:
                self._order_of = {}
            # A round has one name, a pass of a class two.
            rng = np.random.default_rng([self._seed, len(names), *names])
            self._order_of[names] = rng.permutation(count)
        return self._order_of[names]


class TrainingOrder:
    """The keys of every optimizer step; a batch sampler that starts at `first_step`.

    An endless order is cut into global batches: a step's keys depend on (seed, step) alone. Each
    rank takes its share of every batch.
    """

    def __init__(
        self,
        order: Order,
        *,
        batch_size: int,
        steps: int,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        self.order = order
        self.batch_size = batch_size
        self.steps = steps
        self.first_step = first_step
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.batch_size // self.world
        for step in range(self.first_step, self.steps):
            first = step * self.batch_size + self.rank * share
            yield [self.order.key(position) for position in range(first, first + share)]


def test_batches(
    rows: Sequence[int], *, batch_size: int, rank: int = 0, world: int = 1
) -> list[list[Key]]:
    """Every row once over all ranks, without padding: rank r takes rows r, r + world, ..."""
    own = rows[rank::world]
    return [[Key(0, i) for i in own[k : k + batch_size]] for k in range(0, len(own), batch_size)]


class Parts:
    """A batch sampler: each step's keys in parts of so many, a piece of work for a worker each."""

    def __init__(self, order: TrainingOrder, size: int):
        self.order = order
        self.size = size
        self.per_step = -(-(order.batch_size // order.world) // size)

    def __len__(self) -> int:
        return len(self.order) * self.per_step

    def __iter__(self) -> Iterator[list[Key]]:
        for keys in self.order:
            for k in range(0, len(keys), self.size):
                yield keys[k : k + self.size]


class StepBatches:
    """Each step's parts as one batch, clips and labels on the device."""

    def __init__(self, loader: Iterable[Batch], parts: Parts, device: torch.device):
        self.loader = loader
        self.parts = parts
        self.device = device

    def __iter__(self) -> Iterator[Batch]:
        samples = self.parts.order.batch_size // self.parts.order.world
        whole = WholeBatch(samples, self.device)
        for k, part in enumerate(self.loader, start=1):
            if self.parts.per_step == 1:
                yield to_device(part, self.device)
                continue
            whole.add(part)
            if k % self.parts.per_step == 0:
                yield whole.batch()
                whole = WholeBatch(samples, self.device)


class WholeBatch:
    """What `collate` would make of the samples of all parts that were added.

    A part's clips are copied at once, so that no more than one batch of them is held.
    """

    def __init__(self, samples: int, device: torch.device):
        self._samples = samples
        self._device = device
        self._clips: torch.Tensor | None = None
        self._filled = 0
        self._rest: list[Batch] = []  # all but the clips

    def add(self, part: Batch) -> None:
        clips = part["clip"]
        self._rest.append({name: value for name, value in part.items() if name != "clip"})
        if clips is None:
            return
        if self._clips is None:
            size = (self._samples, *clips.shape[1:])
            self._clips = torch.empty(size, dtype=clips.dtype, device=self._device)
        end = self._filled + len(clips)
        self._clips[self._filled : end].copy_(clips, non_blocking=True)
        self._filled = end

    def batch(self) -> Batch:
        parts = self._rest
        whole: Batch = {
            "clip": None,
            "bad": [found for part in parts for found in part["bad"]],
            "requested": sum(part["requested"] for part in parts),
            "unavailable": next((p["unavailable"] for p in parts if p["unavailable"]), ""),
        }
        if self._clips is None:
            return whole
        whole["clip"] = self._clips[: self._filled]
        good = [part for part in parts if "label" in part]
        whole["times"] = [times for part in good for times in part["times"]]
        for name in ("label", "index", "row", "erase", "seed"):
            whole[name] = torch.cat([part[name] for part in good])
        return to_device(whole, self._device)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Moves clips and labels only: boxes and seeds are read on the host."""
    if batch["clip"] is None:
        return batch
    moved = {name: batch[name].to(device, non_blocking=True) for name in ("clip", "label")}
    return {**batch, **moved}


class ChunkStream(IterableDataset):
    """All clips of whole videos, without the `first(row)` first ones.

    Each worker takes its own videos, one after the other.
    """

    def __init__(self, dataset: ClipDataset, rows: list[int], first: Callable[[int], int]):
        self.dataset = dataset
        self.rows = rows
        self.first = first

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        rows = self.rows if info is None else self.rows[info.id :: info.num_workers]
        for row in rows:
            yield from self.dataset.chunks(row, self.first(row))


def make_loader(
    dataset: ClipDataset,
    batches: Sequence[list[Key]] | Parts,
    *,
    num_workers: int,
    pin_memory: bool,
    ahead: int = AHEAD,
) -> DataLoader:
    """Batches of samples."""
    if num_workers:
        _kill_workers_at_exit()
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=ignore_stop_signals,
        prefetch_factor=ahead if num_workers else None,
    )


def make_chunk_loader(stream: ChunkStream, *, num_workers: int, pin_memory: bool) -> DataLoader:
    """Batches of one video's clips each."""
    if num_workers:
        _kill_workers_at_exit()
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        worker_init_fn=ignore_stop_signals,
        prefetch_factor=2 if num_workers else None,
    )


@cache
def _kill_workers_at_exit() -> None:
    """Once: multiprocessing's own end asks workers to stop by SIGTERM, which they ignore."""
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    # torch's handler would call it an error that a worker was killed.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        child.kill()


def _unchanged(batch: Any) -> Any:
    return batch

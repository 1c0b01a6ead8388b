"""In which order samples are seen, by which rank and worker, and the loaders that bring them."""

import atexit
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hiera_video.data.dataset import Batch, ClipDataset, Key, collate
from hiera_video.system.signals import ignore_stop_signals


class TrainingOrder:
    """The keys of every optimizer step; a batch sampler that starts at `first_step`.

    Passes over shuffled lists are laid end to end and cut into global batches, so that no video is
    dropped at the end of a pass. A step's keys depend on (seed, step) alone. Each rank takes its
    share of every batch.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        self.num_videos = num_videos
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.first_step = first_step
        self.rank = rank
        self.world = world
        self._shuffled: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.batch_size // self.world
        for step in range(self.first_step, self.steps):
            first = step * self.batch_size + self.rank * share
            yield [self.key(position) for position in range(first, first + share)]

    def key(self, position: int) -> Key:
        """The sample at `position` of all passes laid end to end."""
        epoch, offset = divmod(position, self.num_videos)
        if epoch not in self._shuffled:
            self._shuffled = {e: order for e, order in self._shuffled.items() if e == epoch - 1}
            rng = np.random.default_rng([self.seed, epoch])
            self._shuffled[epoch] = rng.permutation(self.num_videos)
        return Key(epoch, int(self._shuffled[epoch][offset]))


def test_batches(
    rows: Sequence[int], *, batch_size: int, rank: int = 0, world: int = 1
) -> list[list[Key]]:
    """Every row once over all ranks, without padding: rank r takes rows r, r + world, ..."""
    own = rows[rank::world]
    return [[Key(0, i) for i in own[k : k + batch_size]] for k in range(0, len(own), batch_size)]


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
    batches: Sequence[list[Key]] | TrainingOrder,
    *,
    num_workers: int,
    pin_memory: bool,
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
        prefetch_factor=4 if num_workers else None,
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
    for child in multiprocessing.active_children():
        child.kill()


def _unchanged(batch: Any) -> Any:
    return batch

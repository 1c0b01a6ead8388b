"""Videos to batches: one dataset, one collate function, and the order in which training sees the videos.

A sample is V views of one video, from one decode: 1 in plain training, the repeats in repeated augmentation, clips x crops
(clip-major) in testing, windows in feature extraction. What it looks like depends on (seed, epoch, index) alone.

A batch is a dict:
    clip   uint8 [B, V, C, T, S, S]       label  int64 [B], -1 for none      index  int64 [B], rows that were asked for
    row    int64 [B], rows that were read: others where a video was replaced
    erase  int32 [B, V, 4]                seed   int64 [B, V]                times  one float64 [clips, 2] a sample, seconds
    bad    [(row, reason), ...]           rows that could not be read; clip is None if that was all of them
"""

import atexit
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from hiera_video.data.annotations import VideoList
from hiera_video.data.decode_process import DecodeFailure, DecodeProcess
from hiera_video.data.packets import VideoError, VideoInfo
from hiera_video.data.quarantine import Quarantine
from hiera_video.data.sampling import ClipSampler
from hiera_video.data.transforms import Transform
from hiera_video.files import local
from hiera_video.signals import ignore_stop_signals

OTHER_BACKEND = {
    "auto": "decord",
    "pyav": "decord",
    "decord": "pyav",
    "torchcodec": "pyav",
}  # after one hung or crashed
MAX_SUBSTITUTES = 100  # rows tried in the place of one bad row, before the list itself must be at fault
CHUNK_BYTES, MOST_CLIPS = 256 << 20, 15  # of one chunk: decoded frames, clips
Batch = dict[str, Any]
Get = Callable[[np.ndarray], np.ndarray]  # frame numbers, sorted -> frames [N, H, W, C]


class Key(NamedTuple):
    """Names a sample. Indexing by it, and not by the row alone, lets persistent workers follow the epochs."""

    epoch: int
    index: int


class ClipDataset(Dataset):
    """Views of the videos of a list.

    substitute: a row that cannot be read is replaced by the next good one (training); else it is only reported (testing).
    timeout_s: how long one decode may take. A video that takes longer, or crashes its decoder, with the chosen backend and
    with the other one, goes to the quarantine `quarantine` (a file) and counts as one that cannot be read. manifest: a file
    that keeps what was found of each video's packets.
    """

    def __init__(
        self,
        videos: VideoList,
        *,
        sample: ClipSampler,
        transform: Transform,
        repeats: int = 1,
        decoder: str = "auto",
        timeout_s: float = 30.0,
        quarantine: str | Path | None = None,
        manifest: str | Path | None = None,
        seed: int = 0,
        substitute: bool = False,
    ):
        self.videos, self.sample, self.transform = videos, sample, transform
        self.repeats, self.decoder, self.seed, self.substitute = repeats, decoder, seed, substitute
        self.decoding, self.quarantine = DecodeProcess(timeout_s=timeout_s, manifest=manifest), Quarantine(quarantine)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        bad: list[tuple[int, str]] = []
        for offset in range(min(len(self.videos), MAX_SUBSTITUTES) if self.substitute else 1):
            row = (key.index + offset) % len(self.videos)
            rng = np.random.default_rng([self.seed, key.epoch, key.index])
            try:
                views = self._views(row, rng)
                return {**views, "index": key.index, "row": row, "label": self.videos.label(row), "bad": bad}
            except VideoError as e:
                bad.append((row, str(e)))
        return {"index": key.index, "bad": bad}

    def _views(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        path, state = self._file(row), rng.bit_generator.state
        try:
            return self._decoded_views(path, self.decoder, rng)
        except DecodeFailure as first:
            rng.bit_generator.state = state  # the same draws, whichever backend succeeds
            try:
                return self._decoded_views(path, OTHER_BACKEND[self.decoder], rng)
            except VideoError:
                self.quarantine.add(self.videos.path(row), str(first))
                raise first from None

    def _file(self, row: int) -> str:
        """Where it lies on this machine. Raises VideoError."""
        path = self.videos.path(row)
        reason = self.quarantine.reason(path)
        if reason is not None:
            raise VideoError(reason)  # the same words as when it was found, so that results do not depend on when
        try:
            return local(path)
        except OSError as e:
            raise VideoError(str(e)) from e

    def _decoded_views(self, path: str, decoder: str, rng: np.random.Generator) -> dict[str, Any]:
        with self.decoding.open(path, decoder) as video:
            info = video.info
            grid = info.grid()
            # All draws of frames come first, then one decode of their sorted union, then one draw a view.
            clips = grid[np.concatenate([self.sample(len(grid), info.fps, rng) for _ in range(self.repeats)])]
            return self._cut(info, video.get, clips, rng)

    def _cut(self, info: VideoInfo, get: Get, clips: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Views of the frames `clips` [clips, T], from one call of `get`."""
        needed, back = np.unique(clips, return_inverse=True)
        frames = torch.from_numpy(get(needed)).permute(0, 3, 1, 2)  # [N, C, H, W]
        times, frame_s = info.times, 1 / info.fps  # a clip ends when its last frame does
        views = [self.transform(_pick(frames, rows), rng) for rows in back.reshape(clips.shape)]
        clip = torch.cat([v.clips for v in views])
        return {
            "clip": clip,
            "erase": torch.cat([v.erase for v in views]),
            "seed": torch.from_numpy(rng.integers(2**62, size=len(clip))),
            "times": np.stack([times[clips[:, 0]], times[clips[:, -1]] + frame_s], axis=1),
        }

    def chunks(self, row: int, first: int) -> Iterator[Batch]:
        """A video's clips from number `first` on, as batches of one video that take a bounded amount of memory.

        Where a chunk begins and ends depends on the video alone. Batches also hold `first` and `total`, in clips.
        """
        decoder, failure = self.decoder, None
        while True:
            try:
                for batch in self._chunks_with(decoder, row, first):
                    first = batch["first"] + batch["clip"].shape[1]
                    yield batch
                return
            except VideoError as e:
                if isinstance(e, DecodeFailure) and failure is None:
                    decoder, failure = OTHER_BACKEND[decoder], e
                    continue
                if failure is not None:
                    self.quarantine.add(self.videos.path(row), str(failure))
                yield collate([{"index": row, "bad": [(row, str(failure or e))]}])
                return

    def _chunks_with(self, decoder: str, row: int, first: int) -> Iterator[Batch]:
        rng = np.random.default_rng([self.seed, 0, row])
        with self.decoding.open(self._file(row), decoder) as video:
            grid = video.info.grid()
            clips = grid[self.sample(len(grid), video.info.fps, rng)]
            frame_bytes = video.get([clips[0, 0]]).nbytes
            size = max(1, min(MOST_CLIPS, CHUNK_BYTES // (frame_bytes * clips.shape[1])))
            frames = Overlapping(video.get)
            for start in range(first, len(clips), size):
                sample = self._cut(video.info, frames.get, clips[start : start + size], rng)
                sample |= {"index": row, "row": row, "label": self.videos.label(row), "bad": []}
                last = start + size >= len(clips)
                yield collate([sample]) | {"first": start, "total": len(clips), "requested": int(last)}


class Overlapping:
    """Frames of a video, part after part: what a part shares with the one before is not decoded again."""

    def __init__(self, get: Get):
        self._get = get
        self._indices, self._frames = np.zeros(0, np.int64), np.zeros(0, np.uint8)  # of the part before

    def get(self, needed: np.ndarray) -> np.ndarray:
        """needed: sorted."""
        held = np.isin(needed, self._indices)
        if held.any():
            frames = np.empty((len(needed), *self._frames.shape[1:]), np.uint8)
            frames[held] = self._frames[np.searchsorted(self._indices, needed[held])]
            if not held.all():
                frames[~held] = self._get(needed[~held])
        else:
            frames = self._get(needed)
        self._indices, self._frames = needed, frames
        return frames


class ChunkStream(IterableDataset):
    """All clips of whole videos, `first(row)` of them left out: each worker takes its own videos, one after the other."""

    def __init__(self, dataset: ClipDataset, rows: list[int], first: Callable[[int], int]):
        self.dataset, self.rows, self.first = dataset, rows, first

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for row in self.rows[worker::workers]:
            yield from self.dataset.chunks(row, self.first(row))


def _pick(frames: Tensor, rows: np.ndarray) -> Tensor:
    """frames[rows]; a view, not a copy, where the rows follow each other, as those of most clips do."""
    if np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return frames[rows[0] : rows[0] + len(rows)]
    return frames[torch.from_numpy(rows)]


def collate(samples: Sequence[dict[str, Any]]) -> Batch:
    bad = [b for sample in samples for b in sample["bad"]]
    good = [sample for sample in samples if "clip" in sample]
    batch: Batch = {"bad": bad, "clip": None, "requested": len(samples)}
    if good:
        for name in ("clip", "erase", "seed"):
            batch[name] = torch.stack([sample[name] for sample in good])
        batch["times"] = [sample["times"] for sample in good]
        for name in ("label", "index", "row"):
            batch[name] = torch.tensor([sample[name] for sample in good])
    return batch


class TrainingOrder:
    """The keys of every optimizer step: passes over shuffled lists, laid end to end and cut into global batches.

    No video is dropped at the end of a pass, and a step's keys depend on (seed, step) alone. Each rank takes its share of
    every batch, one after the other. Used as the batch sampler of a loader, from `first_step` on.
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
        self.num_videos, self.batch_size, self.steps, self.seed = num_videos, batch_size, steps, seed
        self.first_step, self.rank, self.world = first_step, rank, world
        self._shuffled: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.batch_size // self.world
        for step in range(self.first_step, self.steps):
            first = step * self.batch_size + self.rank * share
            yield [self.key(position) for position in range(first, first + share)]

    def key(self, position: int) -> Key:
        epoch, offset = divmod(position, self.num_videos)
        if epoch not in self._shuffled:
            self._shuffled = {e: o for e, o in self._shuffled.items() if e == epoch - 1}
            self._shuffled[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.num_videos)
        return Key(epoch, int(self._shuffled[epoch][offset]))


@cache
def kill_workers_at_exit() -> None:
    """Before multiprocessing's own end, which asks them to stop by SIGTERM and waits: they ignore it."""
    atexit.register(lambda: [child.kill() for child in multiprocessing.active_children()])


def make_loader(
    dataset: ClipDataset, batches: Sequence[list[Key]] | TrainingOrder, *, num_workers: int, pin_memory: bool
) -> DataLoader:
    if num_workers:
        kill_workers_at_exit()
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
    if num_workers:
        kill_workers_at_exit()
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=ignore_stop_signals,
        prefetch_factor=2 if num_workers else None,
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch


def test_batches(rows: Sequence[int], *, batch_size: int, rank: int = 0, world: int = 1) -> list[list[Key]]:
    """Every row once over all ranks, in order: rank r takes the r-th, the (r + world)-th, ... No padding."""
    rows = rows[rank::world]
    return [[Key(0, i) for i in rows[k : k + batch_size]] for k in range(0, len(rows), batch_size)]

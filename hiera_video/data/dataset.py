"""Views of videos: one data set for training, testing and features, and one collate function.

A sample is V views of one video, from one decode: 1 in plain training, the repeats in repeated
augmentation, clips x crops (clip-major) in testing, windows in feature extraction. What it looks
like depends on (seed, epoch, index) alone.

A batch is a dict:

    clip     uint8 [B, V, C, T, S, S]; None if no video could be read
    label    int64 [B], -1 for none; float32 [B, classes] of a list with label sets
    index    int64 [B], rows of the list that were asked for
    row      int64 [B], rows that were read: others where a video was replaced
    erase    int32 [B, V, 4], boxes to erase: top, left, height, width
    seed     int64 [B, V], of a view's own randomness on the device
    times    one float64 [clips, 2] a sample, in seconds
    bad      [(row, reason), ...], rows that could not be read
    unavailable  why a row could not be had although its file may be good; empty where all could
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hiera_video.data.decode.packets import VideoInfo
from hiera_video.data.decode.source import Attempts, Refused, VideoSource
from hiera_video.data.lists import VideoList
from hiera_video.data.sampling import ClipSampler, segment_frames
from hiera_video.data.small_frames import SmallFrames
from hiera_video.data.transforms import Transform
from hiera_video.system.errors import Unavailable, VideoError

# Rows tried in the place of one bad row, before the list itself must be at fault.
MAX_SUBSTITUTES = 100
# Of one chunk: decoded frames, and clips.
CHUNK_BYTES = 256 << 20
CHUNK_CLIPS = 15

Batch = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """Names a sample. With the epoch in it, persistent workers can follow the epochs."""

    epoch: int
    index: int


class ClipDataset(Dataset):
    """Views of the videos of a list.

    sample: chooses frames. transform: makes views of them. repeats: draws of `sample` a video; with
    same_frames it draws once, and the views alone differ.
    substitute: a row that cannot be read is replaced by the next good one (training); else it is
    only reported (testing). shuffle_frames: each clip's frames in a random order. segment_share: of
    a clip, that lies in the segment of its row.
    """

    def __init__(
        self,
        videos: VideoList,
        *,
        sample: ClipSampler,
        transform: Transform,
        source: VideoSource,
        repeats: int = 1,
        same_frames: bool = False,
        seed: int = 0,
        substitute: bool = False,
        shuffle_frames: bool = False,
        segment_share: float = 1.0,
    ):
        self.videos = videos
        self.sample = sample
        self.transform = transform
        self.source = source
        self.repeats = repeats
        self.same_frames = same_frames
        self.seed = seed
        self.substitute = substitute
        self.shuffle_frames = shuffle_frames
        self.segment_share = segment_share

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        bad: list[tuple[int, str]] = []
        tries = min(len(self.videos), MAX_SUBSTITUTES) if self.substitute else 1
        for offset in range(tries):
            row = (key.index + offset) % len(self.videos)
            rng = np.random.default_rng([self.seed, key.epoch, key.index])
            try:
                views = self._views(row, rng)
            except VideoError as e:
                bad.append((row, str(e)))
                continue
            except Unavailable as e:
                return {"index": key.index, "bad": bad, "unavailable": str(e)}
            names = {"index": key.index, "row": row, "label": self.videos.target(row)}
            return views | names | {"bad": bad}
        return {"index": key.index, "bad": bad}

    def _views(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        """Raises VideoError, Unavailable."""
        attempts = self._attempts(row)
        state = rng.bit_generator.state
        decoder = None
        while True:
            try:
                return self._decoded_views(row, decoder, rng)
            except VideoError as e:
                decoder = attempts.after(e)
                rng.bit_generator.state = state  # the same draws, whichever attempt succeeds

    def _attempts(self, row: int) -> Attempts:
        count = len(self.videos)
        others = {(row + 1) % count, count // 2, count - 1} - {row}
        return self.source.attempts(
            self.videos.path(row), lambda: [self.videos.path(other) for other in sorted(others)]
        )

    def _decoded_views(
        self, row: int, decoder: str | None, rng: np.random.Generator
    ) -> dict[str, Any]:
        with self.source.open(self.videos.path(row), decoder) as video:
            info = video.info
            grid = info.grid()
            # All draws of frames come first, then one decode of their union, then the views' draws.
            part = self._part(row, len(grid), info.fps)
            count = 1 if self.same_frames else self.repeats
            draws = [self._draw(part, info.fps, rng) for _ in range(count)]
            draws *= self.repeats // count
            clips = grid[np.concatenate(draws).clip(0, len(grid) - 1)]
            frames = SmallFrames(self.transform, clips, rng, video.parts)
            return self._views_of(frames, info, clips, rng)

    def _part(self, row: int, count: int, fps: float) -> tuple[int, int]:
        """(first, count) of the frames that the row is. Raises VideoError."""
        segment = self.videos.segment(row)
        if segment is None:
            return 0, count
        try:
            return segment_frames(
                *segment,
                num_frames_in_video=count,
                fps=fps,
                span=self.sample.span(fps),
                share=self.segment_share,
            )
        except ValueError as e:
            raise Refused(str(e)) from e

    def _draw(self, part: tuple[int, int], fps: float, rng: np.random.Generator) -> np.ndarray:
        """int64 [clips, T]; a widened segment may reach beyond the video."""
        first, count = part
        clips = first + self.sample(count, fps, rng)
        return rng.permuted(clips, axis=1) if self.shuffle_frames else clips

    def _views_of(
        self, frames: SmallFrames, info: VideoInfo, clips: np.ndarray, rng: np.random.Generator
    ) -> dict[str, Any]:
        views = [
            plan.views(frames.of(plan.shrink, clip)) for plan, clip in zip(frames.plans, clips)
        ]
        clip = torch.cat([v.clips for v in views])
        starts = info.times[clips[:, 0]]
        ends = info.times[clips[:, -1]] + 1 / info.fps  # a clip ends when its last frame does
        return {
            "clip": clip,
            "erase": torch.cat([v.erase for v in views]),
            "seed": torch.from_numpy(rng.integers(2**62, size=len(clip))),
            "times": np.stack([starts, ends], axis=1),
        }

    def chunks(self, row: int, first: int) -> Iterator[Batch]:
        """A video's clips from number `first` on, in batches that take a bounded amount of memory.

        Where a chunk begins and ends depends on the video alone. Batches also hold `first` and
        `total`, in clips, `fps` and `frames`, of the video, and `requested`: 1 in the last one, 0
        before.
        """
        attempts = self._attempts(row)
        decoder = None
        while True:
            try:
                try:
                    for batch in self._chunks_with(decoder, row, first):
                        first = batch["first"] + batch["clip"].shape[1]
                        yield batch
                    return
                except VideoError as e:
                    decoder = attempts.after(e)
            except VideoError as e:
                yield collate([{"index": row, "bad": [(row, str(e))]}])
                return
            except Unavailable as e:
                yield collate([{"index": row, "bad": [], "unavailable": str(e)}])
                return

    def _chunks_with(self, decoder: str | None, row: int, first: int) -> Iterator[Batch]:
        rng = np.random.default_rng([self.seed, 0, row])
        with self.source.open(self.videos.path(row), decoder) as video:
            grid = video.info.grid()
            part = self._part(row, len(grid), video.info.fps)
            clips = grid[self._draw(part, video.info.fps, rng).clip(0, len(grid) - 1)]
            frame_bytes = video.get([clips[0, 0]]).nbytes
            size = max(1, min(CHUNK_CLIPS, CHUNK_BYTES // (frame_bytes * clips.shape[1])))
            frames = None
            for start in range(first, len(clips), size):
                # A chunk's own draws: the same where a run goes on at it.
                rng = np.random.default_rng([self.seed, 0, row, start])
                chunk = clips[start : start + size]
                # What two chunks that follow share is decoded once.
                frames = SmallFrames(self.transform, chunk, rng, video.parts, frames)
                sample = self._views_of(frames, video.info, chunk, rng)
                sample |= {"index": row, "row": row, "label": self.videos.target(row), "bad": []}
                is_last = start + size >= len(clips)
                place: dict[str, Any] = {
                    "first": start,
                    "total": len(clips),
                    "requested": int(is_last),
                }
                place |= {"fps": video.info.fps, "frames": len(grid)}
                yield collate([sample]) | place


def collate(samples: Sequence[dict[str, Any]]) -> Batch:
    """A batch of the samples that could be read; `requested` counts all."""
    bad = [found for sample in samples for found in sample["bad"]]
    good = [sample for sample in samples if "clip" in sample]
    away = [sample["unavailable"] for sample in samples if "unavailable" in sample]
    batch: Batch = {"bad": bad, "clip": None, "requested": len(samples)}
    batch["unavailable"] = away[0] if away else ""
    if good:
        for name in ("clip", "erase", "seed"):
            batch[name] = torch.stack([sample[name] for sample in good])
        batch["times"] = [sample["times"] for sample in good]
        for name in ("label", "index", "row"):
            batch[name] = torch.from_numpy(np.array([sample[name] for sample in good]))
    return batch


def why_nothing(found: dict[str, Any]) -> str:
    """Of a sample or batch of one video that has no clip."""
    return found.get("unavailable") or found["bad"][0][1]

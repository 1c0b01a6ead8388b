"""Frames of some clips, made small as they come from the decoder: few are whole at a time."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from hiera_video.data.transforms import Plan, Shrink, Transform
from hiera_video.system.errors import VideoError

# Frame numbers -> (some of them, uint8 [n, H, W, C]), each part good until the next one.
Parts = Callable[[np.ndarray], Iterable[tuple[Sequence[int], np.ndarray]]]


class SmallFrames:
    """Of the clips [clips, T] (frame numbers), each with a plan that is drawn for it.

    before: of clips of the same video, whose frames are not decoded again where they are the same.
    Raises VideoError, and what else `parts` raises.
    """

    def __init__(
        self,
        transform: Transform,
        clips: np.ndarray,
        rng: np.random.Generator,
        parts: Parts,
        before: "SmallFrames | None" = None,
    ):
        self._clips = clips
        self._transform = transform
        self._rng = rng
        self.plans: list[Plan] = []
        self.size = (0, 0)  # of a frame
        self._rows: dict[Shrink, dict[int, int]] = {}  # frame number -> row of _frames
        self._frames: dict[Shrink, Tensor] = {}  # uint8 [n, C, h, w]
        missing = np.unique(clips)
        if before is not None:
            self._draw(before.size)
            missing = self._take(before)
        left = set(missing.tolist())
        if left:
            for numbers, whole in parts(missing):
                if not self.plans:
                    self._draw(whole.shape[1:3])
                if whole.shape[1:3] != self.size:
                    raise VideoError("the picture turns within the video")
                left -= set(numbers)
                self._add(numbers, torch.from_numpy(whole).permute(0, 3, 1, 2))
        if left:
            raise VideoError(f"frame {min(left)} did not come ({len(left)} such)")

    def of(self, shrink: Shrink, clip: np.ndarray) -> Tensor:
        """uint8 [T, C, h, w]: a view where the rows follow each other, as in most clips."""
        row_of = self._rows[shrink]
        rows = np.array([row_of[number] for number in clip.tolist()])
        if np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            return self._frames[shrink][rows[0] : rows[0] + len(rows)]
        return self._frames[shrink][torch.from_numpy(rows)]

    def _draw(self, size: tuple[int, ...]) -> None:
        height, width = size
        self.size = (height, width)
        self.plans = [self._transform.plan(height, width, self._rng) for _ in self._clips]
        for shrink in {plan.shrink for plan in self.plans}:
            of_shrink = [plan.shrink == shrink for plan in self.plans]
            numbers = np.unique(self._clips[of_shrink])
            self._rows[shrink] = {number: row for row, number in enumerate(numbers.tolist())}
            h, w = shrink.size
            # As decoders have it: channels last.
            self._frames[shrink] = torch.empty(len(numbers), h, w, 3, dtype=torch.uint8).permute(
                0, 3, 1, 2
            )

    def _take(self, before: "SmallFrames") -> np.ndarray:
        """Frames that were made small in the same way; returns the numbers of the others."""
        missing: set[int] = set()
        for shrink, rows in self._rows.items():
            known = before._rows.get(shrink, {})
            held = [number for number in rows if number in known]
            if held:
                target = torch.tensor([rows[number] for number in held])
                source = torch.tensor([known[number] for number in held])
                self._frames[shrink][target] = before._frames[shrink][source]
            missing |= rows.keys() - known.keys()
        return np.array(sorted(missing), dtype=np.int64)

    def _add(self, numbers: Sequence[int], whole: Tensor) -> None:
        for shrink, rows in self._rows.items():
            chosen = [place for place, number in enumerate(numbers) if number in rows]
            if chosen:
                some = whole if len(chosen) == len(numbers) else whole[chosen]
                target = torch.tensor([rows[numbers[place]] for place in chosen])
                self._frames[shrink][target] = shrink(some)

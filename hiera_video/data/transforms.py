"""From decoded frames to the clips that a model takes.

Everything random comes from the generator passed in.

Legend: frames uint8 [T, C, H, W] (torchvision's layout), clip uint8 [C, T, S, S], S the crop's
side, V views.

A transform draws its plan first, from the size of a frame. Every frame is then cut and resized
alone, as it comes from the decoder, and only small ones are kept; what is made of a clip's small
frames together comes last.

Resizing is bilinear without antialias, as in the published protocol. Clips stay uint8 until they
are on the device; `normalise` makes them float there, and fills erased boxes, which the recipes do
after normalisation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

MEAN = (0.45, 0.45, 0.45)
STD = (0.225, 0.225, 0.225)
NO_BOX = (0, 0, 0, 0)


class Views(NamedTuple):
    """Some views of one clip."""

    clips: Tensor  # uint8 [V, C, T, S, S]
    erase: Tensor  # int32 [V, 4]: top, left, height, width of the box to erase; zeros for none


Box = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class Shrink:
    """What becomes of each frame, alone: a box of it (None: all of it), resized."""

    size: tuple[int, int]
    box: Box | None = None

    def __call__(self, frames: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, *size]"""
        if self.box is not None:
            top, left, height, width = self.box
            frames = frames[..., top : top + height, left : left + width]
        return resize(frames, self.size)


class Plan(NamedTuple):
    """All that is drawn for a clip."""

    shrink: Shrink
    views: Callable[[Tensor], Views]  # of the clip's small frames [T, C, *size]


class Transform(Protocol):
    """From a clip's frames to views of it."""

    def plan(self, height: int, width: int, rng: np.random.Generator) -> Plan:
        """For frames of that size."""


def crop_boxes(
    height: int, width: int, *, short_side: int = 224, size: int = 224, num_crops: int = 3
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Size of the resized frame, (h, w), and the corners (top, left) of the square test crops.

    Three crops lie along the long side: left or top, centre, right or bottom. One is the centre.
    (PySlowFast.)
    """
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops={num_crops} must be 1 or 3")
    if size > short_side:
        raise ValueError(f"a crop of {size} does not fit a short side of {short_side}")
    if width < height:
        h = math.floor(height / width * short_side)
        w = short_side
    else:
        h = short_side
        w = math.floor(width / height * short_side)
    centre = (math.ceil((h - size) / 2), math.ceil((w - size) / 2))
    if num_crops == 1:
        return (h, w), [centre]
    if h > w:
        return (h, w), [(0, centre[1]), centre, (h - size, centre[1])]
    return (h, w), [(centre[0], 0), centre, (centre[0], w - size)]


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    # As torchvision does.
    return interpolate(frames, size, mode="bilinear", align_corners=False, antialias=False)


def planar(frames: Tensor) -> Tensor:
    """uint8 [T, 3, h, w], which decoders lay out with channels last -> [3, T, h, w], a copy."""
    import cv2  # ten times as fast at this as torch; imported here, because it takes long

    pixels = frames.permute(0, 2, 3, 1).contiguous().numpy()
    out = np.empty((pixels.shape[-1], *pixels.shape[:-1]), np.uint8)
    for k, frame in enumerate(pixels):
        cv2.split(frame, list(out[:, k]))
    return torch.from_numpy(out)


Levels = tuple[float, float]  # mean and standard deviation of pixels, 0 to 1


def to_levels(clip: Tensor, levels: Levels | None) -> Tensor:
    """uint8 -> uint8, with that mean and standard deviation over all of it; None: as it is.

    Values beyond black and white are cut off. Of a clip of one colour only the mean is set.
    """
    if levels is None:
        return clip
    mean, std = (255 * level for level in levels)
    pixels = clip.float()
    var, own = torch.var_mean(pixels, correction=0)
    scaled = (pixels - own) * (std / var.sqrt().clamp(min=1))
    return (scaled + mean).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class EvalCrops:
    """Resize the short side, then one or three square crops: the views of a clip in testing.

    squash: both sides are resized to `short_side`. levels: of to_levels, crop by crop.
    """

    short_side: int = 224
    size: int = 224
    num_crops: int = 3
    squash: bool = False
    levels: Levels | None = None

    def plan(self, height: int, width: int, rng: np.random.Generator | None = None) -> Plan:
        if self.squash:
            height = width = 1
        resized, corners = crop_boxes(
            height, width, short_side=self.short_side, size=self.size, num_crops=self.num_crops
        )
        return Plan(Shrink(resized), partial(self._views, corners))

    def __call__(self, frames: Tensor, rng: np.random.Generator | None = None) -> Views:
        height, width = frames.shape[-2:]
        plan = self.plan(height, width)
        return plan.views(plan.shrink(frames))

    def _views(self, corners: list[tuple[int, int]], frames: Tensor) -> Views:
        clip = planar(frames)  # once for all crops
        crops = [clip[..., top : top + self.size, left : left + self.size] for top, left in corners]
        crops = [to_levels(crop, self.levels) for crop in crops]
        return Views(torch.stack(crops), torch.zeros(len(crops), 4, dtype=torch.int32))


@dataclass(frozen=True)
class TrainCrop:
    """Random resized crop, flip, RandAugment and a box to erase, one draw for the whole clip.

    The crop comes before RandAugment (timm's order; PySlowFast augments the whole frame first, for
    several times the work). squash: aspect ratios are those of the frame's own, so that the box is
    resized as the whole frame would be.
    """

    size: int = 224
    scale: tuple[float, float] = (0.5, 1.0)  # of the area
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    squash: bool = False
    levels: Levels | None = None  # of to_levels, before RandAugment
    flip: float = 0.0  # probability
    magnitude: float = 0.0  # RandAugment; 0 is off
    num_ops: int = 2
    magnitude_std: float = 0.5
    erase: float = 0.0  # probability

    def __call__(self, frames: Tensor, rng: np.random.Generator) -> Views:
        height, width = frames.shape[-2:]
        plan = self.plan(height, width, rng)
        return plan.views(plan.shrink(frames))

    def plan(self, height: int, width: int, rng: np.random.Generator) -> Plan:
        own = width / height if self.squash else 1.0
        aspect = (self.aspect[0] * own, self.aspect[1] * own)
        box = random_box(height, width, scale=self.scale, aspect=aspect, rng=rng)
        flips = rng.random() < self.flip
        operations = []
        if self.magnitude > 0:
            # Imported here, because torchvision takes seconds.
            from hiera_video.data.randaugment import draw_operations

            operations = draw_operations(self.magnitude, self.num_ops, self.magnitude_std, rng)
        erased = NO_BOX
        if rng.random() < self.erase:
            erased = random_box(
                self.size, self.size, scale=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3), rng=rng
            )
        shrink = Shrink((self.size, self.size), box)
        return Plan(shrink, partial(self._views, flips, operations, erased))

    def _views(
        self, flips: bool, operations: Sequence[tuple], erased: Box, frames: Tensor
    ) -> Views:
        frames = to_levels(frames, self.levels)
        if flips:
            frames = frames.flip(-1)
        if operations:
            from hiera_video.data.randaugment import apply_operations

            pixels = frames.permute(0, 2, 3, 1).contiguous().numpy()
            pixels = apply_operations(pixels, list(operations))
            frames = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return Views(planar(frames)[None], torch.tensor([erased], dtype=torch.int32))


def random_box(
    height: int,
    width: int,
    *,
    scale: Sequence[float],
    aspect: Sequence[float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a box with an area and an aspect ratio in the given ranges.

    scale: share of the area. aspect: width over height, drawn log-uniformly. After ten boxes that
    do not fit: the largest centred one with an allowed ratio.
    """
    for _ in range(10):
        area = height * width * rng.uniform(scale[0], scale[1])
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        h = round(math.sqrt(area / ratio))
        w = round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    ratio = min(max(width / height, aspect[0]), aspect[1])
    h = min(height, round(width / ratio))
    w = min(width, round(height * ratio))
    return (height - h) // 2, (width - w) // 2, h, w


@cache
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[1, C, 1, 1, 1]; moved once, as each move would wait for the device."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, -1, 1, 1, 1)


def normalise(
    clips: Tensor,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    *,
    erase: Tensor | None = None,
    seeds: Tensor | None = None,
) -> Tensor:
    """uint8 [N, C, T, S, S] on the device -> float32, normalised.

    erase: boxes [N, 4] that are filled with normal noise. seeds: of that noise, clip by clip, so
    that it does not depend on the rest of the batch. Both are read on the host: keep them there.
    """
    shift = _on_device(tuple(mean), clips.device)
    scale = _on_device(tuple(std), clips.device)
    x = (clips.float() / 255 - shift) / scale
    if erase is not None and seeds is not None:
        generator = torch.Generator(device=x.device)
        for n, (top, left, height, width) in enumerate(erase.tolist()):
            if height and width:
                box = x[n, :, :, top : top + height, left : left + width]
                box.copy_(
                    torch.randn(
                        box.shape, generator=generator.manual_seed(int(seeds[n])), device=x.device
                    )
                )
    return x


def pytorchvideo_transform(
    num_frames: int = 16,
    crop_size: int = 224,
    *,
    short_side: int | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    key: str = "video",
    random_crop: TrainCrop | None = None,
) -> Callable[[dict], dict]:
    """A transform for `pytorchvideo.data.LabeledVideoDataset` that makes its samples fit a Hiera.

    On `sample[key]` (uint8 or float 0 to 255, [C, T, H, W]): an even subsample of `num_frames`,
    then the centre crop after a resize of the short side (default `crop_size`), or `random_crop`;
    normalised float32 [C, num_frames, S, S].
    """
    centre = EvalCrops(short_side=short_side or crop_size, size=crop_size, num_crops=1)

    def transform(sample: dict) -> dict:
        frames = sample[key].transpose(0, 1)  # [T, C, H, W]
        index = np.linspace(0, len(frames) - 1, num_frames).astype(np.int64)
        frames = frames[torch.from_numpy(index)].round().clamp(0, 255).to(torch.uint8)
        if random_crop is None:
            clips = centre(frames).clips
            erase = None
            seeds = None
        else:
            # PyTorchVideo seeds torch in its workers; this draw follows it.
            seeds = torch.randint(2**62, (1,))
            clips, erase = random_crop(frames, np.random.default_rng(int(seeds)))
        return {**sample, key: normalise(clips, mean, std, erase=erase, seeds=seeds)[0]}

    return transform

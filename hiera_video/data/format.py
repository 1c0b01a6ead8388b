"""The clip format of a model: frames, spacing, crop and pixel values of what it was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hiera_video.data.sampling import (
    ClipSampler,
    ClipShape,
    SlidingWindows,
    UniformClips,
    UniformSegments,
)
from hiera_video.data.transforms import MEAN, STD, EvalCrops, Levels

SEGMENTS = "segments"


@dataclass(frozen=True)
class ClipFormat:
    """Frames of a clip, the size of its crops, and the values of its pixels."""

    shape: ClipShape = field(default_factory=ClipShape)
    crop_size: int = 224  # pixels
    short_side: int = 224  # that frames are resized to before the crop
    squash: bool = False  # frames are resized to squares first
    levels: Levels | None = None  # that every clip is brought to
    segments: bool = False  # a frame from each of equal segments of the video, in place of a clip
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "ClipFormat":
        """Of a weight file; what it does not say is the published format."""
        clips = metadata.get("clips", {})
        names = ("num_frames", "sampling_rate", "target_fps")
        crop_size = clips.get("crop_size", cls.crop_size)
        return cls(
            ClipShape(**{name: clips[name] for name in names if name in clips}),
            crop_size=crop_size,
            short_side=clips.get("short_side", crop_size),
            squash=bool(clips.get("squash", cls.squash)),
            levels=tuple(clips["levels"]) if clips.get("levels") else None,
            segments=clips.get("clip_sampler") == SEGMENTS,
            mean=tuple(metadata.get("mean") or MEAN),
            std=tuple(metadata.get("std") or STD),
        )

    def uniform(self, clips: int) -> ClipSampler:
        """`clips` clips, evenly over the video."""
        if self.segments:
            return UniformSegments(self.shape.num_frames, clips)
        return UniformClips(self.shape, clips)

    def windows(self, hop_s: float | None = None) -> ClipSampler:
        """Windows over the whole video, end to end or every `hop_s` seconds."""
        return SlidingWindows(self.shape, hop_s)

    def crops(self, count: int) -> EvalCrops:
        """count: 1 or 3"""
        return EvalCrops(
            short_side=self.short_side,
            size=self.crop_size,
            num_crops=count,
            squash=self.squash,
            levels=self.levels,
        )

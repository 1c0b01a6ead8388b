"""From a video file, or frames, to the clip that a Hiera takes: the clip from its middle."""

from typing import ClassVar, TypedDict

import av
import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_base import ImageProcessingMixin

from .clips import crop_boxes, resize, segment_clips, to_levels, uniform_clips


class Known(TypedDict, total=False):
    """What the constructor takes."""

    clip_format: dict


class HieraVideoProcessor(ImageProcessingMixin):
    """clip_format: as in the config."""

    model_input_names: ClassVar = ["pixel_values"]
    valid_kwargs = Known

    def __init__(self, clip_format=None, **kwargs):
        super().__init__(**kwargs)
        self.clip_format = clip_format or {}

    def __call__(self, videos, fps=30.0, return_tensors="pt", **kwargs):
        """videos: a file, frames [N, H, W, 3] (an array or a list), or a list of these.

        How many frames a clip has is the model's matter: `num_frames` and such are not read.
        """
        if is_file(videos) or np.ndim(videos[0]) == 3:
            videos = [videos]
        clips = [self.clip(video, fps) for video in videos]
        return BatchFeature({"pixel_values": torch.cat(clips)}, tensor_type=return_tensors)

    def clip(self, video, fps):
        """float32 [1, 3, T, S, S]"""
        f = self.clip_format
        count = len(video)
        if is_file(video):
            count, fps = length_of(video)
        if f["segments"]:
            (numbers,) = segment_clips(count, f["num_frames"], 1)
        else:
            (numbers,) = uniform_clips(
                count, fps, f["num_frames"], f["sampling_rate"], 1, f["target_fps"]
            )
        frames = decoded(video, numbers) if is_file(video) else [video[n] for n in numbers]
        chosen = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)  # [T, 3, H, W]
        height, width = (1, 1) if f["squash"] else chosen.shape[-2:]
        size, ((top, left),) = crop_boxes(
            height, width, short_side=f["short_side"], size=f["crop_size"], num_crops=1
        )
        small = resize(chosen, size)[..., top : top + f["crop_size"], left : left + f["crop_size"]]
        levels = tuple(f["levels"]) if f["levels"] else None
        clip = to_levels(small.transpose(0, 1).contiguous(), levels)
        mean, std = (torch.tensor(f[name]).view(1, 3, 1, 1, 1) for name in ("mean", "std"))
        return (clip[None].float() / 255 - mean) / std


def is_file(video):
    return isinstance(video, (str, bytes)) or hasattr(video, "__fspath__")


def length_of(file):
    """(frames, frames a second)"""
    with av.open(file) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 30)
        return sum(1 for _ in container.decode(stream)), fps


def decoded(file, numbers):
    """Those frames, uint8 [H, W, 3], upright."""
    wanted = set(numbers.tolist())
    found = {}
    with av.open(file) as container:
        for number, frame in enumerate(container.decode(container.streams.video[0])):
            if number in wanted:
                image = frame.to_ndarray(format="rgb24")
                turns = round(getattr(frame, "rotation", 0) / 90) % 4
                found[number] = np.ascontiguousarray(np.rot90(image, turns)) if turns else image
            if number > max(wanted):
                break
    return [found[number] for number in numbers.tolist()]

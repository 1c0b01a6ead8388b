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
    """clip_format: as in the config.

    Called with a file, or with frames uint8 [N, H, W, 3] and their rate; or with a list of these.
    """

    model_input_names: ClassVar = ["pixel_values"]
    valid_kwargs = Known

    def __init__(self, clip_format=None, **kwargs):
        super().__init__(**kwargs)
        self.clip_format = clip_format or {}

    def __call__(self, videos, fps=30.0, return_tensors="pt", **kwargs):
        if not isinstance(videos, (list, tuple)):
            videos = [videos]
        clips = [self.clip(video, fps) for video in videos]
        return BatchFeature({"pixel_values": torch.cat(clips)}, tensor_type=return_tensors)

    def clip(self, video, fps):
        """float32 [1, 3, T, S, S]"""
        f = self.clip_format
        if isinstance(video, (str, bytes)) or hasattr(video, "__fspath__"):
            frames, fps = decoded(video)
        else:
            frames = np.stack([np.asarray(frame) for frame in video])
        if f["segments"]:
            (numbers,) = segment_clips(len(frames), f["num_frames"], 1)
        else:
            (numbers,) = uniform_clips(
                len(frames), fps, f["num_frames"], f["sampling_rate"], 1, f["target_fps"]
            )
        chosen = torch.from_numpy(frames[numbers]).permute(0, 3, 1, 2)  # [T, 3, H, W]
        height, width = (1, 1) if f["squash"] else chosen.shape[-2:]
        size, ((top, left),) = crop_boxes(
            height, width, short_side=f["short_side"], size=f["crop_size"], num_crops=1
        )
        small = resize(chosen, size)[..., top : top + f["crop_size"], left : left + f["crop_size"]]
        levels = tuple(f["levels"]) if f["levels"] else None
        clip = to_levels(small.transpose(0, 1).contiguous(), levels)
        mean, std = (torch.tensor(f[name]).view(1, 3, 1, 1, 1) for name in ("mean", "std"))
        return (clip[None].float() / 255 - mean) / std


def decoded(file):
    """(frames uint8 [N, H, W, 3], upright; frames a second)"""
    with av.open(file) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 30)
        frames = []
        for frame in container.decode(stream):
            image = frame.to_ndarray(format="rgb24")
            turns = round(getattr(frame, "rotation", 0) / 90) % 4
            frames.append(np.ascontiguousarray(np.rot90(image, turns)) if turns else image)
    return np.stack(frames), fps

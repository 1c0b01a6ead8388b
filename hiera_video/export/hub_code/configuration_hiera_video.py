"""The config of a Hiera on video, for transformers: the model's arguments and its clip format."""

from transformers import PretrainedConfig


class HieraVideoConfig(PretrainedConfig):
    """arguments: of the model. clip_format: frames, spacing, size and pixel values of its clips."""

    model_type = "hiera_video"

    def __init__(self, arguments=None, clip_format=None, **kwargs):
        self.arguments = arguments or {}
        self.clip_format = clip_format or {}
        self.num_frames = self.clip_format.get("num_frames", 16)
        super().__init__(**kwargs)

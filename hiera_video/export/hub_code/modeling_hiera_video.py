"""Hiera on video, for transformers."""

from torch.nn.functional import cross_entropy
from torch.nn.init import trunc_normal_, zeros_
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from . import tokens
from .configuration_hiera_video import HieraVideoConfig
from .hiera import Hiera
from .linear import Linear


def init_weights(module):
    """What is not in the folder: what is computed, and a head for other classes."""
    if isinstance(module, Hiera):
        index = tokens.unit_index(
            module.grid, module.mask_unit_size, module.q_stride, module.q_pool
        )
        module.unit_index.copy_(index)
    elif isinstance(module, Linear):
        trunc_normal_(module.weight, std=0.02)
        zeros_(module.bias)


class HieraVideoModel(PreTrainedModel):
    """pixel_values [B, 3, T, S, S], normalised -> the vector that the classifier reads [B, dim]

    `last_hidden_state` is the last stage's map, row by row [B, t * h * w, C].
    """

    config_class = HieraVideoConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = Hiera(**config.arguments)
        self.post_init()

    def _init_weights(self, module):
        init_weights(module)

    def forward(self, pixel_values, return_dict=True, **kwargs):
        features, maps = self.model.features_and_maps(pixel_values)
        out = BaseModelOutputWithPooling(
            last_hidden_state=maps[-1].flatten(1, -2), pooler_output=features
        )
        return out if return_dict else out.to_tuple()


class HieraVideoForVideoClassification(PreTrainedModel):
    """pixel_values [B, 3, T, S, S], normalised -> logits [B, classes]"""

    config_class = HieraVideoConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = Hiera(**{**config.arguments, "num_classes": config.num_labels})
        self.post_init()

    def _init_weights(self, module):
        init_weights(module)

    def forward(self, pixel_values, labels=None, return_dict=True, **kwargs):
        logits = self.model(pixel_values)
        loss = None if labels is None else cross_entropy(logits, labels)
        out = ImageClassifierOutput(loss=loss, logits=logits)
        return out if return_dict else out.to_tuple()

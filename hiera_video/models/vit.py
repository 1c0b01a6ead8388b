"""Plain ViT on video and images, and its masked autoencoder (VideoMAE; MAE-ST).

A plain ViT is a trunk of one stage whose mask units are single tokens: everything else, the blocks,
the decoder, the masks, stands where it stands for Hiera. What the published ones add is positions
that are not learned (VideoMAE) or separable with a class token (MAE-ST), targets of their own
(targets.py) and masks that are tubes (`mae.mask`).
"""

from typing import Any

from hiera_video.models.arguments import ViTArgs, ViTMAEArgs
from hiera_video.models.classifier import Classifier
from hiera_video.models.mae import MaskedAutoencoder


class ViT(Classifier):
    """Arguments: ViTArgs, by keyword. Raises ValueError."""

    def __init__(self, **arguments: Any):
        super().__init__(ViTArgs(**arguments))


class ViTAutoencoder(MaskedAutoencoder):
    """Arguments: ViTMAEArgs, by keyword. Raises ValueError."""

    arguments = ViTMAEArgs

"""Hiera, a hierarchical vision transformer with nothing built in (Ryali et al., ICML 2023).

Structure (paper Fig. 2, Table 2): patch embedding, four stages of transformer blocks, mean over
tokens, norm, linear. The first block of a stage doubles the channels and, up to `q_pool` times,
max-pools its queries (and its skip path). Stages 1 and 2 attend inside a mask unit, stages 3 and 4
globally; the switch lags one block behind the stage.

Parameter names and shapes are those of the official release, so that published files load
unchanged. The parts: trunk.py, blocks.py, classifier.py; its masked autoencoder: mae.py.
"""

from typing import Any

from hiera_video.models.arguments import HieraArgs
from hiera_video.models.classifier import Classifier


class Hiera(Classifier):
    """Hiera classifier. Arguments: HieraArgs, by keyword. Raises ValueError."""

    def __init__(self, **arguments: Any):
        super().__init__(HieraArgs(**arguments))

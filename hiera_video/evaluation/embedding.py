"""Features on a plane, to be looked at."""

import contextlib
import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

FEW = 50  # videos, below which there are no neighbourhoods to keep


def on_a_plane(features: Tensor) -> tuple[str, Tensor]:
    """features: [N, dim] -> (how: UMAP where it is installed, else PCA; places [N, 2])

    UMAP: McInnes et al., 2018. It keeps neighbours together, PCA the large distances.
    """
    centred = features.double() - features.double().mean(0)
    umap: Any = None
    if len(features) >= FEW:
        with contextlib.suppress(ImportError):
            umap = import_module("umap")
    if umap is None:
        _, _, axes = torch.linalg.svd(centred, full_matrices=False)
        axes = axes[:2]
        # Of the two directions of an axis, the one whose largest weight is positive.
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        return "PCA", (centred @ (axes * largest.sign()).T).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        places = umap.UMAP(random_state=0, n_jobs=1).fit_transform(centred.numpy())
    return "UMAP", torch.from_numpy(places)

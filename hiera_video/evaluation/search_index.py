"""An index, by faiss, of the windows of a feature folder that is too large to go through.

It names videos that may be near, whose windows are then compared exactly (likeness.py). It is kept
in the folder, in `search/`, as long as the features stay what they were.
"""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hiera_video.evaluation.feature_folder import MADE_OF, FeatureFolder
from hiera_video.evaluation.likeness import FITTED, Space, whitened
from hiera_video.system.files import written_whole
from hiera_video.system.tensors import save_file

ABOVE = 1_000_000  # windows, for which an index is worth while
NEAR = 64  # windows that are named for each window of a query
PROBES = 32  # of the index's cells that are looked through
PER_CELL = 40  # windows that a cell is learned from


class SearchIndex:
    """Raises ImportError without faiss."""

    def __init__(self, folder: FeatureFolder):
        import faiss

        self._faiss: Any = faiss
        self._folder = folder
        counts = torch.tensor(list(map(folder.windows, range(len(folder)))))
        self._ends = counts.cumsum(0)  # [V], windows
        file = folder.folder / "search" / f"{_state_of(folder.folder)}.faiss"
        if file.exists():
            self._index = faiss.read_index(str(file))
            stored = load_file(file.with_suffix(".safetensors"))
            self.space = Space(stored["mean"], stored["basis"])
        else:
            self._build()
            with contextlib.suppress(OSError):  # a folder that is only read is searched, too
                self._keep(file)
        faiss.extract_index_ivf(self._index).nprobe = PROBES

    def videos_near(self, features: Tensor) -> list[int]:
        """features: [n, dim], of windows of a query -> videos that have windows near them"""
        _, found = self._index.search(self.space(features).numpy(), NEAR)
        windows = torch.from_numpy(found).flatten()
        videos = torch.searchsorted(self._ends, windows[windows >= 0], right=True)
        return videos.unique().tolist()

    def _build(self) -> None:
        total = int(self._ends[-1])
        some = self._every(-(-total // FITTED))
        self.space = whitened(some)
        cells = max(1, min(round(4 * total**0.5), len(some) // PER_CELL))
        inner = self._faiss.METRIC_INNER_PRODUCT
        self._index = self._faiss.index_factory(some.shape[1], f"IVF{cells},SQ8", inner)
        self._index.train(self.space(some).numpy())
        held: list[Tensor] = []
        last = len(self._folder) - 1
        for k in range(len(self._folder)):
            held.append(self._folder.features(k))
            if sum(map(len, held)) >= FITTED or k == last:
                self._index.add(self.space(torch.cat(held)).numpy())
                held = []

    def _every(self, gap: int) -> Tensor:
        """Every `gap`-th window of all."""
        parts = []
        for k, end in enumerate(self._ends.tolist()):
            first = end - self._folder.windows(k)
            if -(-first // gap) * gap < end:
                parts.append(self._folder.features(k)[-first % gap :: gap])
        return torch.cat(parts)

    def _keep(self, file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        for old in file.parent.glob("*"):
            old.unlink()
        tensors = {"mean": self.space.mean, "basis": self.space.basis.contiguous()}
        with written_whole(file.with_suffix(".safetensors"), shared=True) as temporary:
            save_file(tensors, temporary)
        with written_whole(file, shared=True) as temporary:
            self._faiss.write_index(self._index, str(temporary))


def _state_of(folder: Path) -> str:
    """Of what its features are, and of what they are made."""
    digest = hashlib.sha256()
    for name in ("manifest.csv", MADE_OF):
        if (folder / name).exists():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]

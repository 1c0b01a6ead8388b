"""An index, by faiss, of the windows of feature folders that are too large to go through.

It names videos that may be near, whose windows are then compared exactly (likeness.py). The index
of a single folder is kept in it, in `search/`, as long as its manifest stays what it was.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hiera_video.evaluation.feature_folder import FeatureFolder
from hiera_video.evaluation.likeness import FITTED, Space, whitened
from hiera_video.system.files import sha256_of, written_whole
from hiera_video.system.tensors import save_file

ABOVE = 1_000_000  # windows, for which an index is worth while
NEAR = 64  # windows that are named for each window of a query
PROBES = 32  # of the index's cells that are looked through


class SearchIndex:
    """Raises ImportError without faiss."""

    def __init__(self, folders: Sequence[FeatureFolder]):
        import faiss

        self._faiss: Any = faiss
        counts = torch.tensor([f.windows(k) for f in folders for k in range(len(f))])
        self._ends = counts.cumsum(0)  # [V], windows
        kept = folders[0].folder / "search" if len(folders) == 1 else None
        state = sha256_of(folders[0].folder / "manifest.csv")[:16]
        file = kept / f"{state}.faiss" if kept else None
        if file is not None and file.exists():
            self._index = faiss.read_index(str(file))
            stored = load_file(file.with_suffix(".safetensors"))
            self.space = Space(stored["mean"], stored["basis"])
        else:
            self._build(folders)
            if file is not None:
                with contextlib.suppress(OSError):  # a folder that is only read is searched, too
                    self._keep(file)
        faiss.extract_index_ivf(self._index).nprobe = PROBES

    def videos_near(self, features: Tensor) -> list[int]:
        """features: [n, dim], of windows of a query -> videos that have windows near them"""
        _, found = self._index.search(self.space(features).numpy(), NEAR)
        windows = torch.from_numpy(found).flatten()
        videos = torch.searchsorted(self._ends, windows[windows >= 0], right=True)
        return videos.unique().tolist()

    def _build(self, folders: Sequence[FeatureFolder]) -> None:
        total = int(self._ends[-1])
        every = [(folder, k) for folder in folders for k in range(len(folder))]
        step = -(-total // FITTED)
        some = torch.cat([folder.features(k) for folder, k in every[::step]])
        self.space = whitened(some)
        cells = max(1, min(round(4 * total**0.5), len(some) // 40))
        inner = self._faiss.METRIC_INNER_PRODUCT
        self._index = self._faiss.index_factory(some.shape[1], f"IVF{cells},SQ8", inner)
        self._index.train(self.space(some).numpy())
        held: list[Tensor] = []
        for number, (folder, k) in enumerate(every, start=1):
            held.append(folder.features(k))
            if sum(map(len, held)) >= FITTED or number == len(every):
                self._index.add(self.space(torch.cat(held)).numpy())
                held = []

    def _keep(self, file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        tensors = {"mean": self.space.mean, "basis": self.space.basis.contiguous()}
        with written_whole(file.with_suffix(".safetensors"), shared=True) as temporary:
            save_file(tensors, temporary)
        with written_whole(file, shared=True) as temporary:
            self._faiss.write_index(self._index, str(temporary))

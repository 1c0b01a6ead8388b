"""Rows of numbers and of texts in flat arrays, which processes share instead of copying them."""

import os
from collections.abc import Sequence

import numpy as np


class FlatSets:
    """Numbers of every row in one flat array; count: how many there are to choose from."""

    def __init__(self, sets: Sequence[Sequence[int]], count: int):
        self.count = count
        self.flat = np.array([k for numbers in sets for k in numbers], dtype=np.int64)
        self._ends = np.cumsum([len(numbers) for numbers in sets], dtype=np.int64)

    def __getitem__(self, i: int) -> np.ndarray:
        start = self._ends[i - 1] if i else 0
        return self.flat[start : self._ends[i]]

    def owners(self) -> np.ndarray:
        """The row of every number in `flat`."""
        return np.repeat(np.arange(len(self._ends)), np.diff(self._ends, prepend=0))


class FlatTexts:
    """Texts in one flat array of bytes."""

    def __init__(self, texts: list[str]):
        encoded = [os.fsencode(text) for text in texts]
        self._text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)

    def __getitem__(self, i: int) -> str:
        start = self._ends[i - 1] if i else 0
        return os.fsdecode(self._text[start : self._ends[i]].tobytes())

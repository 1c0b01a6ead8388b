"""Splits of rows into parts by groups: a video, a person. No group is in two parts.

Iterative stratification (Sechidis et al., 2011), of groups in place of rows: the label with the
fewest rows left is dealt out first, each group of it to the part that lacks most of that label.
"""

from collections.abc import Sequence

import numpy as np


def split_by_groups(
    labels: Sequence[Sequence[int]], groups: Sequence[str], shares: Sequence[float], *, seed: int
) -> np.ndarray:
    """int64 [rows], the part of every row. labels: of every row, any number. shares: of the parts.

    A part stays empty only where there are fewer groups than parts.
    """
    names, owner = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    count = 1 + max((label for of_row in labels for label in of_row), default=-1)
    # What a group holds: rows of every label and, last, rows at all.
    held = np.zeros((len(names), count + 1))
    for group, of_row in zip(owner, labels):
        held[group, list(of_row)] += 1
        held[group, -1] += 1
    wanted = np.asarray(shares)[:, None] / sum(shares) * held.sum(0)  # [parts, labels + 1]
    order = np.random.default_rng(seed).permutation(len(names))
    part = np.full(len(names), -1)
    while (part < 0).any():
        free = order[part[order] < 0]
        left = held[free].sum(0)
        # The rarest label that is left; rows without any come last.
        label = int(np.where(left[:-1] > 0, left[:-1], np.inf).argmin()) if left[:-1].any() else -1
        group = free[held[free, label].argmax()]
        needs = np.lexsort((wanted[:, -1], wanted[:, label]))
        part[group] = needs[-1]
        wanted[part[group]] -= held[group]
    _fill_empty(part, held, shares)
    return part[owner]


def _fill_empty(part: np.ndarray, held: np.ndarray, shares: Sequence[float]) -> None:
    """To a part without a group goes one of the part with the most, the largest shares first.

    The smallest one, if there is one whose labels its part has without it. held: [groups, labels +
    1], rows.
    """
    for empty in np.argsort(-np.asarray(shares), kind="stable"):
        groups = np.bincount(part, minlength=len(shares))
        if groups[empty] or groups.max() < 2:
            continue
        giving = part == groups.argmax()
        left = held[giving].sum(0) - held[giving]
        keeps = ((held[giving] == 0) | (left > 0)).all(1)
        chosen = np.lexsort((held[giving, -1], ~keeps))[0]
        part[np.flatnonzero(giving)[chosen]] = empty

"""Splits by groups: nothing in two parts, labels and sizes as near to the shares as groups let."""

import numpy as np
import pytest

from hiera_video.data.splits import split_by_groups


def test_shares_of_every_label():
    rng = np.random.default_rng(0)
    labels = [[int(k)] for k in rng.choice(4, 1000, p=[0.6, 0.25, 0.1, 0.05])]
    groups = [str(k // 2) for k in range(1000)]
    parts = split_by_groups(labels, groups, [0.7, 0.1, 0.2], seed=0)
    assert all(parts[k] == parts[k + 1] for k in range(0, 1000, 2)), "a group is on one side"
    for label in range(4):
        inside = np.array([of_row == [label] for of_row in labels])
        shares = np.bincount(parts[inside], minlength=3) / inside.sum()
        assert np.abs(shares - [0.7, 0.1, 0.2]).max() < 0.03
    assert np.array_equal(parts, split_by_groups(labels, groups, [0.7, 0.1, 0.2], seed=0))
    assert not np.array_equal(parts, split_by_groups(labels, groups, [0.7, 0.1, 0.2], seed=1))


@pytest.mark.parametrize("groups", [2, 3, 4, 5])
def test_few_groups(groups):
    """Sets of labels, rows without any; no part is empty where there are as many groups."""
    labels = [[0, 1], [], [1], [0], [], [1, 0], [], [0]] * groups
    names = [f"g{k // 8}" for k in range(8 * groups)]
    parts = split_by_groups(labels, names, [0.7, 0.1, 0.2], seed=0)
    assert set(parts) == ({0, 2} if groups == 2 else {0, 1, 2})
    assert (parts.reshape(groups, 8) == parts[::8, None]).all()

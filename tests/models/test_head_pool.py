"""A classifier that reads the means of every time, side by side."""

import pytest
import torch

from hiera_video.models import create_hiera

SMALL = {"input_size": (8, 64, 64), "embed_dim": 32, "stages": (1, 1, 1, 1), "num_classes": 5}


def small(**more):
    torch.manual_seed(0)
    return create_hiera("hiera_tiny_16x224", **SMALL, **more).eval()


@torch.no_grad()
def test_every_time_is_the_mean_over_space_of_its_own():
    model = small(head_pool="time")
    clip = torch.randn(2, 3, 8, 64, 64)
    last = model.feature_maps(clip)[-1]  # [B, t, h, w, C]
    expected = torch.cat([model.norm(last[:, t].mean((1, 2))) for t in range(4)], 1)
    torch.testing.assert_close(model.features(clip), expected)
    torch.testing.assert_close(model.features_and_maps(clip)[0], expected)
    assert model(clip).shape == (2, 5)
    assert small().features(clip).shape == (2, 256)


@torch.no_grad()
def test_a_part_of_the_units():
    model = small(head_pool="time")
    clip = torch.randn(2, 3, 8, 64, 64)
    units = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(model.features(clip, units), model.features(clip))
    # Four units of 2 x 2 a time: the first two times are whole, the others empty.
    some = model.features(clip, units[:, :8]).view(2, 4, -1)
    assert some.isfinite().all() and torch.equal(some[:, 2], some[:, 3])
    assert not torch.equal(some[:, 0], some[:, 1])


def test_what_has_no_times_is_refused():
    with pytest.raises(ValueError, match="head_pool='last'"):
        small(head_pool="last")
    with pytest.raises(ValueError, match="is for video"):
        create_hiera("hiera_tiny_224", head_pool="time")

"""RandAugment's operations beside torchvision's of the same names, and their draws."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from hiera_video.data.randaugment import OPERATIONS, rand_augment


def picture(height=64, width=96, frames=3):
    """Smooth colours with some noise, uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / 16
    waves = np.stack([np.sin(x + k) + np.cos(y * (k + 1) / 2) for k in range(3)], -1)
    clip = 120 + 40 * waves + rng.normal(0, 6, (frames, height, width, 3))
    return clip.clip(0, 255).astype(np.uint8)


def affine(clip, *, angle=0.0, translate=(0, 0), tangents=(0.0, 0.0)):
    shear = [math.degrees(math.atan(t)) for t in tangents]
    return F.affine(
        clip,
        angle=angle,
        translate=list(translate),
        scale=1.0,
        shear=shear,
        interpolation=InterpolationMode.BILINEAR,
        fill=[128.0] * 3,
        center=[0, 0] if any(shear) else None,
    )


def brighter(clip, amount):
    added = (clip.int() + amount).clamp(0, 255).to(torch.uint8)
    return torch.where(clip < 128, added, clip)


# Name -> (uint8 [T, C, H, W], level, sign) -> the same, and how many grey levels ours may differ
TORCHVISION = {
    "auto_contrast": (lambda x, level, sign: F.autocontrast(x), 0),
    "equalize": (lambda x, level, sign: F.equalize(x), 0),
    "invert": (lambda x, level, sign: F.invert(x), 0),
    "rotate": (lambda x, level, sign: affine(x, angle=sign * level * 30), 6),
    "posterize": (lambda x, level, sign: F.posterize(x, max(4 - int(level * 4), 0)), 0),
    "solarize": (lambda x, level, sign: F.solarize(x, 256 - min(int(level * 256), 256)), 0),
    "solarize_add": (lambda x, level, sign: brighter(x, min(int(level * 110), 128)), 0),
    "color": (lambda x, level, sign: F.adjust_saturation(x, 1 + sign * level * 0.9), 2),
    "contrast": (lambda x, level, sign: F.adjust_contrast(x, 1 + sign * level * 0.9), 1),
    "brightness": (lambda x, level, sign: F.adjust_brightness(x, 1 + sign * level * 0.9), 0),
    "sharpness": (lambda x, level, sign: F.adjust_sharpness(x, 1 + sign * level * 0.9), 1),
    "shear_x": (lambda x, level, sign: affine(x, tangents=(sign * level * 0.3, 0.0)), 6),
    "shear_y": (lambda x, level, sign: affine(x, tangents=(0.0, sign * level * 0.3)), 6),
    "translate_x": (
        lambda x, level, sign: affine(x, translate=(round(sign * level * 0.45 * x.shape[-1]), 0)),
        0,
    ),
    "translate_y": (
        lambda x, level, sign: affine(x, translate=(0, round(sign * level * 0.45 * x.shape[-2]))),
        0,
    ),
}


@pytest.mark.parametrize("level, sign", [(0.15, 1), (0.7, 1), (0.7, -1), (1.0, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_torchvisions(name, level, sign):
    """On a whole picture. Beside the edge of a moved one torchvision darkens the fill, and we do
    not: those pixels are left out.
    """
    clip = picture()
    operation, tolerance = TORCHVISION[name]
    found = OPERATIONS[name](clip, level, sign)
    expected = operation(torch.from_numpy(clip).permute(0, 3, 1, 2), level, sign)
    difference = np.abs(expected.permute(0, 2, 3, 1).numpy().astype(int) - found)
    if name in ("rotate", "shear_x", "shear_y"):
        white = torch.full((1, 3, *clip.shape[1:3]), 255, dtype=torch.uint8)
        of_white = operation(white, level, sign)[0, 0].int().numpy()
        of_black = operation(white * 0, level, sign)[0, 0].int().numpy()
        kept = (of_white - of_black == 255) | ((of_white == 128) & (of_black == 128))
        assert kept.mean() > 0.9
        difference = difference[:, kept]
    assert found.shape == clip.shape and found.dtype == np.uint8
    assert difference.max() <= tolerance and difference.mean() < 1


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_leave_their_input_alone(name):
    clip = picture()
    out = OPERATIONS[name](clip, 0.7, 1)
    assert np.array_equal(clip, picture()) and not np.array_equal(out, clip)


def test_flat_pictures_stay_flat():
    flat = np.full((2, 32, 32, 3), 77, np.uint8)
    for name in ("auto_contrast", "equalize"):
        assert np.array_equal(OPERATIONS[name](flat, 0.7, 1), flat)


def test_draws_are_seeded_and_sometimes_leave_a_clip_alone():
    clip = picture()
    outs = [rand_augment(clip, magnitude=7.0, rng=np.random.default_rng(s)) for s in range(60)]
    unchanged = sum(np.array_equal(out, clip) for out in outs)
    assert 5 <= unchanged <= 30  # both operations are skipped in a quarter of the draws
    again = rand_augment(clip, magnitude=7.0, rng=np.random.default_rng(3))
    assert np.array_equal(outs[3], again)


@pytest.mark.parametrize("magnitude", [0.0, 0.2, 1.0])
def test_low_magnitudes(magnitude):
    clip = picture()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        assert rand_augment(clip, magnitude=magnitude, rng=rng).shape == clip.shape
    assert np.array_equal(OPERATIONS["solarize"](clip, 0.0, 1), clip), "nothing is so bright"


@pytest.mark.parametrize("name, axis", [("shear_x", 2), ("shear_y", 1)])
def test_shears_are_about_the_corner(name, axis):
    """As PIL's, which the recipes use: a bar moves with its distance from the first line."""
    clip = np.zeros((1, 64, 64, 3), np.uint8)
    np.moveaxis(clip, axis, 0)[32] = 255  # a line along the other dimension
    sheared = OPERATIONS[name](clip, 1.0, 1)[0, ..., 0].astype(float)
    lines = sheared if axis == 2 else sheared.T
    places = lines[:, 8:56].argmax(1) + 8
    assert abs(places[0] - 32) <= 1, "the first line stays"
    assert abs(abs(places[63] - 32) - 0.3 * 63) <= 1.5, "the last one moves by 0.3 of its distance"

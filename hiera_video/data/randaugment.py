"""RandAugment of the published video recipes (`rand-m7-mstd0.5-inc1`), one draw for a whole clip.

`num_ops` operations are drawn from the table, each is applied with probability 0.5 at a level drawn
from N(magnitude, std), clipped to [0, 10]; "increasing" operations act more strongly at a higher
level. The operations are torchvision's, on uint8 [T, C, H, W]; the table's ranges are those of
timm, which the recipes name.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

FILL = [128.0, 128.0, 128.0]  # outside the picture after a geometric operation
APPLY_PROBABILITY = 0.5


def _affine(
    clip: Tensor,
    *,
    angle: float = 0.0,
    translate: tuple[int, int] = (0, 0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    center = [0, 0] if any(shear) else None  # the recipes shear about the corner
    return F.affine(
        clip, angle=angle, translate=list(translate), scale=1.0, shear=list(shear),
        interpolation=InterpolationMode.BILINEAR, fill=FILL, center=center,
    )  # fmt: skip


def _solarize(clip: Tensor, threshold: int) -> Tensor:
    return clip if threshold > 255 else F.solarize(clip, threshold=threshold)


def _solarize_add(clip: Tensor, amount: int) -> Tensor:
    brighter = (clip.to(torch.int16) + amount).clamp(0, 255).to(torch.uint8)
    return torch.where(clip < 128, brighter, clip)


def _shear_degrees(tangent: float) -> float:
    return float(np.degrees(np.arctan(tangent)))


# Name -> (clip, level 0 to 1, sign +1 or -1) -> clip. Only some operations have two directions.
OPERATIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "auto_contrast": lambda x, level, sign: F.autocontrast(x),
    "equalize": lambda x, level, sign: F.equalize(x),
    "invert": lambda x, level, sign: F.invert(x),
    "rotate": lambda x, level, sign: _affine(x, angle=sign * level * 30),
    "posterize": lambda x, level, sign: F.posterize(x, max(4 - int(level * 4), 0)),
    "solarize": lambda x, level, sign: _solarize(x, 256 - min(int(level * 256), 256)),
    "solarize_add": lambda x, level, sign: _solarize_add(x, min(int(level * 110), 128)),
    "color": lambda x, level, sign: F.adjust_saturation(x, 1 + sign * level * 0.9),
    "contrast": lambda x, level, sign: F.adjust_contrast(x, 1 + sign * level * 0.9),
    "brightness": lambda x, level, sign: F.adjust_brightness(x, 1 + sign * level * 0.9),
    "sharpness": lambda x, level, sign: F.adjust_sharpness(x, 1 + sign * level * 0.9),
    "shear_x": lambda x, level, sign: _affine(x, shear=(_shear_degrees(sign * level * 0.3), 0.0)),
    "shear_y": lambda x, level, sign: _affine(x, shear=(0.0, _shear_degrees(sign * level * 0.3))),
    "translate_x": lambda x, level, sign: _affine(
        x, translate=(round(sign * level * 0.45 * x.shape[-1]), 0)
    ),
    "translate_y": lambda x, level, sign: _affine(
        x, translate=(0, round(sign * level * 0.45 * x.shape[-2]))
    ),
}


Operation = tuple[str, float, int]  # name, level, sign


def draw_operations(
    magnitude: float, num_ops: int, std: float, rng: np.random.Generator
) -> list[Operation]:
    """Those that are applied, in their order."""
    drawn = []
    for name in rng.choice(list(OPERATIONS), size=num_ops):
        level = float(np.clip(rng.normal(magnitude, std), 0, 10)) / 10
        sign = 1 if rng.random() < 0.5 else -1
        if rng.random() < APPLY_PROBABILITY:
            drawn.append((str(name), level, sign))
    return drawn


def apply_operations(clip: Tensor, operations: list[Operation]) -> Tensor:
    """uint8 [T, C, H, W] -> the same, augmented."""
    for name, level, sign in operations:
        clip = OPERATIONS[name](clip, level, sign)
    return clip


def rand_augment(
    clip: Tensor, *, magnitude: float, num_ops: int = 2, std: float = 0.5, rng: np.random.Generator
) -> Tensor:
    """uint8 [T, C, H, W] -> the same, augmented."""
    return apply_operations(clip, draw_operations(magnitude, num_ops, std, rng))

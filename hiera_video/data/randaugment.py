"""RandAugment of the published video recipes (`rand-m7-mstd0.5-inc1`), one draw for a whole clip.

`num_ops` operations are drawn from the table, each is applied with probability 0.5 at a level drawn
from N(magnitude, std), clipped to [0, 10]; "increasing" operations act more strongly at a higher
level. The table's ranges are those of timm, which the recipes name.

The operations do what torchvision's of the same names do, to a grey level or two, in a tenth of the
time: what maps one value to another is a table, what moves pixels one map for all frames of a clip.
A clip is uint8 [T, H, W, 3] here, as decoders and OpenCV have it; no operation changes its input.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

# OpenCV's threads do not survive the fork of a loader's worker, and the workers have a core each.
cv2.setNumThreads(1)

FILL = 128  # outside the picture after a geometric operation
APPLY_PROBABILITY = 0.5
LUMA = (0.299, 0.587, 0.114)
VALUES = np.arange(256, dtype=np.float32)


def _as_table(values: np.ndarray) -> np.ndarray:
    """uint8, cut off where there is no such grey level."""
    return values.clip(0, 255).astype(np.uint8)


def _look_up(clip: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table: uint8 [256]"""
    rows = clip.reshape(len(clip) * clip.shape[1], -1)
    return cv2.LUT(rows, table).reshape(clip.shape)


def _each(clip: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """change: of one frame [H, W, 3]"""
    out = np.empty_like(clip)
    for k, frame in enumerate(clip):
        out[k] = change(frame)
    return out


def _auto_contrast(frame: np.ndarray) -> np.ndarray:
    tables = []
    for channel in cv2.split(frame):
        low, high, _, _ = cv2.minMaxLoc(channel)
        table = VALUES
        if high > low:
            table = (VALUES - np.float32(low)) / (np.float32(high - low) * np.float32(1 / 255))
        tables.append(_as_table(table))
    return cv2.LUT(frame, np.stack(tables, -1)[None])


def _equalize(clip: np.ndarray) -> np.ndarray:
    counts = np.empty((len(clip), 256, 3), np.int64)
    for of_frame, frame in zip(counts, clip):
        for channel in range(3):
            of_frame[:, channel] = cv2.calcHist([frame], [channel], None, [256], [0, 256]).ravel()
    brightest = 255 - (counts[:, ::-1] > 0).argmax(1)  # [T, 3], of those that occur
    others = counts.sum(1) - np.take_along_axis(counts, brightest[:, None], 1)[:, 0]
    step = (others // 255)[:, None]
    below = counts.cumsum(1) - counts
    table = _as_table((below + step // 2) // np.maximum(step, 1))
    table = np.where(step > 0, table, np.arange(256, dtype=np.uint8)[:, None])
    return np.stack([cv2.LUT(frame, t[None]) for frame, t in zip(clip, table)])


def _posterize(clip: np.ndarray, bits: int) -> np.ndarray:
    return clip & np.uint8(256 - (1 << (8 - bits)))


def _solarize(clip: np.ndarray, threshold: int) -> np.ndarray:
    return _look_up(clip, _as_table(np.where(threshold <= VALUES, 255 - VALUES, VALUES)))


def _solarize_add(clip: np.ndarray, amount: int) -> np.ndarray:
    return _look_up(clip, _as_table(np.where(VALUES < 128, VALUES + amount, VALUES)))


def _color(clip: np.ndarray, factor: float) -> np.ndarray:
    """Between the picture's grey version (0) and more than its own colours (above 1)."""
    mix = factor * np.eye(3) + (1 - factor) * np.array([LUMA, LUMA, LUMA])
    return _each(clip, lambda frame: cv2.transform(frame, mix))


def _contrast(clip: np.ndarray, factor: float) -> np.ndarray:
    """Between the frame's mean (0) and more than its own contrast (above 1)."""

    def change(frame: np.ndarray) -> np.ndarray:
        mean = cv2.mean(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0]
        return cv2.LUT(frame, _as_table(factor * VALUES + (1 - factor) * mean))

    return _each(clip, change)


def _brightness(clip: np.ndarray, factor: float) -> np.ndarray:
    return _look_up(clip, _as_table(VALUES * np.float32(factor)))


def _sharpness(clip: np.ndarray, factor: float) -> np.ndarray:
    """Between the blurred picture (0) and more than its own edges (above 1); its rim stays."""
    kernel = np.full((3, 3), (1 - factor) / 13)
    kernel[1, 1] = factor + (1 - factor) * 5 / 13
    out = clip.copy()
    for frame, changed in zip(clip, out):
        changed[1:-1, 1:-1] = cv2.filter2D(frame, -1, kernel)[1:-1, 1:-1]
    return out


def _warp(clip: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x, y: [H, W], the place in the old picture that each pixel of the new one is read from."""
    height, width = clip.shape[1:3]
    # A rim of fill, and no place beyond it: OpenCV is slow outside a picture. Places are in 32nds
    # of a pixel: three times as fast as floats.
    x = (x.clip(-1, width) + 1).astype(np.float32)
    y = (y.clip(-1, height) + 1).astype(np.float32)
    maps = cv2.convertMaps(x, y, cv2.CV_16SC2)
    rim = np.full((height + 2, width + 2, 3), FILL, np.uint8)
    out = np.empty_like(clip)
    for frame, moved in zip(clip, out):
        rim[1:-1, 1:-1] = frame
        cv2.remap(rim, *maps, cv2.INTER_LINEAR, dst=moved, borderMode=cv2.BORDER_REPLICATE)
    return out


def _rotate(clip: np.ndarray, degrees: float) -> np.ndarray:
    """Clockwise, about the centre."""
    height, width = clip.shape[1:3]
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1]).reshape(2, 1, 1) / 2
    cos = math.cos(math.radians(degrees))
    sin = math.sin(math.radians(degrees))
    return _warp(clip, cos * x + sin * y + (width - 1) / 2, cos * y - sin * x + (height - 1) / 2)


def _shear_x(clip: np.ndarray, tangent: float) -> np.ndarray:
    """About the corner, as the recipes do."""
    y, x = np.mgrid[: clip.shape[1], : clip.shape[2]]
    return _warp(clip, x + tangent * (y + 0.5), y)


def _shear_y(clip: np.ndarray, tangent: float) -> np.ndarray:
    y, x = np.mgrid[: clip.shape[1], : clip.shape[2]]
    return _warp(clip, x, y + tangent * (x + 0.5))


def _translate(clip: np.ndarray, share: float, axis: int) -> np.ndarray:
    """By whole pixels. axis: 1 for y, 2 for x."""
    by = round(share * clip.shape[axis])
    out = np.full_like(clip, FILL)
    old = np.moveaxis(clip, axis, 0)
    new = np.moveaxis(out, axis, 0)
    if by >= 0:
        new[by:] = old[: len(old) - by]
    else:
        new[:by] = old[-by:]
    return out


# Name -> (clip, level 0 to 1, sign +1 or -1) -> clip. Only some operations have two directions.
OPERATIONS: dict[str, Callable[[np.ndarray, float, int], np.ndarray]] = {
    "auto_contrast": lambda x, level, sign: _each(x, _auto_contrast),
    "equalize": lambda x, level, sign: _equalize(x),
    "invert": lambda x, level, sign: 255 - x,
    "rotate": lambda x, level, sign: _rotate(x, sign * level * 30),
    "posterize": lambda x, level, sign: _posterize(x, max(4 - int(level * 4), 0)),
    "solarize": lambda x, level, sign: _solarize(x, 256 - min(int(level * 256), 256)),
    "solarize_add": lambda x, level, sign: _solarize_add(x, min(int(level * 110), 128)),
    "color": lambda x, level, sign: _color(x, 1 + sign * level * 0.9),
    "contrast": lambda x, level, sign: _contrast(x, 1 + sign * level * 0.9),
    "brightness": lambda x, level, sign: _brightness(x, 1 + sign * level * 0.9),
    "sharpness": lambda x, level, sign: _sharpness(x, 1 + sign * level * 0.9),
    "shear_x": lambda x, level, sign: _shear_x(x, sign * level * 0.3),
    "shear_y": lambda x, level, sign: _shear_y(x, sign * level * 0.3),
    "translate_x": lambda x, level, sign: _translate(x, sign * level * 0.45, axis=2),
    "translate_y": lambda x, level, sign: _translate(x, sign * level * 0.45, axis=1),
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


def apply_operations(clip: np.ndarray, operations: list[Operation]) -> np.ndarray:
    """uint8 [T, H, W, 3] -> the same, augmented."""
    for name, level, sign in operations:
        clip = OPERATIONS[name](clip, level, sign)
    return clip


def rand_augment(
    clip: np.ndarray,
    *,
    magnitude: float,
    num_ops: int = 2,
    std: float = 0.5,
    rng: np.random.Generator,
) -> np.ndarray:
    """uint8 [T, H, W, 3] -> the same, augmented."""
    return apply_operations(clip, draw_operations(magnitude, num_ops, std, rng))

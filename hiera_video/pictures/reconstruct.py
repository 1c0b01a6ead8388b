"""What a masked autoencoder sees and predicts, as pictures.

The model predicts each hidden patch with its brightness and contrast taken out. To look at it they
must be put back, in one of two ways: `honest`, from the visible patches nearest to it, which is all
that anyone can know; and `true`, from the hidden patch itself, which shows the predicted structure
alone and looks better than the model is.

Legend: T' frames that are predicted (the first of every token), N patches (t, h, w), P pixels of a
patch (y, x, channel).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from hiera_video.models.mae import MaskedAutoencoder

NEAREST = 8  # visible patches whose statistics stand in for those of a hidden one
GREY = 0.5
LINE = 16  # pixels of a line of text
ROWS = {
    "original": "original",
    "masked": "masked: what the model sees",
    "honest": "predicted, honest: brightness and contrast guessed from visible patches",
    "true": (
        "predicted, with the true brightness and contrast of every patch (looks better than it is)"
    ),
}


class Reconstruction(NamedTuple):
    """Frames of one clip, uint8 [T', H, W, 3] each."""

    original: Tensor
    masked: Tensor  # hidden patches grey
    honest: Tensor
    true: Tensor
    loss: float


@torch.inference_mode()
def reconstruct(
    model: MaskedAutoencoder,
    clip: Tensor,
    *,
    mask_ratio: float,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    decoder_keep: float = 1.0,
    tubes: bool = False,
) -> Reconstruction:
    """What the model sees and predicts of one clip.

    clip: float [1, 3, T, H, W], normalised by mean and std. Which units are hidden depends on the
    seed alone. decoder_keep: share of the hidden patches that the decoder sees at a time. tubes:
    the same places are hidden at all times.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = model.num_tubes if tubes else model.num_units
    noise = torch.rand(1, draws, generator=generator).to(clip.device)
    visible_units = model.draw_visible(noise, mask_ratio)
    keep = torch.zeros(1, model.num_units, dtype=torch.bool, device=clip.device)
    keep.scatter_(1, visible_units, 1)
    patches = model.patches(clip)[0].float()  # [N, P]
    noise = torch.rand(1, len(patches), generator=generator).to(clip.device)
    pred = model.predict_hidden(clip, keep, decoder_keep=decoder_keep, noise=noise).float()
    visible = model.patch_index[visible_units[0]].flatten()
    hidden = torch.ones(len(patches), dtype=torch.bool, device=clip.device)
    hidden[visible] = False
    height, width = clip.shape[3:]
    side = model.patch_size
    grid = (clip.shape[2] // model.patch_stride[0], height // side, width // side)

    # Brightness and contrast of every patch: the true ones, and those of its visible neighbours.
    level, spread = model.target.statistics(patches)
    near = _nearest(grid, hidden, visible)
    guessed_level = level[visible][near].mean(1)
    guessed_spread = spread[visible][near].mean(1)

    # Rows of `pred`: hidden patches in the order of their places.
    honest = patches.clone()
    honest[hidden] = pred * guessed_spread + guessed_level
    true = patches.clone()
    true[hidden] = pred * spread[hidden] + level[hidden]
    original = _frames(patches, grid, side, mean, std)
    masked = original.clone()
    where = hidden[:, None].expand_as(patches).float()
    masked[_frames(where, grid, side, (0.0,) * 3, (1.0,) * 3) > 0] = round(255 * GREY)
    return Reconstruction(
        original,
        masked,
        _frames(honest, grid, side, mean, std),
        _frames(true, grid, side, mean, std),
        (pred - (patches[hidden] - level[hidden]) / spread[hidden]).square().mean().item(),
    )


def _nearest(grid: tuple[int, int, int], hidden: Tensor, visible: Tensor) -> Tensor:
    """For each hidden patch, which of `visible` lie nearest to it: [H, up to NEAREST].

    hidden: bool [N]; visible: positions of the visible patches.
    """
    axes = [torch.arange(n, device=hidden.device).float() for n in grid]
    places = torch.cartesian_prod(*axes)  # [N, 3]
    distances = torch.cdist(places[hidden], places[visible])
    return distances.topk(min(NEAREST, len(visible)), largest=False).indices


def _frames(
    patches: Tensor,
    grid: tuple[int, int, int],
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """[N, P] -> uint8 [T', H, W, 3]"""
    t, h, w = grid
    # A patch has one frame, or all of its token.
    images = patches.view(t, h, w, -1, side, side, 3).permute(0, 3, 1, 4, 2, 5, 6)
    images = images.reshape(-1, h * side, w * side, 3)
    scale = torch.tensor(std, device=patches.device, dtype=torch.float32)
    shift = torch.tensor(mean, device=patches.device, dtype=torch.float32)
    return ((images * scale + shift).clamp(0, 1) * 255).round().byte().cpu()


def sheet(result: Reconstruction) -> Image.Image:
    """One row a picture, frames from left to right."""
    frames, height, width, _ = result.original.shape
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    text = int(max(ruler.textlength(title) for title in ROWS.values())) + 4
    page = Image.new("RGB", (max(frames * (width + 2), text), len(ROWS) * (height + LINE)), "white")
    pen = ImageDraw.Draw(page)
    for row, (name, title) in enumerate(ROWS.items()):
        top = row * (height + LINE)
        pen.text((2, top + 2), title, "black")
        for t, frame in enumerate(getattr(result, name).numpy()):
            page.paste(Image.fromarray(frame), (t * (width + 2), top + LINE))
    return page

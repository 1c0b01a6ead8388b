"""What a masked autoencoder sees and predicts, as pictures.

The model predicts each hidden patch with its brightness and contrast taken out. To look at it they must be put back, in one of
two ways: `honest`, from the visible patches nearest to it, which is all that anyone can know; and `true`, from the hidden patch
itself, which shows the predicted structure alone and looks better than the model is.

Legend: T' frames that are predicted (the first of every token), N patches (t, h, w), P pixels of a patch (y, x, channel).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from hiera_video.models.mae import PIXEL_EPS, MaskedAutoencoder

NEAREST = 8  # visible patches whose statistics stand in for those of a hidden one
GREY = 0.5
LINE = 16  # pixels of a line of text
ROWS = {
    "original": "original",
    "masked": "masked: what the model sees",
    "honest": "predicted, honest: brightness and contrast guessed from visible patches",
    "true": "predicted, with the true brightness and contrast of every patch (looks better than it is)",
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
    model: MaskedAutoencoder, clip: Tensor, *, mask_ratio: float, seed: int, mean: Sequence[float], std: Sequence[float]
) -> Reconstruction:
    """clip: float [1, 3, T, H, W], normalised by mean and std. Which units are hidden depends on the seed alone."""
    noise = torch.rand(1, model.num_units, generator=torch.Generator().manual_seed(seed))
    out = model(clip, mask_ratio=mask_ratio, noise=noise.to(clip.device))
    patches = model.patches(clip)[0].float()  # [N, P]
    shown = out.keep[0].nonzero()[:, 0]  # units
    visible = model.patch_index[shown].flatten()
    hidden = torch.ones(len(patches), dtype=torch.bool, device=clip.device)
    hidden[visible] = False

    var, level = torch.var_mean(patches, dim=-1, keepdim=True)
    spread = (var + PIXEL_EPS).sqrt()
    grid = (clip.shape[2] // model.patch_stride[0], *(n // model.patch_size for n in clip.shape[3:]))
    places = torch.cartesian_prod(*(torch.arange(n, device=clip.device).float() for n in grid))  # [N, 3]
    near = torch.cdist(places[hidden], places[visible]).topk(min(NEAREST, len(visible)), largest=False).indices
    guessed_level, guessed_spread = (s[visible][near].mean(1) for s in (level, spread))

    pred = out.pred.float()  # rows: hidden patches in the order of their places
    pictures = {"original": patches, "masked": patches.clone(), "honest": patches.clone(), "true": patches.clone()}
    pictures["honest"][hidden] = pred * guessed_spread + guessed_level
    pictures["true"][hidden] = pred * spread[hidden] + level[hidden]
    frames = {name: _frames(p, grid, model.patch_size, mean, std) for name, p in pictures.items()}
    grey = _frames(hidden[:, None].expand_as(patches).float(), grid, model.patch_size, (0,) * 3, (1,) * 3) > 0
    frames["masked"][grey] = round(255 * GREY)
    return Reconstruction(**frames, loss=out.loss.item())


def _frames(
    patches: Tensor, grid: tuple[int, int, int], size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """[N, P] -> uint8 [T', H, W, 3]"""
    t, h, w = grid
    images = patches.view(t, h, w, size, size, 3).permute(0, 1, 3, 2, 4, 5).reshape(t, h * size, w * size, 3)
    scale, shift = (torch.tensor(v, device=patches.device, dtype=torch.float32) for v in (std, mean))
    return ((images * scale + shift).clamp(0, 1) * 255).round().byte().cpu()


def sheet(result: Reconstruction) -> Image.Image:
    """One row a picture, frames from left to right."""
    frames, height, width, _ = result.original.shape
    text = int(max(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(title) for title in ROWS.values())) + 4
    page = Image.new("RGB", (max(frames * (width + 2), text), len(ROWS) * (height + LINE)), "white")
    pen = ImageDraw.Draw(page)
    for row, (name, title) in enumerate(ROWS.items()):
        top = row * (height + LINE)
        pen.text((2, top + 2), title, "black")
        for t, frame in enumerate(getattr(result, name).numpy()):
            page.paste(Image.fromarray(frame), (t * (width + 2), top + LINE))
    return page

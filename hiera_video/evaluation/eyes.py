"""What a masked autoencoder has learned, measured while it is trained.

Its loss alone says nothing: on a video that hardly changes, predictors without a model reach a low
one, too. Three of them are scored on the very patches that the model predicts:

    zero      predicts 0, the mean of every normalised patch (of pixels; `hog` is not normalised)
    position  the mean patch of that place, over training clips
    copy      the nearest visible patch in time at the same height and width; 0 where none is

`explained` is the share of the best one's loss that the model takes away. Features say whether the
encoder tells videos apart: their effective rank (RankMe, Garrido et al., ICML 2023; here about
their mean) and how far videos lie from each other.

Legend: B clips, U mask units, N patches of a clip, H of them predicted, P pixels of a patch,
M videos, D channels.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hiera_video.models.blocks import gather_rows
from hiera_video.models.mae import MAEOutput, MaskedAutoencoder
from hiera_video.system.distributed import World

PREDICTORS = ("zero", "position", "copy")
NAMES = {  # of the figures of a row of metrics.jsonl, for people
    "mae_loss": "loss, held out",
    "zero": "zero",
    "position": "mean of the place",
    "copy": "copy in time",
    "explained": "explained",
    "rank": "effective rank",
    "token_rank": "effective rank of tokens",
    "variance": "variance",
    "token_variance": "variance of tokens",
    "knn_top1": "nearest neighbours",
    "linear_top1": "linear",
    "linear_in_time_top1": "linear in time",
}
TOKENS = 8  # places of a map whose tokens are looked at
LEARNED = 0.05  # share explained, below which nothing beyond the trivial is learned
COLLAPSED = 0.5  # share of the rank before the first step, below which features have collapsed
EARLY = 0.2  # share of a run before which nothing is said
HELP = (
    "what usually helps: mask units that are small against the frame and what moves in it "
    "(model.mask_unit_size, model.patch_stride), videos that differ, a longer run or a higher "
    "optim.lr; docs/training.md"
)


class PositionMeans:
    """The mean normalised patch of every place, over clips that are shown to it."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None  # float64 [N, P]
        self._count = 0

    def add(self, model: MaskedAutoencoder, clip: Tensor) -> dict[str, Tensor]:
        """clip: normalised, [B, 3, T, H, W]. Returns nothing, in the form of a model's outputs."""
        everything = torch.arange(model.patch_index.numel(), device=clip.device)
        targets = model.patch_targets(clip, everything.expand(len(clip), -1))
        total = targets.view(len(clip), len(everything), -1).double().sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(clip)
        return {}

    def table(self, world: World) -> Tensor | None:
        """[N, P] over all ranks, on all of them; None where no clip was shown."""
        own = None if self._sum is None else self._sum.cpu()
        parts = [part for part in world.gather_all((own, self._count)) if part[1]]
        if not parts:
            return None
        total = torch.stack([part[0] for part in parts]).sum(0)
        return (total / sum(part[1] for part in parts)).float()


def clip_losses(
    model: MaskedAutoencoder,
    clip: Tensor,
    out: MAEOutput,
    hidden: Tensor,
    means: Tensor | None,
) -> dict[str, Tensor]:
    """Mean squared errors on each clip's predicted patches, [B] each: `mae_loss` and PREDICTORS.

    out: of the model on `clip`; hidden: int64 [B, H], the patches that it predicts; means: [N, P].
    """
    rows = hidden.shape
    target = out.target.view(*rows, -1)
    losses = {
        "mae_loss": (out.pred.float().view_as(target) - target).square().mean((1, 2)),
        "zero": target.square().mean((1, 2)),
        "copy": (copies_in_time(model, clip, out.keep, hidden) - target).square().mean((1, 2)),
    }
    if means is not None:
        losses["position"] = (means.to(target.device)[hidden] - target).square().mean((1, 2))
    return losses


def copies_in_time(model: MaskedAutoencoder, clip: Tensor, keep: Tensor, hidden: Tensor) -> Tensor:
    """The nearest visible patch in time at the same place, normalised; 0 where none is visible.

    [B, H, P]. Of two that are equally near it is the earlier one.
    """
    everything = torch.arange(model.patch_index.numel(), device=clip.device)
    everything = everything.expand(len(clip), -1)
    patches = model.patch_targets(clip, everything).view(*everything.shape, -1)  # [B, N, P]
    shown = torch.zeros_like(everything, dtype=torch.bool)
    shown[:, model.patch_index.flatten()] = keep.repeat_interleave(
        model.patch_index.shape[1], dim=1
    )
    frames, places = model.patch_grid[0], math.prod(model.patch_grid[1:])
    time = torch.arange(frames, device=clip.device)
    distance = (time[:, None] - time).abs()[None, ..., None]  # [1, t, s, 1]
    is_shown = shown.view(len(clip), 1, frames, places)
    far = torch.where(is_shown, distance, 2 * frames)  # [B, t, s, places]
    nearest = far.argmin(dim=2)  # [B, t, places]
    source = (nearest * places + torch.arange(places, device=clip.device)).flatten(1)  # [B, N]
    is_there = is_shown.any(2).expand(-1, frames, -1).flatten(1)
    copied = gather_rows(patches, source) * is_there[..., None]
    return gather_rows(copied, hidden)


def spread_tokens(stage_map: Tensor) -> Tensor:
    """[B, t, h, w, C] -> the tokens of TOKENS places spread over the map, [B, TOKENS, C]."""
    tokens = stage_map.flatten(1, -2)
    where = torch.linspace(0, tokens.shape[1] - 1, min(TOKENS, tokens.shape[1]))
    return tokens[:, where.round().long().to(tokens.device)]


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values of features [M, D] about their mean."""
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(share * (share + 1e-12).log()).sum()))


def between_videos(features: Tensor) -> float:
    """How far features [M, D] lie from their mean, as a share of its length."""
    mean = features.mean(0)
    return float((features - mean).norm(dim=1).mean() / mean.norm().clamp(min=1e-12))


def spread_figures(features: Tensor, tokens: Tensor) -> dict[str, float]:
    """Of pooled features [M, D] and of tokens [M, TOKENS, D], each place about its own mean."""
    places = tokens.unbind(1)
    centred = torch.cat([place - place.mean(0) for place in places])
    return {
        "rank": effective_rank(features),
        "variance": between_videos(features),
        "token_rank": effective_rank(centred),
        "token_variance": sum(between_videos(place) for place in places) / len(places),
    }


def explained(losses: Mapping[str, float]) -> float:
    """Share of the best trivial predictor's loss that the model takes away; may be negative."""
    best = min(losses[name] for name in PREDICTORS if name in losses)
    return 1 - losses["mae_loss"] / max(best, 1e-9)  # a still video is copied without an error


def warning(row: Mapping[str, float], first: Mapping[str, float] | None, *, progress: float) -> str:
    """What is wrong with a pretraining, in words; empty if nothing is, or it is early to tell.

    row, first: the figures now and before the first step, where those are known; progress: share
    of the run.
    """
    if progress < EARLY:
        return ""
    wrong = []
    if row["explained"] < LEARNED:
        wrong.append(
            f"it explains {row['explained']:.1%} beyond predictors without a model: nothing is "
            "learned"
        )
    if first is not None and row["rank"] < COLLAPSED * first["rank"]:
        wrong.append(
            f"features collapse: their effective rank is {row['rank']:.1f}, and was "
            f"{first['rank']:.1f} before the first step"
        )
    return f"{'; '.join(wrong)}; {HELP}" if wrong else ""

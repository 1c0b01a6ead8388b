"""The evaluation loop: runs a model over views, and hands its outputs to a consumer.

Consumers are in scores.py, features.py and probe.py.

Every rank takes its own rows of the list, each row once and without padding; rank 0 puts the parts
together by row. A video that cannot be read is never replaced: it is missing, and named.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hiera_video.data.dataset import Batch
from hiera_video.data.transforms import normalise
from hiera_video.evaluation.scores import at_share
from hiera_video.models.token_dial import TokenDial
from hiera_video.system.devices import autocast, exact_float32
from hiera_video.system.distributed import World
from hiera_video.system.errors import GOES_ON, Interrupted, Unavailable
from hiera_video.system.log import Progress

# (clips, a seed of each) -> tensors that begin with the clips
Predict = Callable[[Tensor, Sequence[int]], dict[str, Tensor]]

ALL_UNITS = TokenDial()


class Consumer(Protocol):
    """Takes the outputs of this rank's videos, one batch after the other."""

    def update(self, batch: Batch, out: dict[str, Tensor]) -> None:
        """out: what the model said of every view, each [B, V, ...] on the host."""

    def missing(self, row: int, reason: str) -> None:
        """A row of the list that could not be read."""


@dataclass(frozen=True)
class Forward:
    """How clips go through a model in evaluation: made once, by build.py."""

    device: torch.device
    mean: Sequence[float]
    std: Sequence[float]
    precision: str = "float32"
    views_per_forward: int = 15  # memory grows with it
    compile: bool = False

    def prepare(self, predict: Predict) -> Predict:
        return torch.compile(predict) if self.compile else predict

    def __call__(self, predict: Predict, clips: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """clips: uint8 [N, C, T, S, S], seeds [N] -> float32 outputs [N, ...] on the host"""
        parts = []
        size = self.views_per_forward
        for part, seeds_of_part in zip(clips.split(size), seeds.split(size)):
            with exact_float32(self.device), autocast(self.precision, self.device):
                moved = part.to(self.device, non_blocking=True)
                out = predict(normalise(moved, self.mean, self.std), seeds_of_part.tolist())
            parts.append({name: value.float().cpu() for name, value in out.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.inference_mode()
def evaluate(
    predict: Predict,
    batches: Iterable[Batch],
    consumer: Consumer,
    forward: Forward,
    *,
    world: World,
    progress: Progress,
) -> None:
    """Runs `predict` on all views of this rank's `batches` and hands its outputs to `consumer`.

    progress: counts the videos of all ranks; closed at the end. Raises RunStopped if storage is
    away, and Interrupted, on all ranks, where a signal made them leave early.
    """
    predict = forward.prepare(predict)
    asked = ""
    for batch in batches:
        asked = world.stop_asked()
        if asked:
            break
        for row, reason in batch["bad"]:
            consumer.missing(row, reason)
        if batch["unavailable"]:
            raise Unavailable(f"{batch['unavailable']}; {GOES_ON}")
        if batch["clip"] is not None:
            clips = batch["clip"]  # [B, V, C, T, S, S]
            out = forward(predict, clips.flatten(0, 1), batch["seed"].flatten())
            joined = {name: value.unflatten(0, clips.shape[:2]) for name, value in out.items()}
            consumer.update(batch, joined)
        progress.advance(batch["requested"] * world.size)
    progress.close()
    asked = next(filter(None, world.gather_all(asked)), "")
    if asked:
        raise Interrupted(
            f"{asked} asks to stop: {progress.what} ends at {progress.done} of {progress.total} "
            f"{progress.unit}; the same command goes on"
        )


def predict_logits(model: Any, dial: TokenDial = ALL_UNITS, too: Sequence[float] = ()) -> Predict:
    """-> logits [N, classes], and those at the shares `too`, under the names of `at_share`"""

    def logits(clips: Tensor, seeds: Sequence[int], share: float) -> Tensor:
        if share == 1.0:
            return model(clips)
        return model(clips, TokenDial(share, dial.by).choose(model, clips, seeds))

    def predict(clips: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        out = {"logits": logits(clips, seeds, dial.share)}
        for share in too:
            out[at_share(share)] = logits(clips, seeds, share)
        return out

    return predict


def predict_features(
    model: Any,
    stages: Sequence[int] = (),
    *,
    pool_maps: bool = False,
    dial: TokenDial = ALL_UNITS,
) -> Predict:
    """-> features [N, dim] and, of each of `stages` (1 to 4), its map [N, t, h, w, C]

    pool_maps: the mean of each map, [N, C], in its place.
    """

    def predict(clips: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        if not stages:
            if dial.share == 1.0:
                return {"features": model.features(clips)}
            return {"features": model.features(clips, dial.choose(model, clips, seeds))}
        features, maps = model.features_and_maps(clips)
        out = {"features": features}
        for stage in stages:
            map_of_stage = maps[stage - 1]
            out[f"stage{stage}"] = (
                map_of_stage.flatten(1, -2).mean(1) if pool_maps else map_of_stage
            )
        return out

    return predict

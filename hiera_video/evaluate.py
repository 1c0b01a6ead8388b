"""The evaluation loop. What becomes of its outputs is the consumers': scores.py, features.py, probe.py.

Every rank takes its own rows of the list, each row once and no padding; rank 0 puts the parts together by row. A video
that cannot be read is never replaced: it is missing, and named.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hiera_video.data.dataset import Batch
from hiera_video.data.transforms import normalise
from hiera_video.distributed import World
from hiera_video.log import RunLog
from hiera_video.tasks import autocast


@dataclass(frozen=True)
class TestConfig:
    __test__ = False  # not a test case, whatever its name

    clips: int = 5
    crops: int = 3  # 1 or 3
    short_side: int | None = None  # pixels; default data.crop_size
    batch_size: int = 1  # videos that are decoded together
    views_per_forward: int = 15  # memory grows with it
    precision: str = "float32"  # float32 | bfloat16
    compile: bool = False  # torch.compile, for the features too
    weights: str | None = None  # default: the run's last checkpoint
    min_coverage: float = 0.0  # share of the videos that must be scored, else exit status 3
    save_every_s: float = 30.0  # finished videos are kept that often, and not scored again after a kill
    clip_sampler: str | None = None  # default: by data.clip_sampler; pytorchvideo.{uniform,constant_clips_per_video}
    clip_sampler_args: tuple[float, ...] = ()  # what follows the clip duration in pytorchvideo's constructor


@dataclass(frozen=True)
class FeaturesConfig:
    videos: str | None = None  # a list; default data.test
    hop_s: float | None = None  # seconds from window to window; default end to end
    stages: tuple[int, ...] = ()  # also keep the maps of these stages, 1 to 4
    pool_maps: bool = False  # the mean of each map in place of the whole
    average: bool = False  # one row a video, the mean of its windows
    dtype: str = "float32"  # float32 | float16, in the files


class Consumer(Protocol):
    def update(self, batch: Batch, out: dict[str, Tensor]) -> None:
        """out: what the model said of every view, each [B, V, ...] on the host."""

    def missing(self, row: int, reason: str) -> None: ...


@torch.inference_mode()
def evaluate(
    predict: Callable[[Tensor], dict[str, Tensor]],
    batches: Iterable[Batch],
    consumer: Consumer,
    *,
    world: World,
    mean: tuple,
    std: tuple,
    views_per_forward: int,
    precision: str,
    compiled: bool,
    total: int,
    what: str,
    log: RunLog,
) -> None:
    """Runs `predict` on all views of all videos of this rank's `batches` and hands the outputs to `consumer`."""
    predict = torch.compile(predict) if compiled else predict
    progress = log.progress(total, what=what, unit="videos")
    for batch in batches:
        for row, reason in batch["bad"]:
            consumer.missing(row, reason)
        if batch["clip"] is not None:
            clips = batch["clip"]
            parts = []
            for part in clips.flatten(0, 1).split(views_per_forward):
                with autocast(precision, world.device):
                    out = predict(normalise(part.to(world.device, non_blocking=True), mean, std))
                parts.append({name: value.float().cpu() for name, value in out.items()})
            joined = {name: torch.cat([p[name] for p in parts]).unflatten(0, clips.shape[:2]) for name in parts[0]}
            consumer.update(batch, joined)
        progress.advance(batch["requested"] * world.size)
    progress.close()

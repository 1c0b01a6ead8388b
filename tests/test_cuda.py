"""What holds on a GPU alone."""

import pytest
import torch
from conftest import FINETUNE, PRETRAIN, ROOT, SHORT

from hiera_video import build
from hiera_video.config import load_config
from hiera_video.data.dataset import Key, collate
from hiera_video.data.loading import to_device
from hiera_video.stages.inputs import read_inputs
from hiera_video.stages.train import TrainStage
from hiera_video.system.distributed import World
from hiera_video.system.log import RunLog
from hiera_video.training.loop import take_step
from hiera_video.training.ranks import ForwardClock

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@GPU
@pytest.mark.parametrize(
    "cfg, more",
    [
        (FINETUNE, ("classify.mixup=0.8", "data.erase=1", "train.ema=0.9", "train.repeats=2")),
        (FINETUNE, ("classify.cutmix=1", "classify.keep_units=0.5")),
        (PRETRAIN, ("mae.decoder_keep=0.5",)),
    ],
)
def test_a_step_never_waits_for_the_device(shapes, tmp_path, cfg, more):
    """From the third on: the first ones fill caches."""
    world = World(0, 1, torch.device("cuda"))
    take = steps_of(world, shapes, tmp_path, cfg, *more)
    for _ in range(2):
        take()
    try:
        torch.cuda.set_sync_debug_mode("error")
        take()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def steps_of(world, shapes, folder, cfg, *more):
    """take(): the next step of a run."""
    given = [f"data.root={shapes}", f"output={folder}", "init.weights=none", *SHORT, *more]
    config = load_config(ROOT / cfg, [*given, "train.accumulate=2", "train.precision=bfloat16"])
    stage = TrainStage(config, world, read_inputs(config))
    run = stage._assemble(None, RunLog(None))
    dataset = build.training_set(config, stage.videos)
    batch = collate([dataset[Key(0, row)] for row in range(8)])
    batch = {k: v.pin_memory() if k in ("clip", "label") else v for k, v in batch.items()}
    dataset.source.close()
    clock = ForwardClock(world.device)
    steps = iter(range(1, 100))
    return lambda: take_step(run, to_device(batch, world.device), next(steps), 1e-4, clock)

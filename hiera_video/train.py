"""The training loop, for every task.

A step's data, masks, dropout and learning rate depend on (seed, step, rank) alone, so a run that is started again at a
checkpoint goes on exactly as it would have.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hiera_video.data.dataset import Batch
from hiera_video.distributed import World
from hiera_video.errors import RunStopped
from hiera_video.log import RunLog
from hiera_video.optim import OptimConfig, learning_rate, set_learning_rate
from hiera_video.tasks import autocast


@dataclass(frozen=True)
class TrainConfig:
    epochs: float = 100  # effective: how often a video is seen in all, its repeats counted (the paper's way)
    batch_size: int = 256  # videos in an optimizer step, over all ranks; with repeats, that many times the clips
    repeats: int = 1  # clips from one decode of a video
    precision: str = "float32"  # float32 | bfloat16 (autocast)
    compile: bool = False  # torch.compile: minutes at the start, faster steps
    recompute_stages: tuple[int, ...] = ()  # stages of a Hiera (1 to 4; 5: MAE decoder) that trade time for memory
    log_every: int = 10  # steps
    save_every: float = 1  # effective epochs
    keep: int = 2  # newest checkpoints that stay on the disk
    val_every: float = 0  # effective epochs between validations on data.val, one centre view a video; 0 is off


@dataclass(frozen=True)
class Plan:
    """Steps derived from epochs: computed once, said in the log, never written back into the config."""

    steps: int
    steps_per_epoch: float  # effective epoch
    warmup: float  # share of the run
    save_steps: int
    val_steps: int  # 0 is off

    @classmethod
    def make(cls, config: TrainConfig, optim: OptimConfig, num_videos: int) -> "Plan":
        per_epoch = num_videos / (config.batch_size * config.repeats)
        steps = max(math.ceil(config.epochs * per_epoch), 1)
        return cls(
            steps=steps,
            steps_per_epoch=per_epoch,
            warmup=min(optim.warmup_epochs / config.epochs, 1.0),
            save_steps=max(round(config.save_every * per_epoch), 1),
            val_steps=max(round(config.val_every * per_epoch), 1) if config.val_every else 0,
        )


class BadVideos:
    """Rows that could not be read. Says each once; stops the run above a stated share of the list."""

    def __init__(self, name: Callable[[int], str], *, num_videos: int, max_fraction: float, log: RunLog):
        self.name, self.num_videos, self.max_fraction, self.log = name, num_videos, max_fraction, log
        self.reasons: dict[int, str] = {}

    def add(self, bad: list[tuple[int, str]]) -> None:
        for row, reason in bad:
            if row not in self.reasons:
                self.reasons[row] = reason
                self.log.say(f"bad video, replaced by the next good one: {self.name(row)}: {reason}")
        if len(self.reasons) > self.max_fraction * self.num_videos:
            raise RunStopped(
                f"{len(self.reasons)} of {self.num_videos} videos cannot be read, more than data.max_bad_fraction="
                f"{self.max_fraction}; the last: {self.name(bad[-1][0])}: {bad[-1][1]}"
            )


def train(
    task: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    plan: Plan,
    config: TrainConfig,
    optim: OptimConfig,
    world: World,
    log: RunLog,
    bad_videos: BadVideos,
    seed: int,
    first_step: int,
    save: Callable[[int], None],
    validate: Callable[[int], None],
) -> None:
    """Takes the steps `first_step` to `plan.steps`; `batches` starts at `first_step`. `save` and `validate` get the
    number of steps taken. Raises RunStopped at a loss that is not finite or too many bad videos."""
    wrapped = world.wrap(task)
    task.train()
    progress = log.progress(plan.steps, what="train", unit="steps", done=first_step)
    batches = iter(batches)
    losses, clips, waited, since = [], 0, 0.0, time.monotonic()
    for step in range(first_step, plan.steps):
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        bad_videos.add(batch["bad"])
        if batch["clip"] is None:
            raise RunStopped(f"no video of this batch can be read, nor any of its substitutes: {batch['bad'][-1][1]}")
        batch = to_device(batch, world.device)

        lr = learning_rate(optim, step / plan.steps, plan.warmup)
        set_learning_rate(optimizer, lr)
        torch.manual_seed(step_seed(seed, step, world.rank))
        with autocast(config.precision, world.device):
            loss, _ = wrapped(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if optim.clip_grad:
            torch.nn.utils.clip_grad_norm_(task.parameters(), optim.clip_grad)
        optimizer.step()

        losses.append(loss.detach())
        clips += batch["clip"].shape[0] * batch["clip"].shape[1] * world.size
        done = step + 1
        progress.advance()
        saves, validates = (
            (every and done % every == 0) or done == plan.steps for every in (plan.save_steps, plan.val_steps)
        )
        if done % config.log_every == 0 or saves:  # the one place that waits for the device
            mean_loss = world.mean(torch.stack(losses).mean()).item()
            elapsed = time.monotonic() - since
            epoch = int(step / plan.steps_per_epoch)
            row = {"split": "train", "step": done, "epoch": epoch, "loss": mean_loss, "lr": lr}
            row |= {"clips_per_s": clips / elapsed, "data_wait": waited / elapsed}
            log.metrics(row)
            log.say(
                f"step {done}/{plan.steps} epoch {epoch} loss {mean_loss:.4f} lr {lr:.2e} "
                f"{clips / elapsed:.1f} clips/s, {waited / elapsed:.0%} of it waiting for data, {progress.eta()} left"
            )
            if not math.isfinite(mean_loss):
                raise RunStopped(f"the loss of steps {done - len(losses) + 1} to {done} is not finite ({mean_loss})")
            losses, clips, waited, since = [], 0, 0.0, time.monotonic()
        if validates and plan.val_steps:
            validate(done)
            task.train()
            since = time.monotonic()
        if saves:  # last: what belongs to this step is on the disk before the step counts as done
            save(done)
    progress.close()


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seeds torch's global generator, which dropout, drop path and mixing draw from."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Clips and labels only; boxes and seeds are read on the host."""
    moved = {name: batch[name].to(device, non_blocking=True) for name in ("clip", "label")}
    return {**batch, **moved}

"""The training loop, for every task.

A step's data, masks, dropout and learning rate depend on (seed, step, rank) alone, so a run that is started again at a
checkpoint goes on exactly as it would have. The host waits for the device once every `log_every` steps; there all ranks
agree on what was seen since: a gradient that was not finite, videos that could not be read, a request to stop.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hiera_video.data.dataset import Batch
from hiera_video.distributed import World
from hiera_video.errors import Interrupted, RunStopped
from hiera_video.log import RunLog
from hiera_video.optim import Ema, OptimConfig, clip_gradients, learning_rate, set_learning_rate
from hiera_video.tasks import autocast

WAITS_LONG = 0.05  # share of the time spent waiting for data, above which the log says what to change


@dataclass(frozen=True)
class TrainConfig:
    epochs: float = 100  # effective: how often a video is seen in all, its repeats counted (the paper's way)
    batch_size: int = 256  # videos in an optimizer step, over all ranks; with repeats, that many times the clips
    repeats: int = 1  # clips from one decode of a video
    accumulate: int = 1  # forward and backward passes of an optimizer step: less memory, the same batch
    precision: str = "float32"  # float32 | bfloat16 (autocast)
    parallel: str = "ddp"  # over ranks: ddp | fsdp (each rank holds its share of the parameters: for what does not fit)
    compile: bool = False  # torch.compile: minutes at the start, faster steps
    recompute_stages: tuple[int, ...] = ()  # stages of a Hiera (1 to 4; 5: MAE decoder) that trade time for memory
    ema: float = 0.0  # decay of an average of the weights, which is then what is tested and kept as weights; 0 is off
    log_every: int = 10  # steps
    save_every: float = 1  # effective epochs
    keep: int = 2  # newest checkpoints that stay on the disk
    keep_every: float = 0  # effective epochs between checkpoints that stay for good; 0 is off
    val_every: float = 0  # effective epochs between validations on data.val, one centre view a video; 0 is off


@dataclass(frozen=True)
class Plan:
    """What is derived from the config and the list: computed once, said in the log, never written back."""

    steps: int
    steps_per_epoch: float  # effective epoch
    warmup: float  # share of the run
    save_steps: int
    keep_steps: int  # 0 is off
    val_steps: int  # 0 is off
    lr_scale: float  # of the learning rates in the config

    @classmethod
    def make(cls, config: TrainConfig, optim: OptimConfig, num_videos: int) -> "Plan":
        per_epoch = num_videos / (config.batch_size * config.repeats)
        steps = max(math.ceil(config.epochs * per_epoch), 1)
        save_steps = max(round(config.save_every * per_epoch), 1)
        return cls(
            steps=steps,
            steps_per_epoch=per_epoch,
            warmup=min(optim.warmup_epochs / config.epochs, 1.0),
            save_steps=save_steps,
            # A checkpoint can stay only where one is written.
            keep_steps=save_steps * max(round(config.keep_every / config.save_every), 1) if config.keep_every else 0,
            val_steps=max(round(config.val_every * per_epoch), 1) if config.val_every else 0,
            lr_scale=config.batch_size / optim.reference_batch if optim.reference_batch else 1.0,
        )


class BadVideos:
    """Rows that could not be read, on any rank. Says each once; stops the run above a stated share of the list."""

    def __init__(self, name: Callable[[int], str], *, num_videos: int, max_fraction: float, log: RunLog):
        self.name, self.num_videos, self.max_fraction, self.log = name, num_videos, max_fraction, log
        self.reasons: dict[int, str] = {}
        self.new: list[tuple[int, str]] = []  # on this rank, not yet told to the others

    def note(self, bad: list[tuple[int, str]]) -> None:
        self.new += [(row, reason) for row, reason in bad if row not in self.reasons]

    def settle(self, world: World) -> None:
        """On all ranks together. Raises RunStopped, on all of them."""
        for row, reason in sorted(found for part in world.gather_all(self.new) for found in part):
            if row not in self.reasons:
                self.reasons[row] = reason
                self.log.say(f"bad video, replaced by the next good one: {self.name(row)}: {reason}")
        self.new = []
        if len(self.reasons) > self.max_fraction * self.num_videos:
            row, reason = list(self.reasons.items())[-1]
            raise RunStopped(
                f"{len(self.reasons)} of {self.num_videos} videos cannot be read, more than data.max_bad_fraction="
                f"{self.max_fraction}; the last: {self.name(row)}: {reason}"
            )


class Interval:
    """What happened since the last line of the log."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []  # of the gradients, before clipping
        self.rows: list[list[int]] = []  # of the list, step by step, on this rank
        self.clips, self.waited, self.since = 0, 0.0, time.monotonic()

    def add(self, loss: Tensor, norm: Tensor, batch: Batch) -> None:
        self.losses.append(loss.detach())
        self.norms.append(norm.detach())
        self.rows.append(batch["row"].tolist())
        self.clips += batch["clip"].shape[0] * batch["clip"].shape[1]

    def agree(self, world: World, *, stop: bool, bad: bool) -> tuple[float, float, list[int], bool, bool]:
        """(mean loss, last norm, steps of this interval whose gradients were not finite, stop, bad), on all ranks alike.

        The gradients' norm is the same on all ranks; the rest is averaged over them.
        """
        finite = torch.isfinite(torch.stack(self.norms)).float()
        seen = torch.cat([torch.stack(self.losses).mean()[None].float(), self.norms[-1][None].float(), finite])
        flags = torch.tensor([float(stop), float(bad)], device=seen.device)
        loss, norm, *rest = world.mean(torch.cat([seen, flags])).tolist()  # the one place that waits for the device
        skipped = [k for k, f in enumerate(rest[:-2]) if f < 1]
        return loss, norm, skipped, rest[-2] > 0, rest[-1] > 0


def train(
    task: nn.Module,
    wrapped: nn.Module,
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
    ema: Ema | None,
    save: Callable[[int], None],
    validate: Callable[[int], None],
    stop_requested: Callable[[], str],
    stopped: Callable[[int, str, list[int]], None],
) -> None:
    """Takes the steps `first_step` to `plan.steps`; `batches` starts at `first_step`. wrapped: the task, by World.wrap.

    save and validate get the number of steps taken. stop_requested says who asks to stop, or nothing. stopped keeps the
    state (steps taken, why, rows of the steps in question) of a run that cannot go on. Raises Interrupted after the state
    was saved, and RunStopped at a gradient that is not finite or too many bad videos.
    """
    task.train()
    progress = log.progress(plan.steps, what="train", unit="steps", done=first_step)
    batches = iter(batches)
    interval, said_waiting = Interval(), False
    for step in range(first_step, plan.steps):
        asked = time.monotonic()
        batch = next(batches)
        interval.waited += time.monotonic() - asked
        bad_videos.note(batch["bad"])
        if batch["clip"] is None:
            raise RunStopped(f"no video of this batch can be read, nor any of its substitutes: {batch['bad'][-1][1]}")
        batch = to_device(batch, world.device)

        lr = plan.lr_scale * learning_rate(optim, step / plan.steps, plan.warmup)
        set_learning_rate(optimizer, lr)
        if step == first_step and world.size > 2 and config.parallel == "ddp":
            settle_buckets(wrapped, batch, config, world)
        torch.manual_seed(step_seed(seed, step, world.rank))
        loss = accumulate_gradients(wrapped, batch, config, world)
        norm = clip_gradients(task.parameters(), optim.clip_grad)
        # A gradient that is not finite never reaches the weights: the fused optimizers skip such a step on the device.
        optimizer.found_inf = (~torch.isfinite(norm)).float()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if ema is not None:
            ema.update(task.model)

        interval.add(loss, norm, batch)
        done = step + 1
        progress.advance()
        saves, validates = (
            (every and done % every == 0) or done == plan.steps for every in (plan.save_steps, plan.val_steps)
        )
        interrupted = False
        if done % config.log_every == 0 or saves:
            mean_loss, last_norm, skipped, interrupted, any_bad = interval.agree(
                world, stop=bool(stop_requested()), bad=bool(bad_videos.new)
            )
            if any_bad:
                bad_videos.settle(world)
            if skipped:
                first = done - len(interval.losses)
                steps = ", ".join(str(first + k + 1) for k in skipped)
                stopped(done, f"gradients not finite in step {steps}", [r for k in skipped for r in interval.rows[k]])
            elapsed = time.monotonic() - interval.since
            speed, waiting = interval.clips * world.size / elapsed, interval.waited / elapsed
            epoch = int(step / plan.steps_per_epoch)
            row = {"split": "train", "step": done, "epoch": epoch, "loss": mean_loss, "lr": lr, "grad_norm": last_norm}
            row |= {"clips_per_s": speed, "data_wait": waiting, "memory_gib": peak_memory_gib(world.device)}
            log.metrics(row)
            log.say(
                f"step {done}/{plan.steps} epoch {epoch} loss {mean_loss:.4f} lr {lr:.2e} {speed:.1f} clips/s, "
                f"{waiting:.0%} of it waiting for data, {progress.eta()} left"
            )
            if waiting > WAITS_LONG and not said_waiting and done > config.log_every:  # the first lines hold the start
                said_waiting = True
                log.say(
                    f"training waits for data {waiting:.0%} of the time: raise data.num_workers, re-encode the videos once "
                    "(datasets/resize_videos.py), or take more clips from a decode (train.repeats)"
                )
            interval = Interval()
        if validates and plan.val_steps:
            validate(done)
            task.train()
            interval.since = time.monotonic()
        if saves or interrupted:  # last: what belongs to this step is on the disk before the step counts as done
            save(done)
        if interrupted and done < plan.steps:
            raise Interrupted(
                f"{stop_requested() or 'another rank'} asks to stop: the state of step {done} of {plan.steps} is saved, "
                "and the same command goes on from there"
            )
    progress.close()


def accumulate_gradients(wrapped: nn.Module, batch: Batch, config: TrainConfig, world: World) -> Tensor:
    """Forward and backward of a step, in `config.accumulate` parts. Returns the mean loss over the rank's clips."""
    total = None
    parts = split_batch(batch, config.accumulate)
    for k, part in enumerate(parts):
        with world.gradients_shared(wrapped, last=k == len(parts) - 1):
            with autocast(config.precision, world.device):
                loss, _ = wrapped(part)
            loss = loss * (len(part["clip"]) / len(batch["clip"]))
            loss.backward()
        total = loss.detach() if total is None else total + loss.detach()
    return total


def settle_buckets(wrapped: nn.Module, batch: Batch, config: TrainConfig, world: World) -> None:
    """One backward pass for nothing, at every start.

    DDP sums gradients bucket by bucket, and lays the buckets out anew after its first step. From three ranks on the sum's last
    bits depend on that, and a run that was started again would differ in its first step from one that was not.
    """
    buffers = [(b, b.clone()) for b in wrapped.buffers()]
    accumulate_gradients(wrapped, batch, config, world)
    wrapped.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """`parts` batches, or as many as there are samples, one after the other."""
    if parts == 1:
        return [batch]
    chunks = {name: value.chunk(parts) for name, value in batch.items() if isinstance(value, Tensor)}
    return [{name: chunk[k] for name, chunk in chunks.items()} for k in range(len(chunks["clip"]))]


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seeds torch's global generator, which dropout, drop path and mixing draw from."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Clips and labels only; boxes and seeds are read on the host."""
    moved = {name: batch[name].to(device, non_blocking=True) for name in ("clip", "label")}
    return {**batch, **moved}


def peak_memory_gib(device: torch.device) -> float:
    """Of the device's allocator; of this process where it is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

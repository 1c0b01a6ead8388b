"""The training loop, for every task.

A step's data, masks, dropout and learning rate depend on (seed, step, rank) alone, so a run that is
started again at a checkpoint goes on exactly as it would have. The host waits for the device once
every `log_every` steps (interval.py).
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hiera_video.config import OptimConfig, TrainConfig
from hiera_video.data.dataset import Batch
from hiera_video.system.devices import autocast, precision_on
from hiera_video.system.distributed import World, has_running_statistics
from hiera_video.system.errors import GOES_ON, Interrupted, RunStopped, Unavailable
from hiera_video.system.log import RunLog
from hiera_video.training.interval import BadVideos, Interval, IntervalLog, SkippedSteps, StopVote
from hiera_video.training.optim import Ema, clip_gradients, set_learning_rate
from hiera_video.training.plan import Plan
from hiera_video.training.ranks import ForwardClock


@dataclass(frozen=True)
class TrainRun:
    """What every step needs, put together once."""

    task: Any  # model and loss: a module of tasks.py
    wrapped: nn.Module  # the task, as World.wrap returns it
    optimizer: Any  # torch.optim's, with a flag `found_inf` where it is fused
    ema: Ema | None
    plan: Plan
    config: TrainConfig
    optim: OptimConfig
    world: World
    seed: int


class Hooks(Protocol):
    """What the loop calls; steps are counted from 1, so that `step` of them have been taken."""

    def look(self, step: int) -> bool:
        """Validation or probe. Returns whether it is the best so far, on all ranks.

        Raises Interrupted where a signal cuts it off.
        """

    def is_over(self, step: int) -> bool:
        """After a look: whether training ends here, on all ranks."""

    def save(self, step: int) -> None: ...

    def skipped(self, what: str, rows: list[int]) -> None:
        """Steps were left out, for the reason `what`; rows: as in `stopped`."""

    def stopped(self, step: int, reason: str, rows: list[int]) -> NoReturn:
        """Keeps the state of a run that cannot go on, and raises RunStopped.

        rows: of the list, that this rank saw in the steps in question.
        """


def train(
    run: TrainRun,
    batches: Iterable[Batch],
    hooks: Hooks,
    *,
    log: RunLog,
    bad_videos: BadVideos,
    first_step: int = 0,
) -> None:
    """Takes the steps after the first `first_step` ones; `batches` begins with theirs.

    Raises Interrupted after the state was saved; RunStopped at gradients that are not finite in
    too many steps in a row, or too many bad videos.
    """
    run.task.train()
    plan = run.plan
    progress = log.progress(plan.steps, what="train", unit="steps", done=first_step)
    interval_log = IntervalLog(log, plan, run.world, log_every=run.config.log_every)
    interval = Interval(run.world.device)
    skipped_steps = SkippedSteps()
    # Running statistics have seen what was not finite, skipped or not.
    most_skipped = 1 if has_running_statistics(run.task) else run.config.max_skipped
    stop = StopVote(run.world, first_step)
    batches = iter(batches)
    for step in range(first_step + 1, plan.steps + 1):
        batch = next_batch(batches, interval, bad_videos)
        if step == first_step + 1 and run.world.size > 2 and run.config.parallel == "ddp":
            settle_buckets(run, batch)

        lr = plan.learning_rate(run.optim, step - 1)
        loss, norm = take_step(run, batch, step, lr, interval.forward)
        interval.add(loss, norm, batch)
        del batch  # on a CPU the next one is put together meanwhile
        progress.advance()

        # All ranks agree on what was seen since the last line of the log.
        at_line = step % run.config.log_every == 0
        interrupted = stop.asked(step, now=at_line)
        if at_line or interrupted or plan.saves_after(step) or plan.looks_after(step):
            settled = interval.settle(run.world, bad=bool(bad_videos.new))
            if settled.bad:
                bad_videos.settle(run.world)
            in_a_row = skipped_steps.note(settled.skipped, len(interval.losses))
            if settled.skipped:
                first = step - len(interval.losses)
                steps = ", ".join(str(first + k + 1) for k in settled.skipped)
                what = f"gradients not finite in step {steps}"
                rows = interval.rows_of(settled.skipped)
                if in_a_row >= most_skipped:
                    hooks.stopped(step, f"{what}, {in_a_row} in a row", rows)
                hooks.skipped(what, rows)
            interval_log.write(step, settled, interval, lr=lr, left=progress.eta())
            interval = Interval(run.world.device)

        best = False
        if plan.looks_after(step) and not interrupted:
            try:
                best = hooks.look(step)
            except Interrupted:  # the next start looks first
                interrupted = True
            run.task.train()
            interval.since = time.monotonic()
        over = plan.looks_after(step) and not interrupted and hooks.is_over(step)
        # Last: what belongs to this step is on the disk before the step counts as done.
        if plan.saves_after(step) or interrupted or best or over:
            hooks.save(step)
        if over:
            break
        if interrupted and (step < plan.steps or plan.looks_after(step)):
            raise Interrupted(
                f"{run.world.stop_asked() or 'another rank'} asks to stop: the state of step "
                f"{step} of {plan.steps} is saved, and the same command goes on from there"
            )
    progress.close()


def next_batch(batches: Iterator[Batch], interval: Interval, bad_videos: BadVideos) -> Batch:
    """Raises RunStopped if storage is away, or none of the batch's videos can be read."""
    asked = time.monotonic()
    batch = next(batches)
    interval.waited_s += time.monotonic() - asked
    bad_videos.note(batch["bad"])
    if batch["unavailable"]:
        raise Unavailable(f"{batch['unavailable']}; {GOES_ON}")
    if batch["clip"] is None:
        raise RunStopped(
            f"no video of this batch can be read, nor any of its substitutes: {batch['bad'][-1][1]}"
        )
    return batch


def take_step(
    run: TrainRun, batch: Batch, step: int, lr: float, clock: ForwardClock
) -> tuple[Tensor, Tensor]:
    """One optimizer step, the `step`-th. Returns (loss, norm of the gradients), both detached."""
    set_learning_rate(run.optimizer, lr)
    torch.manual_seed(step_seed(run.seed, step - 1, run.world.rank))
    loss = accumulate_gradients(run.wrapped, batch, run.config, run.world, clock)
    norm = clip_gradients(run.task.parameters(), run.optim.clip_grad)
    # A gradient that is not finite never reaches the weights: the fused optimizers read this flag
    # and skip such a step on the device.
    run.optimizer.found_inf = (~torch.isfinite(norm)).float()
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.ema is not None:
        run.ema.update(run.task.model, step)
    return loss, norm


def accumulate_gradients(
    wrapped: nn.Module,
    batch: Batch,
    config: TrainConfig,
    world: World,
    clock: ForwardClock | None = None,
) -> Tensor:
    """Forward and backward of a step, in `config.accumulate` parts.

    Returns the mean loss over the rank's clips.
    """
    clock = clock or ForwardClock(world.device)
    precision = precision_on(world.device, config.precision)
    losses = []
    parts = split_batch(batch, config.accumulate)
    for k, part in enumerate(parts):
        with world.gradients_shared(wrapped, last=k == len(parts) - 1):
            with clock.running(), autocast(precision, world.device):
                loss, _ = wrapped(part)
            loss = loss * (len(part["clip"]) / len(batch["clip"]))
            loss.backward()
        losses.append(loss.detach())
    return sum(losses[1:], losses[0])


def settle_buckets(run: TrainRun, batch: Batch) -> None:
    """One backward pass for nothing, at every start.

    DDP sums gradients bucket by bucket, and lays the buckets out anew after its first step. From
    three ranks on the sum's last bits depend on that, and a run that was started again would differ
    in its first step from one that was not.
    """
    buffers = [(buffer, buffer.clone()) for buffer in run.wrapped.buffers()]
    accumulate_gradients(run.wrapped, batch, run.config, run.world)
    run.wrapped.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """`parts` batches, or as many as there are samples, one after the other.

    What is read on the host is in arrays: FSDP moves every tensor it meets to the device.
    """
    chunks: dict[str, Sequence[Any]] = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            on_device = name in ("clip", "label")
            chunks[name] = [v if on_device else v.numpy() for v in value.chunk(parts)]
    count = len(chunks["clip"])
    return [{name: chunk[k] for name, chunk in chunks.items()} for k in range(count)]


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seeds torch's global generator, which dropout, drop path and mixing draw from."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)

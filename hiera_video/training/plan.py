"""When a training run does what: computed once, from its config and the length of its list."""

import math
from dataclasses import dataclass

from hiera_video.config import OptimConfig, TrainConfig
from hiera_video.training.optim import learning_rate


@dataclass(frozen=True)
class Plan:
    """Steps are numbered from 1 where something happens after them; an interval of 0 is never."""

    steps: int
    steps_per_epoch: float  # effective epoch
    warmup: float  # share of the run
    save_steps: int
    keep_steps: int  # between checkpoints that stay for good
    val_steps: int
    lr_scale: float  # of the learning rates in the config

    @classmethod
    def make(cls, config: TrainConfig, optim: OptimConfig, num_videos: int) -> "Plan":
        per_epoch = num_videos / (config.batch_size * config.repeats)
        save_steps = max(round(config.save_every * per_epoch), 1)
        val_steps = 0
        if config.val_every >= config.save_every:
            # What is validated is what is kept.
            val_steps = save_steps * max(round(config.val_every / config.save_every), 1)
        elif config.val_every:
            val_steps = max(round(config.val_every * per_epoch), 1)
        keep_steps = 0
        if config.keep_every:
            # A checkpoint can stay only where one is written.
            keep_steps = save_steps * max(round(config.keep_every / config.save_every), 1)
        scales = optim.reference_batch > 0
        return cls(
            steps=max(math.ceil(config.epochs * per_epoch), 1),
            steps_per_epoch=per_epoch,
            warmup=min(optim.warmup_epochs / config.epochs, 1.0),
            save_steps=save_steps,
            keep_steps=keep_steps,
            val_steps=val_steps,
            lr_scale=config.batch_size / optim.reference_batch if scales else 1.0,
        )

    def learning_rate(self, optim: OptimConfig, step: int) -> float:
        """Of the step that follows `step` steps."""
        return self.lr_scale * learning_rate(optim, step / self.steps, self.warmup)

    def epoch(self, step: int) -> int:
        """The effective epoch that step number `step` belongs to."""
        return int((step - 1) / self.steps_per_epoch)

    def saves_after(self, step: int) -> bool:
        return step == self.steps or (self.save_steps > 0 and step % self.save_steps == 0)

    def looks_after(self, step: int) -> bool:
        """Whether data.val is looked at: validation, or the probe."""
        return self.val_steps > 0 and (step == self.steps or step % self.val_steps == 0)

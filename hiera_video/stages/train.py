"""The stage "train": what a training run needs, taken up at its newest checkpoint."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
from torch import nn

from hiera_video import build, build_training
from hiera_video.config import Config
from hiera_video.data.lists import VideoList
from hiera_video.evaluation.multilabel import best_thresholds
from hiera_video.models.trunk import Trunk
from hiera_video.models.weights import LoadReport, load_weights, read_weights
from hiera_video.stages.inputs import Input
from hiera_video.stages.keep import Keeper, some_of
from hiera_video.stages.test import Views, score_videos
from hiera_video.stages.watch import Probe, ProbeLists, Validation
from hiera_video.system.devices import precision_on
from hiera_video.system.distributed import World
from hiera_video.system.errors import UserError
from hiera_video.system.log import RunLog
from hiera_video.system.memory import shared_free_gib
from hiera_video.training.checkpoint import (
    TrainState,
    add_to_metadata,
    checkpoint_step,
    newest,
    newest_whole,
    point,
    restore,
)
from hiera_video.training.interval import BadVideos
from hiera_video.training.loop import TrainRun, train
from hiera_video.training.optim import Ema, make_optimizer, parameter_groups, share_of_first
from hiera_video.training.plan import Plan


class TrainStage:
    key = "data.train"

    def __init__(self, config: Config, world: World, inputs: Mapping[str, Input]):
        """Builds the model and loads what it starts from. Raises UserError."""
        self.config = config
        self.world = world
        self.videos = inputs[self.key].videos
        self.held_out: VideoList | None = None
        if build.is_multilabel(config) and config.classify.threshold_share:
            self.videos, self.held_out = held_out(
                self.videos, config.classify.threshold_share, config.seed
            )
        self.val_videos = inputs["data.val"].videos if "data.val" in inputs else None
        self.probe_videos = inputs["mae.probe"].videos if "mae.probe" in inputs else self.videos
        self.class_names = inputs[self.key].classes.names
        self.plan = Plan.make(config.train, config.optim, len(self.videos))
        self.checkpoints = Path(config.output) / "checkpoints"
        training = build_training.make_training(config, inputs[self.key].classes.count, self.videos)
        build_training.train_order(config, self.videos)  # for its error
        self.spec = training.spec
        self.model = training.model
        self.task = training.task
        self.init_report = self._load_initial_weights()
        self.lora = build_training.lora_of(config)
        if newest(self.checkpoints) is None:
            self._add_lora()
        try:
            # For its errors; run() makes the one that is used, when the parameters are in place.
            make_optimizer(self.model, config.optim)
        except ValueError as e:
            raise UserError(str(e)) from e

    def run(self, log: RunLog) -> None:
        """Raises RunStopped, Interrupted."""
        world = self.world
        checkpoint = world.on_main(lambda: newest_whole(self.checkpoints, log.say))
        first_step = checkpoint_step(checkpoint)
        cut_off = world.on_main(lambda: self._look_was_cut_off(first_step, log))
        world.on_main(lambda: self._point_to(checkpoint, log))
        if first_step >= self.plan.steps and not cut_off:
            log.say(f"train: done already, {self.plan.steps} steps")
            self._choose_thresholds(log)
            return
        if not cut_off and is_over(self.config, first_step, world, log):
            log.say(f"train: done already, it ended at step {first_step} (train.patience)")
            self._choose_thresholds(log)
            return
        run = self._assemble(checkpoint, log)
        log.cut_metrics(first_step)
        keeper = self._keeper(run, log)
        for line in self._opening_lines():
            log.say(line)
        watch = self._watch(log)
        if watch is not None:
            watch.begin(first_step, keeper.weights())
        hooks = StageHooks(
            keeper,
            watch,
            self.videos,
            log,
            steps=self.plan.steps,
            is_over=lambda step: is_over(self.config, step, world, log),
        )
        if cut_off:
            hooks.look(first_step)
            world.on_main(lambda: self._point_to(checkpoint, log))
            if hooks.is_over(first_step):
                self._choose_thresholds(log)
                return
        train(
            run,
            build_training.train_batches(
                self.config,
                self.videos,
                steps=self.plan.steps,
                first_step=first_step,
                world=world,
            ),
            hooks,
            log=log,
            bad_videos=BadVideos(
                self.videos.written,
                num_videos=len(self.videos),
                max_fraction=self.config.data.max_bad_fraction,
                log=log,
            ),
            first_step=first_step,
        )
        self._choose_thresholds(log)

    def _choose_thresholds(self, log: RunLog) -> None:
        """Of several labels a video: those at which F1 is best on the videos that were held out.

        They are added to what the last and the best weights say of themselves, once.
        """
        if self.held_out is None:
            return

        def without() -> list[Path]:
            links = [self.checkpoints / name for name in ("latest", "best")]
            steps = dict.fromkeys(link.resolve() for link in links if link.exists())
            return [step for step in steps if "thresholds" not in read_weights(step)[1]]

        for checkpoint in self.world.on_main(without):
            self._choose_thresholds_of(checkpoint, self.held_out, log)

    def _choose_thresholds_of(self, checkpoint: Path, listed: VideoList, log: RunLog) -> None:
        model = build.build_model(self.spec, seed=self.config.seed)
        build.load_for_use(model, checkpoint, key="thresholds")
        scores = score_videos(
            self.config,
            model.to(self.world.device),
            listed,
            Views(build.clip_format(self.config).uniform(1), 1, 1),
            world=self.world,
            log=log,
            what="thresholds",
        )

        def write() -> None:
            rows, truth = scores.truth(listed)
            if not rows:
                log.say("WARNING: no video was left to choose thresholds by: 0.5 for every class")
                return
            found = best_thresholds(scores.of(rows), truth)
            told = int((truth.sum(0) > 0).sum())
            log.say(
                f"{checkpoint.name}: thresholds of {told} of {len(found)} classes chosen on "
                f"{len(rows)} training videos that were held out; the others have 0.5"
            )
            add_to_metadata(checkpoint, {"thresholds": found.tolist()})

        self.world.on_main(write)

    def _point_to(self, checkpoint: Path | None, log: RunLog) -> None:
        """A kill may have come between the folder of a checkpoint and the links to it."""
        if checkpoint is not None:
            point(self.checkpoints, "latest", checkpoint.name)
            step = checkpoint_step(checkpoint)
            if log.best_validation(step)[1] == step:
                point(self.checkpoints, "best", checkpoint.name)

    def _look_was_cut_off(self, step: int, log: RunLog) -> bool:
        """Whether a signal ended the look at that step's weights, which are saved all the same."""
        if self.val_videos is None or not step or not self.plan.looks_after(step):
            return False
        split = "probe" if self.config.task == "pretrain" else "val"
        return all(row["step"] != step for row in log.rows(split))

    def describe_learning_rate(self) -> str:
        optim = self.config.optim
        batch = self.config.train.batch_size
        if batch == optim.reference_batch or not optim.reference_batch:
            return f"learning rate {optim.lr:.3g} for a batch of {batch} videos"
        return (
            f"WARNING: train.batch_size={batch} is not the recipe's {optim.reference_batch}: "
            f"learning rate {optim.lr:.3g} x {self.plan.lr_scale:.4g} = "
            f"{optim.lr * self.plan.lr_scale:.3g}"
        )

    def _load_initial_weights(self) -> LoadReport | None:
        """None where there are none, or where the run goes on at a checkpoint."""
        weights = self.config.init.file
        if not weights or newest(self.checkpoints) is not None:
            return None
        try:
            return load_weights(self.model, weights, strict=False)
        except ValueError as e:
            raise UserError(f"init.weights: {e}") from e

    def _add_lora(self) -> None:
        if self.lora is not None:
            assert isinstance(self.model, Trunk)  # or make_training raised
            self.lora.add_to(self.model, seed=self.config.seed)

    def _assemble(self, checkpoint: Path | None, log: RunLog) -> TrainRun:
        """The run in the state of the checkpoint, or at its beginning."""
        config = self.config
        if checkpoint is not None:
            build.load_for_use(self.model, checkpoint, key="cannot resume")
            self._add_lora()
        units = sharded_units(self.model)
        wrapped = self.world.wrap(self.task, config.train.parallel, units)
        optimizer = make_optimizer(self.model, config.optim)
        ema = Ema(self.model, config.train.ema) if config.train.ema else None
        if checkpoint is not None:
            restore(checkpoint, TrainState(self.model, optimizer, ema, self.lora))
            step = checkpoint_step(checkpoint)
            log.say(f"continuing after step {step} of {self.plan.steps}, from {checkpoint}")
        return TrainRun(
            task=self.task,
            wrapped=wrapped,
            optimizer=optimizer,
            ema=ema,
            plan=self.plan,
            config=config.train,
            optim=config.optim,
            world=self.world,
            seed=config.seed,
        )

    def _keeper(self, run: TrainRun, log: RunLog) -> Keeper:
        return Keeper(
            Path(self.config.output),
            TrainState(self.model, run.optimizer, run.ema, self.lora),
            metadata=build.build_metadata(self.config, self.spec, self.class_names),
            config=self.config.train,
            plan=self.plan,
            world=self.world,
            best=log.best_validation(self.plan.steps)[0],
            say=log.say,
        )

    def _watch(self, log: RunLog) -> Validation | Probe | None:
        if self.val_videos is None:
            return None
        if self.config.task == "pretrain":
            lists = ProbeLists(self.videos, self.probe_videos, self.val_videos)
            return Probe(self.config, self.spec, lists, self.world, log)
        return Validation(self.config, self.spec, self.val_videos, self.world, log)

    def _opening_lines(self) -> list[str]:
        config = self.config
        optim = config.optim
        lines = [] if self.init_report is None else [str(self.init_report)]
        if config.task == "classify" and config.data.classes and not self.class_names:
            lines.append(
                f"{config.data.classes} names another number of classes than the model has: "
                "names are left out"
            )
        lines.append(
            f"train: {len(self.videos)} videos, {self.plan.steps} steps of "
            f"{config.train.batch_size} videos x {config.train.repeats} clips; "
            f"an effective epoch is {self.plan.steps_per_epoch:.4g} steps"
        )
        frozen = [f"train.{k}" for k in ("freeze_stages", "lora_rank") if getattr(config.train, k)]
        if frozen:
            trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
            every = sum(p.numel() for p in self.model.parameters())
            lines.append(f"{' and '.join(frozen)}: {trained:,} of {every:,} parameters are trained")
            if config.init.weights is None:
                lines.append("WARNING: random weights are frozen; set init.weights")
        if config.train.precision == "auto":
            found = precision_on(self.world.device, "auto")
            lines.append(f"train.precision=auto: {found} on this device")
        lines.append(self.describe_learning_rate())
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        ready = build_training.training_prefetch(config, self.world.size).bytes * ranks_here
        ready_gib = ready / 2**30
        free = shared_free_gib()
        if free is not None and ready_gib > free:
            lines.append(
                f"WARNING: workers hold up to {ready_gib:.2f} GiB in shared memory, which has "
                f"{free:.2f} GiB left: lower data.prefetch_gib, or they may end with a bus error"
            )
        if config.init.weights is None and config.optim.layer_decay < 1:
            first = parameter_groups(self.model, weight_decay=0, layer_decay=optim.layer_decay)
            lowest = min(group["lr_scale"] for group in first)
            lines.append(
                f"WARNING: random weights, but optim.layer_decay={optim.layer_decay:g} is made for "
                f"pretrained ones: the first layer learns at {lowest:.2%} of the rate; set "
                "init.weights, optim.layer_decay=1, or init.weights=none if it is meant"
            )
        if config.train.ema:
            left = share_of_first(config.train.ema, self.plan.steps)
            lines.append(
                f"train.ema={config.train.ema:g}: the average is what is validated and kept; "
                f"{left:.2%} of it are the weights before the first step, at the end"
            )
        warmup = config.optim.warmup_epochs
        if warmup >= config.train.epochs:
            lines.append(
                f"WARNING: optim.warmup_epochs={warmup:g} of train.epochs={config.train.epochs:g}: "
                "the whole run is warm-up, and the rate never falls"
            )
        return lines


def is_over(config: Config, step: int, world: World, log: RunLog) -> bool:
    """Whether validation has not become better for as long as train.patience waits."""
    patience = config.train.patience
    if not patience or not step:
        return False
    looks = world.on_main(lambda: log.looks_since_best(step))
    if looks < patience:
        return False
    best, best_step = world.on_main(lambda: log.best_validation(step))
    log.say(
        f"train: ends at step {step}: {looks} looks at data.val brought nothing better than "
        f"{best:.2f} at step {best_step} (checkpoints/best)"
    )
    return True


def held_out(videos: VideoList, share: float, seed: int) -> tuple[VideoList, VideoList]:
    """(what is trained on, what is not): whole videos, whatever rows name them.

    Raises UserError where one of them would be empty.
    """
    paths = sorted({videos.written(i) for i in range(len(videos))})
    count = round(share * len(paths))
    if not 0 < count < len(paths):
        raise UserError(
            f"classify.threshold_share={share} of {len(paths)} training videos leaves none; "
            "set it to 0 for thresholds of 0.5"
        )
    order = np.random.default_rng([seed, len(paths)]).permutation(len(paths))
    chosen = {paths[k] for k in order[:count]}
    inside = [videos.written(i) in chosen for i in range(len(videos))]
    return (
        videos.subset([i for i, is_held in enumerate(inside) if not is_held]),
        videos.subset([i for i, is_held in enumerate(inside) if is_held]),
    )


class StageHooks:
    """What the training loop calls."""

    def __init__(
        self,
        keeper: Keeper,
        watch: Validation | Probe | None,
        videos: VideoList,
        log: RunLog,
        *,
        steps: int,
        is_over: Callable[[int], bool],
    ):
        self.is_over = is_over
        self._keeper = keeper
        self._watch = watch
        self._videos = videos
        self._log = log
        self._steps = steps

    def look(self, step: int) -> bool:
        if self._watch is None:
            return False
        top1 = self._watch.look(step, self._keeper.weights(), progress=step / self._steps)
        return top1 is not None and self._keeper.note_validation(step, top1)

    def save(self, step: int) -> None:
        self._keeper.save(step)

    def skipped(self, what: str, rows: list[int]) -> None:
        names = self._keeper.names_of(rows, self._videos)
        self._log.say(f"WARNING: {what}: skipped, the weights stay; videos: {some_of(names)}")

    def stopped(self, step: int, reason: str, rows: list[int]) -> NoReturn:
        self._keeper.stop(step, reason, rows, self._videos)


def sharded_units(model: nn.Module) -> list[nn.Module]:
    """What is put together at a time where ranks hold shards: the blocks, if there are any."""
    return [block for name in ("blocks", "decoder_blocks") for block in getattr(model, name, [])]

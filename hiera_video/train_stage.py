"""The stage "train": everything that a training run needs, taken up at its newest checkpoint.

Validation and, in pretraining, the probe are looks at the weights in between; they change nothing.
"""

from functools import partial
from pathlib import Path

from torch import Tensor

from hiera_video import build
from hiera_video.checkpoint import (
    Snapshot,
    checkpoint_step,
    newest,
    newest_whole,
    point,
    restore,
    save_checkpoint,
    weights_to_keep,
    write_state,
)
from hiera_video.config import Config
from hiera_video.data.annotations import check_labels
from hiera_video.data.transforms import normalise
from hiera_video.distributed import World, whole
from hiera_video.errors import RunStopped, UserError
from hiera_video.eval_stages import accuracy_text, known_classes, say_classes, score_videos
from hiera_video.evaluate import evaluate
from hiera_video.log import RunLog
from hiera_video.models.weights import load_weights
from hiera_video.optim import Ema, make_optimizer
from hiera_video.probe import FeatureBank, nearest_neighbours, spread_rows
from hiera_video.reconstruct import reconstruct, sheet
from hiera_video.signals import StopSignals
from hiera_video.train import BadVideos, Plan, train

DRAWN = 4  # videos whose reconstructions are drawn in pretraining
NAMED = 8  # videos named in a message


class TrainStage:
    key = "data.train"

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        self.videos = build.build_videos(config, self.key)
        self.names, self.num_classes = known_classes(config, self.videos)
        if self.num_classes is not None:
            check_labels(self.videos, self.num_classes, key=self.key)
        self.plan = Plan.make(config.train, config.optim, len(self.videos))
        self.val_videos = build.build_videos(config, "data.val") if self.plan.val_steps else None
        if self.val_videos is not None and self.num_classes is not None:
            check_labels(self.val_videos, self.num_classes, key="data.val")
        self.lists = {self.key: self.videos} | ({"data.val": self.val_videos} if self.val_videos is not None else {})
        self.name, self.arguments = build.model_arguments(config, self.num_classes)
        self.metadata = build.build_metadata(config, self.name, self.arguments, self.names)
        self.model = build.build_model(self.name, self.arguments, seed=config.seed)
        self.checkpoints = Path(config.output) / "checkpoints"
        self.init_report = None
        if config.init.weights and newest(self.checkpoints) is None:
            try:
                self.init_report = load_weights(self.model, config.init.weights, strict=False)
            except ValueError as e:
                raise UserError(f"init.weights: {e}") from e
        build.choose_execution(config, self.model)
        self.task = build.build_task(config, self.model, self.num_classes)
        try:
            make_optimizer(
                self.model, config.optim
            )  # run() makes the one that is used, when the parameters are in place
        except ValueError as e:
            raise UserError(str(e)) from e
        self.ema: Ema | None = None
        self.best, self.best_step = -1.0, 0  # top-1 in validation, and when

    def run(self, log: RunLog) -> None:
        config, world, plan = self.config, self.world, self.plan
        checkpoint = world.on_main(lambda: newest_whole(self.checkpoints, log.say))
        first_step = checkpoint_step(checkpoint)
        if checkpoint is not None and world.is_main:  # a kill may have come between the folder and the link
            point(self.checkpoints, "latest", checkpoint.name)
        if first_step >= plan.steps:
            log.say(f"train: done already, {plan.steps} steps")
            return
        if checkpoint is not None:
            build.load_for_use(self.model, checkpoint, key="cannot resume")
        wrapped = world.wrap(self.task.to(world.device), config.train.parallel, build.sharded_units(self.model))
        self.optimizer = make_optimizer(self.model, config.optim)
        self.ema = Ema(self.model, config.train.ema) if config.train.ema else None
        if checkpoint is not None:
            restore(checkpoint, model=self.model, optimizer=self.optimizer, ema=self.ema)
            log.say(f"continuing after step {first_step} of {plan.steps}, from {checkpoint}")
        log.cut_metrics(first_step)
        self.best = log.best_validation()
        if self.init_report is not None:
            log.say(str(self.init_report))
        say_classes(log, self.names, self.config)
        log.say(
            f"train: {len(self.videos)} videos, {plan.steps} steps of {config.train.batch_size} videos x "
            f"{config.train.repeats} clips; an effective epoch is {plan.steps_per_epoch:.4g} steps"
        )
        batches = build.train_batches(
            config, self.videos, steps=plan.steps, first_step=first_step, world=world, num_classes=self.num_classes
        )
        fraction = config.data.max_bad_fraction
        bad = BadVideos(self.videos.written, num_videos=len(self.videos), max_fraction=fraction, log=log)
        log.say(self.describe_learning_rate())
        with StopSignals() as signals:
            train(
                self.task,
                wrapped,
                batches,
                self.optimizer,
                plan=plan,
                config=config.train,
                optim=config.optim,
                world=world,
                log=log,
                bad_videos=bad,
                seed=config.seed,
                first_step=first_step,
                ema=self.ema,
                save=self._save,
                validate=partial(self._probe if config.task == "pretrain" else self._validate, log),
                stop_requested=lambda: signals.name,
                stopped=self._stopped,
            )

    def describe_learning_rate(self) -> str:
        optim, batch = self.config.optim, self.config.train.batch_size
        if batch == optim.reference_batch or not optim.reference_batch:
            return f"learning rate {optim.lr:.3g} for a batch of {batch} videos"
        return (
            f"WARNING: train.batch_size={batch} is not the recipe's {optim.reference_batch}: learning rate "
            f"{optim.lr:.3g} x {self.plan.lr_scale:.4g} = {optim.lr * self.plan.lr_scale:.3g}"
        )

    def _snapshot(self, step: int) -> Snapshot:
        state = dict(model=self.model, optimizer=self.optimizer, ema=self.ema)
        return Snapshot.take(step, **state, metadata=self.metadata, world=self.world)

    def _weights(self) -> dict[str, Tensor]:
        """What would be kept now, put together, on all ranks."""
        return {name: whole(t.detach()) for name, t in weights_to_keep(self.model, self.ema).items()}

    def _save(self, step: int) -> None:
        snapshot = self._snapshot(step)

        def write() -> None:
            save_checkpoint(self.checkpoints, snapshot, keep=self.config.train.keep, keep_steps=self.plan.keep_steps)
            if self.best_step == step:
                point(self.checkpoints, "best", f"step_{step:09d}")

        self.world.on_main(write)

    def _stopped(self, step: int, why: str, rows: list[int]) -> None:
        """Keeps the state of a run that cannot go on, apart from the checkpoints, and what its last batches held."""
        folder = Path(self.config.output) / "stopped" / f"step_{step:09d}"
        names = [self.videos.written(row) for part in self.world.gather_all(rows) for row in part]
        snapshot = self._snapshot(step)

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            write_state(folder, snapshot)
            (folder / "videos.txt").write_text("".join(f"{n}\n" for n in names), errors="surrogateescape")

        self.world.on_main(write)
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        raise RunStopped(f"{why}; none of it reached the weights; videos: {shown}; the state is in {folder}")

    def _validate(self, log: RunLog, step: int) -> None:
        if self.val_videos is None:
            return
        model = build.build_model(self.name, self.arguments, seed=self.config.seed)
        load_weights(model, self._weights(), strict=True)
        model = model.to(self.world.device)
        sample = build.uniform_sampler(self.config, 1)
        scores = score_videos(
            *(self.config, model, self.val_videos),
            sample=sample,
            clips=1,
            crops=1,
            world=self.world,
            log=log,
            what="val",
        )
        accuracy = scores.accuracy(self.val_videos)
        if (accuracy["top1"] or 0.0) > self.best:
            self.best, self.best_step = accuracy["top1"] or 0.0, step
        if self.world.is_main:
            log.metrics({"split": "val", "step": step, **accuracy, "videos": len(scores.rows)})
            log.say(f"val at step {step}: {accuracy_text(accuracy)} of {len(scores.rows)} videos, one view each")

    def _probe(self, log: RunLog, step: int) -> None:
        """Pretraining: nearest neighbours among the encoder's features, and pictures of what it predicts."""
        config, world = self.config, self.world
        state = self._weights()
        if world.is_main:
            self._draw_reconstructions(log, step, state)
        encoder = build.build_encoder(config)
        load_weights(encoder, state, strict=False)
        encoder = encoder.to(world.device).eval()
        banks = []
        for videos in (self.videos, self.val_videos):
            part, bank = videos.subset(spread_rows(videos, config.mae.probe_videos)), FeatureBank()
            evaluate(
                partial(build.predict_features, encoder, (), False),
                build.test_loader(
                    config, part, list(range(len(part))), sample=build.uniform_sampler(config, 1), crops=1, world=world
                ),
                bank,
                world=world,
                mean=config.data.mean,
                std=config.data.std,
                views_per_forward=config.test.views_per_forward,
                precision=config.test.precision,
                compiled=False,
                total=len(part),
                what="probe",
                log=log,
            )
            banks.append(bank.merged(world, part))
        (known, labels), (asked, truth) = banks
        if world.is_main and len(known) and len(asked):
            top1 = 100 * (nearest_neighbours(known, labels, asked).argmax(1) == truth).double().mean().item()
            log.metrics({"split": "probe", "step": step, "knn_top1": top1, "videos": len(truth)})
            log.say(
                f"probe at step {step}: nearest neighbours {top1:.2f} top-1, {len(truth)} videos among {len(labels)}"
            )

    def _draw_reconstructions(self, log: RunLog, step: int, weights: dict[str, Tensor]) -> None:
        """The first videos of data.val, one picture each, in reconstructions/."""
        config = self.config
        folder = Path(config.output) / "reconstructions"
        folder.mkdir(exist_ok=True)
        first = self.val_videos.subset(list(range(min(DRAWN, len(self.val_videos)))))
        alone = World(0, 1, self.world.device)
        model = build.build_model(self.name, self.arguments, seed=config.seed)
        load_weights(model, weights, strict=True)
        model = model.to(self.world.device).eval()
        sample = build.uniform_sampler(config, 1)
        for batch in build.test_loader(config, first, list(range(len(first))), sample=sample, crops=1, world=alone):
            for row, clip in zip(batch["index"].tolist(), batch["clip"] if batch["clip"] is not None else []):
                mean, std = config.data.mean, config.data.std
                clip = normalise(clip.to(self.world.device), mean, std)
                result = reconstruct(model, clip, mask_ratio=config.mae.mask_ratio, seed=row, mean=mean, std=std)
                sheet(result).save(folder / f"step_{step:09d}_{row}.png")
        log.say(f"reconstructions of {len(first)} videos: {folder}")

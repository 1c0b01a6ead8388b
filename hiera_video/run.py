"""A run: the stages of a config, in order, in one folder that tells what was done and lets it go on.

output/config.yaml run.json log.txt metrics.jsonl tb/ checkpoints/ test/ features/
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, TypeVar

from torch import nn

from hiera_video import build
from hiera_video.checkpoint import checkpoint_step, newest, newest_whole, point, resume, save_checkpoint, write_state
from hiera_video.config import Config, changed_keys, to_yaml
from hiera_video.data.annotations import VideoList, check_labels
from hiera_video.data.transforms import normalise
from hiera_video.data.video import missing_decoder
from hiera_video.distributed import World, join_world
from hiera_video.errors import RunStopped, UserError
from hiera_video.evaluate import FeatureFiles, ViewScores, evaluate, write_json
from hiera_video.lock import FolderLock
from hiera_video.log import RunLog
from hiera_video.models.weights import load_weights, weights_file
from hiera_video.optim import Ema, make_optimizer
from hiera_video.probe import FeatureBank, nearest_neighbours, spread_rows
from hiera_video.reconstruct import reconstruct, sheet
from hiera_video.signals import StopSignals
from hiera_video.train import NAMED, BadVideos, Plan, train

T = TypeVar("T")
DRAWN = 4  # videos whose reconstructions are drawn in pretraining
PACKAGES = ("torch", "torchvision", "pytorchvideo", "decord", "av", "omegaconf", "safetensors", "numpy")


def run(config: Config) -> None:
    """Runs every stage that is not finished. Raises UserError, RunStopped."""
    with join_world(config.device, wait_s=config.join_timeout_s) as world:
        stages: dict[str, Callable[[], Stage]] = {
            "train": lambda: TrainStage(config, world),
            "test": lambda: TestStage(config, world),
            "features": lambda: FeaturesStage(config, world, Path(config.output) / "features"),
        }
        prepared = [stages[name]() for name in config.stages]  # reads lists: wrong input ends here, nothing written
        log = open_run_folder(config, world, {s.key: s.videos for s in prepared})
        try:
            if missing_decoder(config.data.decoder):
                log.say(f"{missing_decoder(config.data.decoder)}: every file is decoded with PyAV")
            for stage in prepared:
                stage.run(log)
                world.barrier()
        except RunStopped as e:
            log.say(f"stopped: {e}")
            raise
        finally:
            log.close()


def extract_features(config: Config) -> None:
    """Features alone, into `config.output` itself. Raises UserError, RunStopped."""
    with join_world(config.device, wait_s=config.join_timeout_s) as world:
        stage = FeaturesStage(config, world, Path(config.output))
        log = open_run_folder(config, world, {stage.key: stage.videos})
        try:
            stage.run(log)
            world.barrier()
        finally:
            log.close()


def open_run_folder(config: Config, world: World, lists: dict[str, VideoList]) -> RunLog:
    """Makes and locks the folder, or takes up an earlier run of the same config. Raises UserError if the config changed."""
    folder, held = Path(config.output), []

    def claim() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.append(FolderLock(folder))
            claim_folder(folder, config)
            write_json(folder / "run.json", run_card(config, world, lists))
        except OSError as e:
            raise UserError(f"output: cannot make the folder {folder}: {e.strerror}") from e

    on_main(world, claim)
    log = RunLog(folder if world.is_main else None, lock=held[0] if held else None)
    log.say(f"run folder {folder}, {world.size} rank(s) on {world.device.type}")
    return log


def claim_folder(folder: Path, config: Config) -> None:
    """Writes config.yaml. Raises UserError if there is one that differs."""
    stored = folder / "config.yaml"
    if stored.exists():
        changed = changed_keys(config, stored.read_text())
        if changed:
            raise UserError(
                f"{folder} holds a run of another config; these keys differ: {', '.join(changed)}; "
                "set output to a new folder, or use the config of that run"
            )
    temporary = folder / "config.tmp"
    temporary.write_text(to_yaml(config))
    temporary.replace(stored)


def run_card(config: Config, world: World, lists: dict[str, VideoList]) -> dict:
    """Where a result came from."""
    versions = {}
    for package in ("hiera_video", *PACKAGES):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    hashes = {key: {"source": v.source, "videos": len(v), "sha256": _list_hash(v)} for key, v in lists.items()}
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git": _git_state(),
        "packages": versions,
        "python": sys.version.split()[0],
        "lists": hashes,
        "seed": config.seed,
        "world_size": world.size,
        "device": world.device.type,
    }


def on_main(world: World, work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on all ranks; its UserError or RunStopped is raised on all of them, too."""
    result, error = None, None
    if world.is_main:
        try:
            result = work()
        except (UserError, RunStopped) as e:
            error = e
    result, error = world.share((result, error))
    if error is not None:
        raise error
    return result


class Stage(Protocol):
    """A stage reads its list when it is made, and does its work, unless that is done already, in `run`."""

    key: str  # of the list
    videos: VideoList

    def run(self, log: RunLog) -> None: ...


class TrainStage:
    key = "data.train"

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        self.videos = build.build_videos(config, self.key)
        self.names, self.num_classes = _classes(config, self.videos)
        if self.num_classes is not None:
            check_labels(self.videos, self.num_classes, key=self.key)
        self.plan = Plan.make(config.train, config.optim, len(self.videos))
        self.val_videos = build.build_videos(config, "data.val") if self.plan.val_steps else None
        if self.val_videos is not None and self.num_classes is not None:
            check_labels(self.val_videos, self.num_classes, key="data.val")
        name, arguments = build.model_arguments(config, self.num_classes)
        self.metadata = build.build_metadata(config, name, arguments, self.names)
        self.model = build.build_model(name, arguments, seed=config.seed)
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
            self.optimizer = make_optimizer(self.model, config.optim)
        except ValueError as e:
            raise UserError(str(e)) from e
        self.ema: Ema | None = None
        self.best, self.best_step = -1.0, 0  # top-1 in validation, and when

    def run(self, log: RunLog) -> None:
        config, world, plan = self.config, self.world, self.plan
        checkpoint = on_main(world, lambda: newest_whole(self.checkpoints, log.say))
        first_step = checkpoint_step(checkpoint)
        if checkpoint is not None and world.is_main:  # a kill may have come between the folder and the link
            point(self.checkpoints, "latest", checkpoint.name)
        if first_step >= plan.steps:
            log.say(f"train: done already, {plan.steps} steps")
            return
        task = self.task.to(world.device)
        self.ema = Ema(self.model, config.train.ema) if config.train.ema else None
        if checkpoint is not None:
            first_step = resume(checkpoint, model=self.model, optimizer=self.optimizer, ema=self.ema)
            log.say(f"continuing after step {first_step} of {plan.steps}, from {checkpoint}")
        log.cut_metrics(first_step)
        self.best = log.best_validation()
        if self.init_report is not None:
            log.say(str(self.init_report))
        _say_classes(log, self.names, self.config)
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
                task,
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

    def _save(self, step: int) -> None:
        def write() -> None:
            state = dict(model=self.model, optimizer=self.optimizer, metadata=self.metadata, ema=self.ema)
            keep = dict(keep=self.config.train.keep, keep_steps=self.plan.keep_steps)
            save_checkpoint(self.checkpoints, step=step, **state, **keep)
            if self.best_step == step:
                point(self.checkpoints, "best", f"step_{step:09d}")

        on_main(self.world, write)

    def _stopped(self, step: int, why: str, rows: list[int]) -> None:
        """Keeps the state of a run that cannot go on, apart from the checkpoints, and what its last batches held."""
        folder = Path(self.config.output) / "stopped" / f"step_{step:09d}"
        names = [self.videos.written(row) for part in self.world.gather_all(rows) for row in part]

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            state = dict(model=self.model, optimizer=self.optimizer, metadata=self.metadata, ema=self.ema)
            write_state(folder, step=step, **state)
            (folder / "videos.txt").write_text("".join(f"{n}\n" for n in names), errors="surrogateescape")

        on_main(self.world, write)
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        raise RunStopped(f"{why}; none of it reached the weights; videos: {shown}; the state is in {folder}")

    def _validate(self, log: RunLog, step: int) -> None:
        if self.val_videos is None:
            return
        with self.ema.in_place_of_weights(self.model) if self.ema else nullcontext():
            scores = _score(
                self.config, self.model, self.val_videos, clips=1, crops=1, world=self.world, log=log, what="val"
            )
        accuracy = scores.accuracy(self.val_videos)
        if (accuracy["top1"] or 0.0) > self.best:
            self.best, self.best_step = accuracy["top1"] or 0.0, step
        if self.world.is_main:
            log.metrics({"split": "val", "step": step, **accuracy, "videos": len(scores.rows)})
            log.say(f"val at step {step}: {_accuracy_text(accuracy)} of {len(scores.rows)} videos, one view each")

    def _probe(self, log: RunLog, step: int) -> None:
        """Pretraining: nearest neighbours among the encoder's features, and pictures of what it predicts."""
        config, world = self.config, self.world
        with self.ema.in_place_of_weights(self.model) if self.ema else nullcontext():
            state = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
            if world.is_main:
                self._draw_reconstructions(log, step)
        encoder = build.build_encoder(config)
        load_weights(encoder, state, strict=False)
        encoder = encoder.to(world.device).eval()
        banks = []
        for videos in (self.videos, self.val_videos):
            part, bank = videos.subset(spread_rows(videos, config.mae.probe_videos)), FeatureBank()
            evaluate(
                partial(build.predict_features, encoder, ()),
                build.test_loader(config, part, clips=1, crops=1, world=world),
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
            top1 = 100 * (nearest_neighbours(known, labels, asked) == truth).double().mean().item()
            log.metrics({"split": "probe", "step": step, "knn_top1": top1, "videos": len(truth)})
            log.say(
                f"probe at step {step}: nearest neighbours {top1:.2f} top-1, {len(truth)} videos among {len(labels)}"
            )

    def _draw_reconstructions(self, log: RunLog, step: int) -> None:
        """The first videos of data.val, one picture each, in reconstructions/."""
        config = self.config
        folder = Path(config.output) / "reconstructions"
        folder.mkdir(exist_ok=True)
        first = self.val_videos.subset(list(range(min(DRAWN, len(self.val_videos)))))
        alone = World(0, 1, self.world.device)
        self.model.eval()
        for batch in build.test_loader(config, first, clips=1, crops=1, world=alone):
            for row, clip in zip(batch["index"].tolist(), batch["clip"] if batch["clip"] is not None else []):
                mean, std = config.data.mean, config.data.std
                clip = normalise(clip.to(self.world.device), mean, std)
                result = reconstruct(self.model, clip, mask_ratio=config.mae.mask_ratio, seed=row, mean=mean, std=std)
                sheet(result).save(folder / f"step_{step:09d}_{row}.png")
        log.say(f"reconstructions of {len(first)} videos: {folder}")


class TestStage:
    __test__ = False  # not a test case, whatever its name
    key = "data.test"

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        self.videos = build.build_videos(config, self.key)
        self.names, self.num_classes = _classes(config, self.videos)
        labelled = self.videos.labels[self.videos.labels >= 0]
        if len(labelled):  # a list may leave all labels out; then there is no accuracy, but scores
            check_labels(self.videos, self.num_classes, key=self.key)
        self.folder = Path(config.output) / "test"
        if config.test.weights or "train" not in config.stages:
            _weights(config)

    def run(self, log: RunLog) -> None:
        config, world = self.config, self.world
        if (self.folder / "metrics.json").exists():
            log.say(f"test: done already, {self.folder / 'metrics.json'}")
            return
        name, arguments = build.model_arguments(config, self.num_classes)
        model = build.build_model(name, arguments, seed=config.seed)
        log.say(str(build.load_for_use(model, _weights(config), key="test")))
        model = model.to(world.device)
        views = (config.test.clips, config.test.crops)
        scores = _score(config, model, self.videos, clips=views[0], crops=views[1], world=world, log=log, what="test")
        if not world.is_main:
            return
        metrics = scores.write(self.folder, self.videos, views=views)
        for path, reason in zip(metrics["missing"], metrics["missing_reasons"]):
            log.say(f"not scored: {path}: {reason}")
        log.say(
            f"test: {_accuracy_text(metrics)}, {metrics['videos']} of {metrics['videos_expected']} videos "
            f"x {views[0]} clips x {views[1]} crops; {self.folder}"
        )
        coverage = metrics["videos"] / metrics["videos_expected"]
        if coverage < config.test.min_coverage:
            raise RunStopped(f"{coverage:.1%} of the test videos were scored, less than test.min_coverage")


class FeaturesStage:
    key = "features.videos"

    def __init__(self, config: Config, world: World, folder: Path):
        self.config, self.world, self.folder = config, world, folder
        if any(s not in (1, 2, 3, 4) for s in config.features.stages):
            raise UserError(f"features.stages={list(config.features.stages)} must be among 1, 2, 3, 4")
        self.videos = build.build_videos(config, self.key)
        if config.test.weights or "train" not in config.stages:
            _weights(config)

    def run(self, log: RunLog) -> None:
        config, world = self.config, self.world
        if (self.folder / "manifest.csv").exists():
            log.say(f"features: done already, {self.folder / 'manifest.csv'}")
            return
        model = self._model(log).to(world.device).eval()
        files = FeatureFiles(self.folder, self.videos)
        evaluate(
            partial(build.predict_features, model, config.features.stages),
            build.features_loader(config, self.videos, world=world),
            files,
            world=world,
            mean=config.data.mean,
            std=config.data.std,
            views_per_forward=config.test.views_per_forward,
            precision=config.test.precision,
            compiled=config.test.compile,
            total=len(self.videos),
            what="features",
            log=log,
        )
        log.say(f"features of {len(self.videos)} videos: {files.write_manifest(world)}")

    def _model(self, log: RunLog) -> nn.Module:
        """The classifier that the weights belong to; of a masked autoencoder, its encoder."""
        config, weights = self.config, _weights(self.config)
        if config.task == "pretrain":
            model = build.build_encoder(config)
        else:
            num_classes = build.number_of_classes(config, build.class_names(config, self.videos))
            name, arguments = build.model_arguments(config, num_classes)
            model = build.build_model(name, arguments, seed=config.seed)
        log.say(str(build.load_for_use(model, weights, key="features", from_mae=True)))
        return model


def _score(config, model, videos, *, clips: int, crops: int, world: World, log: RunLog, what: str) -> ViewScores:
    """Scores of all ranks, on rank 0."""
    scores = ViewScores()
    evaluate(
        partial(build.predict_logits, model.eval()),
        build.test_loader(config, videos, clips=clips, crops=crops, world=world),
        scores,
        world=world,
        mean=config.data.mean,
        std=config.data.std,
        views_per_forward=config.test.views_per_forward,
        precision=config.test.precision,
        compiled=config.test.compile,
        total=len(videos),
        what=what,
        log=log,
    )
    return scores.merged(world)


def _classes(config: Config, videos: VideoList) -> tuple[list[str], int | None]:
    """(class names, class count); names of another number than the model's classes are left out. None: no classes."""
    if config.task == "pretrain":
        return [], None
    names = build.class_names(config, videos)
    num_classes = build.number_of_classes(config, names)
    return (names if len(names) == num_classes else []), num_classes


def _say_classes(log: RunLog, names: list[str], config: Config) -> None:
    if config.task == "classify" and config.data.classes and not names:
        log.say(f"{config.data.classes} names another number of classes than the model has: names are left out")


def _weights(config: Config) -> Path:
    """Weights for test and features: test.weights, or the run's last. Raises UserError."""
    try:
        return weights_file(config.test.weights or config.output)
    except ValueError as e:
        raise UserError(f"test.weights: {e}; train first, or set test.weights") from e


def _accuracy_text(accuracy: dict) -> str:
    if accuracy["top1"] is None:
        return "no labels"
    return f"top-1 {accuracy['top1']:.2f}, top-5 {accuracy['top5']:.2f}"


def _list_hash(videos: VideoList) -> str:
    digest = hashlib.sha256()
    for i in range(len(videos)):
        digest.update(f"{videos.written(i)} {videos.label(i)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _git_state() -> dict | None:
    """Commit of the code, and whether it was changed since; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_files": git("status", "--porcelain").splitlines()}
    except (OSError, subprocess.CalledProcessError):
        return None

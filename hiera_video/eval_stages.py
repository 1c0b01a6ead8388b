"""The stages "test" and "features", and what they share with validation."""

from functools import partial
from pathlib import Path

from torch import nn

from hiera_video import build
from hiera_video.config import Config
from hiera_video.data.annotations import VideoList, check_labels
from hiera_video.distributed import World
from hiera_video.errors import RunStopped, UserError
from hiera_video.evaluate import FeatureFiles, ViewScores, evaluate
from hiera_video.log import RunLog
from hiera_video.models.weights import weights_file


class TestStage:
    __test__ = False  # not a test case, whatever its name
    key = "data.test"

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        self.videos = build.build_videos(config, self.key)
        self.names, self.num_classes = known_classes(config, self.videos)
        labelled = self.videos.labels[self.videos.labels >= 0]
        if len(labelled):  # a list may leave all labels out; then there is no accuracy, but scores
            check_labels(self.videos, self.num_classes, key=self.key)
        self.folder = Path(config.output) / "test"
        if config.test.weights or "train" not in config.stages:
            weights_to_use(config)

    def run(self, log: RunLog) -> None:
        config, world = self.config, self.world
        if (self.folder / "metrics.json").exists():
            log.say(f"test: done already, {self.folder / 'metrics.json'}")
            return
        name, arguments = build.model_arguments(config, self.num_classes)
        model = build.build_model(name, arguments, seed=config.seed)
        log.say(str(build.load_for_use(model, weights_to_use(config), key="test")))
        model = model.to(world.device)
        views = (config.test.clips, config.test.crops)
        scores = score_videos(
            config, model, self.videos, clips=views[0], crops=views[1], world=world, log=log, what="test"
        )
        if not world.is_main:
            return
        metrics = scores.write(self.folder, self.videos, views=views)
        for path, reason in zip(metrics["missing"], metrics["missing_reasons"]):
            log.say(f"not scored: {path}: {reason}")
        log.say(
            f"test: {accuracy_text(metrics)}, {metrics['videos']} of {metrics['videos_expected']} videos "
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
            weights_to_use(config)

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
        config, weights = self.config, weights_to_use(self.config)
        if config.task == "pretrain":
            model = build.build_encoder(config)
        else:
            num_classes = build.number_of_classes(config, build.class_names(config, self.videos))
            name, arguments = build.model_arguments(config, num_classes)
            model = build.build_model(name, arguments, seed=config.seed)
        log.say(str(build.load_for_use(model, weights, key="features", from_mae=True)))
        return model


def score_videos(config, model, videos, *, clips: int, crops: int, world: World, log: RunLog, what: str) -> ViewScores:
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


def known_classes(config: Config, videos: VideoList) -> tuple[list[str], int | None]:
    """(class names, class count); names of another number than the model's classes are left out. None: no classes."""
    if config.task == "pretrain":
        return [], None
    names = build.class_names(config, videos)
    num_classes = build.number_of_classes(config, names)
    return (names if len(names) == num_classes else []), num_classes


def say_classes(log: RunLog, names: list[str], config: Config) -> None:
    if config.task == "classify" and config.data.classes and not names:
        log.say(f"{config.data.classes} names another number of classes than the model has: names are left out")


def weights_to_use(config: Config) -> Path:
    """Weights for test and features: test.weights, or the run's last. Raises UserError."""
    try:
        return weights_file(config.test.weights or config.output)
    except ValueError as e:
        raise UserError(f"test.weights: {e}; train first, or set test.weights") from e


def accuracy_text(accuracy: dict) -> str:
    if accuracy["top1"] is None:
        return "no labels"
    return f"top-1 {accuracy['top1']:.2f}, top-5 {accuracy['top5']:.2f}"

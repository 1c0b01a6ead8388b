"""The stages "test" and "features", and what they share with validation."""

import contextlib
import json
import shutil
from functools import partial
from pathlib import Path

from torch import nn

from hiera_video import build
from hiera_video.config import Config
from hiera_video.data.annotations import VideoList, check_labels
from hiera_video.data.sampling import ClipSampler
from hiera_video.distributed import World
from hiera_video.errors import RunStopped, UserError
from hiera_video.evaluate import evaluate
from hiera_video.features import PARTS, FeatureFiles, read_manifest, write_manifest
from hiera_video.files import sha256_of
from hiera_video.log import RunLog
from hiera_video.models.weights import classes_of, read_weights, weights_file
from hiera_video.scores import ViewScores, read_parts, write_json


class TestStage:
    __test__ = False  # not a test case, whatever its name
    key = "data.test"

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        self.videos = build.build_videos(config, self.key)
        self.lists = {self.key: self.videos}
        self.names, self.num_classes = known_classes(config, self.videos)
        labelled = self.videos.labels[self.videos.labels >= 0]
        if len(labelled):  # a list may leave all labels out; then there is no accuracy, but scores
            check_labels(self.videos, self.num_classes, key=self.key)
        self.folder = Path(config.output) / "test"
        self.sample = build.test_sampler(config)
        if config.test.weights or "train" not in config.stages:
            weights_to_use(config)

    def run(self, log: RunLog) -> None:
        config, world = self.config, self.world
        weights = weights_to_use(config)
        card = world.on_main(lambda: protocol_card(config, self.videos, weights))
        if world.on_main(lambda: self._is_done(card, log)):
            return
        name, arguments = build.model_arguments(config, self.num_classes)
        model = build.build_model(name, arguments, seed=config.seed)
        log.say(str(build.load_for_use(model, weights, key="test")))
        for line in card_lines(card):
            log.say(line)
        scores = score_videos(
            *(config, model.to(world.device), self.videos),
            sample=self.sample,
            clips=None if config.test.clip_sampler else config.test.clips,
            crops=config.test.crops,
            world=world,
            log=log,
            what="test",
            parts=self.folder / "parts",
            card=card,
        )
        coverage = world.on_main(lambda: self._write(scores, card, log))
        if not self._suffices(coverage):
            limit = f"less than test.min_coverage={config.test.min_coverage}" if coverage else "none could be read"
            raise RunStopped(
                f"{coverage:.1%} of the test videos were scored, {limit}; the same command tries the missing ones again"
            )

    def _suffices(self, coverage: float) -> bool:
        return coverage > 0 and coverage >= self.config.test.min_coverage

    def _is_done(self, card: dict, log: RunLog) -> bool:
        """If not, nothing is left that could pass for a result."""
        file, parts = self.folder / "metrics.json", self.folder / "parts"
        if not file.exists():
            return False
        metrics, tested = json.loads(file.read_text()), json.loads((self.folder / "protocol.json").read_text())
        if tested["weights"] != card["weights"]:
            log.say("test: the weights are others than those that were tested; testing again")
        elif not self._suffices(metrics["videos"] / metrics["videos_expected"]):
            log.say(f"test: {len(metrics['missing'])} videos were missing; trying them again")
        else:
            shutil.rmtree(parts, ignore_errors=True)  # a kill may have come before it
            log.say(f"test: done already, {file}")
            return True
        file.unlink()
        return False

    def _write(self, scores: ViewScores, card: dict, log: RunLog) -> float:
        """Returns the share of the videos that were scored."""
        counts = {"listed": len(self.videos), "scored": len(scores.rows), "missing": len(scores.bad)}
        metrics = scores.write(self.folder, self.videos, names=self.names, protocol={**card, "videos": counts})
        coverage = metrics["videos"] / metrics["videos_expected"]
        if self._suffices(coverage):
            shutil.rmtree(self.folder / "parts", ignore_errors=True)
        for path, reason in zip(metrics["missing"], metrics["missing_reasons"]):
            log.say(f"not scored: {path}: {reason}")
        log.say(
            f"test: {accuracy_text(metrics)}, {metrics['videos']} of {metrics['videos_expected']} videos "
            f"x {metrics['views'][0] or 'all'} clips x {metrics['views'][1]} crops; {self.folder}"
        )
        if "view_top1" in metrics:
            log.say(
                f"mean over classes {metrics['mean_class']:.2f}; single views: top-1 {metrics['view_top1']:.2f}, "
                f"top-5 {metrics['view_top5']:.2f}; by class in classes.csv, by number of views in metrics.json"
            )
        return coverage


class FeaturesStage:
    """Features of a list, or of the rows k, k + n, k + 2 n .. of it, where n jobs share it (`shard`, k of n)."""

    key = "features.videos"

    def __init__(self, config: Config, world: World, folder: Path, *, shard: tuple[int, int] = (0, 1)):
        self.config, self.world, self.folder, self.shard = config, world, folder, shard
        self.videos = build.build_videos(config, self.key)
        self.lists = {self.key: self.videos}
        if config.test.weights or "train" not in config.stages:
            weights_to_use(config)

    def run(self, log: RunLog) -> None:
        config, world = self.config, self.world
        manifest = self.folder / "manifest.csv" if self.shard == (0, 1) else self._shard_manifest(self.shard[0])
        weights = weights_to_use(config)
        world.on_main(lambda: self._claim(weights))
        if world.on_main(manifest.exists):
            log.say(f"features: done already, {manifest}")
            return
        model = self._model(weights, log).to(world.device).eval()
        options = config.features
        files = FeatureFiles(self.folder, self.videos, dtype=options.dtype, average=options.average)
        rows = list(range(self.shard[0], len(self.videos), self.shard[1]))
        world.on_main(files.clear_leftovers)
        left = world.on_main(lambda: [row for row in rows if not files.is_done(row)])
        if len(left) < len(rows):
            log.say(f"features: {len(rows) - len(left)} of {len(rows)} videos are done already")
        evaluate(
            partial(build.predict_features, model, options.stages, options.pool_maps),
            build.features_loader(config, self.videos, left, files.clips_done, world=world),
            files,
            world=world,
            mean=config.data.mean,
            std=config.data.std,
            views_per_forward=config.test.views_per_forward,
            precision=config.test.precision,
            compiled=config.test.compile,
            total=len(left),
            what="features",
            log=log,
        )
        files.write_manifest(world, rows, manifest)
        world.on_main(lambda: self._finish(manifest, log))

    def _claim(self, weights: Path) -> None:
        """Raises UserError where the folder's features are of something else. Jobs that share the list share it."""
        made_of = {"weights": sha256_of(weights), "rows of the list": self.videos.sha256(), "shards": self.shard[1]}
        stored = self.folder / "made_of.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        before = json.loads(stored.read_text()) if stored.exists() else made_of
        other = [what for what in made_of if before[what] != made_of[what]]
        if other:
            raise UserError(f"{self.folder} holds features of other {other[0]}; remove it, or choose another folder")
        write_json(stored, made_of, shared=True)

    def _finish(self, manifest: Path, log: RunLog) -> None:
        lines = read_manifest(manifest.parent)
        for line in lines:
            if line["status"] != "ok":
                log.say(f"no features: {line['path']}: {line['status']}")
        log.say(f"features of {sum(line['status'] == 'ok' for line in lines)} of {len(lines)} videos: {manifest}")
        count = self.shard[1]
        parts = [self._shard_manifest(k) for k in range(count)]
        if count > 1 and all(part.exists() for part in parts):  # the last job puts them together
            shards = [[list(line.values()) for line in read_manifest(part.parent)] for part in parts]
            whole = [shards[row % count][row // count] for row in range(len(self.videos))]
            write_manifest(self.folder / "manifest.csv", whole)
            log.say(f"all {count} shards are done: {self.folder / 'manifest.csv'}")
        with contextlib.suppress(OSError):  # where other jobs still have parts
            (self.folder / PARTS).rmdir()

    def _shard_manifest(self, k: int) -> Path:
        return shard_folder(self.folder, k, self.shard[1]) / "manifest.csv"

    def _model(self, weights: Path, log: RunLog) -> nn.Module:
        """The classifier that the weights belong to; of a masked autoencoder, its encoder."""
        config = self.config
        if config.task == "pretrain":
            model = build.build_encoder(config)
        else:
            num_classes = config.model.num_classes or classes_of(read_weights(weights)[0])
            if num_classes is None:  # PyTorchVideo's heads differ
                num_classes = build.number_of_classes(config, build.class_names(config, self.videos))
            name, arguments = build.model_arguments(config, num_classes)
            model = build.build_model(name, arguments, seed=config.seed)
        log.say(str(build.load_for_use(model, weights, key="features", from_mae=True)))
        return model


def shard_folder(folder: Path, k: int, count: int) -> Path:
    return folder / "shards" / f"{k}_of_{count}"


def score_videos(
    config: Config,
    model: nn.Module,
    videos: VideoList,
    *,
    sample: ClipSampler,
    clips: int | None,
    crops: int,
    world: World,
    log: RunLog,
    what: str,
    parts: Path | None = None,
    card: dict | None = None,
) -> ViewScores:
    """Scores of all ranks, on rank 0.

    clips: that `sample` makes of a video; None if that is its choice. parts: where scores are kept while it goes on, and taken
    up again under the same card.
    """
    before = read_parts(parts, card=card) if parts is not None and world.is_main else {}
    done = world.share(set(before))
    if done:
        log.say(f"{what}: {len(done)} of {len(videos)} videos are scored already")
    scores = ViewScores(clips, crops, parts=parts, part_every_s=config.test.save_every_s)
    rows = [row for row in range(len(videos)) if row not in done]
    evaluate(
        partial(build.predict_logits, model.eval()),
        build.test_loader(config, videos, rows, sample=sample, crops=crops, world=world),
        scores,
        world=world,
        mean=config.data.mean,
        std=config.data.std,
        views_per_forward=config.test.views_per_forward,
        precision=config.test.precision,
        compiled=config.test.compile,
        total=len(rows),
        what=what,
        log=log,
    )
    scores.flush()
    return scores.merged(world, before)


def protocol_card(config: Config, videos: VideoList, weights: Path) -> dict:
    """Everything that a test's figures depend on, without anything that they do not."""
    data, test = config.data, config.test
    return {
        "list": {"file": Path(videos.source).name, "sha256": videos.sha256(), "videos": len(videos)},
        "views": {
            "clips": "the sampler's" if test.clip_sampler else test.clips,
            "crops": test.crops,
            "average": "softmax",
        },
        "clip": build.describe_test_clips(config),
        "frame_rate": "sampled by time; a variable rate is laid on an even grid",
        "resize": f"short side {test.short_side or data.crop_size}, bilinear, no antialias, 8 bit, from the full frame",
        "crop": f"{data.crop_size} x {data.crop_size}, {'centre' if test.crops == 1 else 'three along the long side'}",
        "normalisation": {"mean": list(data.mean), "std": list(data.std)},
        "decoder": data.decoder,
        "model": config.model.name,
        "weights": {"file": "/".join(weights.parts[-2:]), "sha256": sha256_of(weights)},
        "precision": test.precision,
    }


def card_lines(card: dict) -> list[str]:
    """For the log."""
    views, weights = card["views"], card["weights"]
    return [
        f"protocol: {card['list']['videos']} videos of {card['list']['file']} (sha256 {card['list']['sha256'][:12]}), "
        f"{views['clips']} clips x {views['crops']} crops, mean of {views['average']}",
        f"protocol: {card['clip']}; {card['resize']}; crops of {card['crop']}; {card['frame_rate']}",
        f"protocol: {card['model']}, {weights['file']} (sha256 {weights['sha256'][:12]}), {card['precision']}, "
        f"decoder {card['decoder']}",
    ]


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
        return "no accuracy (no scored video has a label)"
    return f"top-1 {accuracy['top1']:.2f}, top-5 {accuracy['top5']:.2f}"

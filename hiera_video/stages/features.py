"""The stage "features": clip features of every video of a list."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hiera_video import build
from hiera_video.config import Config
from hiera_video.data.format import ClipFormat
from hiera_video.evaluation.detector_files import video_ids, write_index
from hiera_video.evaluation.feature_folder import MADE_OF
from hiera_video.evaluation.features import FeatureFiles, read_manifest, write_manifest
from hiera_video.evaluation.layouts import ARRAYS, PARTS, WHOLE
from hiera_video.evaluation.loop import evaluate, predict_features
from hiera_video.models.baselines import PYTORCHVIDEO_MODELS
from hiera_video.models.onnx_model import SUFFIX as ONNX_SUFFIX
from hiera_video.models.onnx_model import OnnxModel
from hiera_video.models.trunk import Trunk
from hiera_video.models.weights import classes_of, read_weights
from hiera_video.stages.inputs import Input, build_classes, weights_to_use
from hiera_video.stages.protocol import describe_dial
from hiera_video.system.distributed import World
from hiera_video.system.errors import RunStopped, UserError
from hiera_video.system.files import sha256_of, write_json
from hiera_video.system.log import RunLog


@dataclass(frozen=True)
class Shard:
    """The rows number, number + count, number + 2 count, .. of a list that `count` jobs share."""

    number: int
    count: int

    def folder(self, output: Path) -> Path:
        """Of the job, in the output of all."""
        return output / "shards" / f"{self.number}_of_{self.count}"


WHOLE_LIST = Shard(0, 1)


class FeaturesStage:
    def __init__(
        self,
        config: Config,
        world: World,
        given: Input,
        folder: Path,
        *,
        shard: Shard = WHOLE_LIST,
    ):
        self.config = config
        self.world = world
        self.arrays = config.features.layout in ARRAYS
        # Detectors know videos, whose segments are the ground truth.
        self.videos = given.videos.whole_videos() if self.arrays else given.videos
        self.segments = given.videos
        self.folder = folder
        self.shard = shard
        stages = list(config.features.stages)
        if stages and config.model.name in PYTORCHVIDEO_MODELS:
            raise UserError(f"features.stages={stages}: PyTorchVideo's models have none")
        build.check_dial(config)
        if self.arrays:
            video_ids(self.videos)  # for its error

    def run(self, log: RunLog) -> None:
        config = self.config
        world = self.world
        weights = world.on_main(lambda: weights_to_use(config))
        manifest = self._manifest(self.shard)
        world.on_main(lambda: self._claim(weights))
        if world.on_main(lambda: self._is_done(manifest, log)):
            return
        model = self._model(weights, log).to(world.device).eval()
        options = config.features
        if isinstance(model, Trunk) and max(options.stages, default=0) > len(model.stage_ends):
            raise UserError(
                f"features.stages={list(options.stages)}: {config.model.name} has "
                f"{len(model.stage_ends)} of them"
            )
        files = FeatureFiles(
            self.folder,
            self.videos,
            layout=options.layout,
            dtype=options.dtype,
            average=options.average,
            pack_bytes=options.pack_mib << 20,
        )
        rows = list(range(self.shard.number, len(self.videos), self.shard.count))
        left = world.on_main(lambda: files.take_up(rows))
        if len(left) < len(rows):
            log.say(f"features: {len(rows) - len(left)} of {len(rows)} videos are done already")
        evaluate(
            predict_features(
                model,
                options.stages,
                pool_maps=options.pool_maps,
                dial=build.token_dial(config),
            ),
            build.features_loader(config, self.videos, left, files.clips_done, world=world),
            files,
            build.forward(config, world),
            world=world,
            progress=log.progress(len(left), what="features", unit="videos"),
        )
        files.finish(world, rows, manifest)
        world.on_main(lambda: self._finish(manifest, log))

    def _is_done(self, manifest: Path, log: RunLog) -> bool:
        if not manifest.exists():
            return False
        failed = [line for line in read_manifest(manifest.parent) if line["status"] != "ok"]
        if failed:
            log.say(f"features: {len(failed)} videos were missing; trying them again")
            return False
        log.say(f"features: done already, {manifest}")
        return True

    def _claim(self, weights: Path) -> None:
        """Raises UserError where the folder's features are of something else.

        Jobs that share the list share the folder.
        """
        made_of = {
            "weights": sha256_of(weights),
            "rows of the list": self.videos.sha256(),
            "shards": self.shard.count,
        }
        if self.config.test.keep_units < 1:
            made_of["share of the mask units"] = describe_dial(self.config)
        stored = self.folder / MADE_OF
        self.folder.mkdir(parents=True, exist_ok=True)
        before = json.loads(stored.read_text()) if stored.exists() else made_of
        every = made_of.keys() | before.keys()
        other = [what for what in sorted(every) if before.get(what) != made_of.get(what)]
        if other:
            raise UserError(
                f"{self.folder} holds features of other {other[0]}; "
                "remove it, or choose another folder"
            )
        write_json(stored, made_of, shared=True)

    def _finish(self, manifest: Path, log: RunLog) -> None:
        """Says what came of it; the last of several jobs puts their manifests together.

        Raises RunStopped where too few have features.
        """
        lines = read_manifest(manifest.parent)
        failed = [line for line in lines if line["status"] != "ok"]
        for line in failed:
            log.say(f"no features: {line['path']}: {line['status']}")
        good = len(lines) - len(failed)
        log.say(f"features of {good} of {len(lines)} videos: {manifest}")
        count = self.shard.count
        of_jobs = [self._manifest(Shard(k, count)) for k in range(count)]
        if count > 1 and all(file.exists() for file in of_jobs):
            rows_of_jobs = [read_manifest(file.parent) for file in of_jobs]
            joined = []
            for row in range(len(self.videos)):
                joined.append(list(rows_of_jobs[row % count][row // count].values()))
            packed = self.config.features.layout == "packed"
            write_manifest(self.folder / "manifest.csv", joined, packed=packed)
            log.say(f"all {count} shards are done: {self.folder / 'manifest.csv'}")
        if self.arrays:
            self._write_index()
        if all(file.exists() for file in of_jobs):  # else other jobs still write there
            for room in (self.folder / PARTS / WHOLE, self.folder / PARTS):
                with contextlib.suppress(OSError):
                    room.rmdir()
        limit = self.config.features.min_coverage
        if good < limit * len(lines):
            raise RunStopped(
                f"{good} of {len(lines)} videos have features, less than "
                f"features.min_coverage={limit}; the same command tries the missing ones again"
            )

    def _write_index(self) -> None:
        config = self.config
        size = config.test.short_side or config.data.crop_size
        facts = {
            "layout": config.features.layout,
            "stride_frames": config.features.stride_frames,
            "window_frames": config.data.num_frames,
            "resize": f"short side {size}, centre crop of {config.data.crop_size}",
            "model": config.model.name,
            **json.loads((self.folder / MADE_OF).read_text()),
        }
        write_index(self.folder, self.videos, self.segments, facts)

    def _manifest(self, shard: Shard) -> Path:
        folder = self.folder if shard == WHOLE_LIST else shard.folder(self.folder)
        return folder / "manifest.csv"

    def _model(self, weights: Path, log: RunLog) -> nn.Module:
        """The classifier that the weights belong to; of a masked autoencoder, its encoder."""
        config = self.config
        if weights.suffix == ONNX_SUFFIX:
            return self._onnx_model(weights)
        if config.task == "pretrain":
            model = build.build_encoder(config)
        else:
            try:
                count = config.model.num_classes or classes_of(read_weights(weights)[0])
            except ValueError as e:
                raise UserError(f"test.weights: {e}") from e
            if count is None:  # PyTorchVideo's heads differ
                count = build_classes(config, self.videos).count
            model = build.build_model(build.model_spec(config, count), seed=config.seed)
        log.say(str(build.load_for_use(model, weights, key="features", from_mae=True)))
        return model

    def _onnx_model(self, file: Path) -> OnnxModel:
        """Raises UserError where the config's clips, or what it asks for, are not the file's."""
        data = self.config.data
        clip = (data.num_frames, data.crop_size, data.crop_size)
        try:
            model = OnnxModel(file, device=self.world.device.type)
        except ValueError as e:
            raise UserError(f"test.weights: {e}") from e
        if model.input_size != clip:
            raise UserError(
                f"test.weights: {file} takes clips of {model.input_size}, not of {clip} "
                "(data.num_frames x data.crop_size x data.crop_size)"
            )
        own = ClipFormat.from_metadata(model.metadata)
        fixed = {
            "data.mean": (list(data.mean), list(own.mean)),
            "data.std": (list(data.std), list(own.std)),
            "test.keep_units": (self.config.test.keep_units, 1.0),
            "test.precision": (self.config.test.precision, "float32"),
        }
        for key, (asked, has) in fixed.items():
            if asked != has:
                raise UserError(f"{key}={asked}: {file} is exported with {has}")
        wanted = ["features", *(f"stage{stage}" for stage in self.config.features.stages)]
        missing = [name for name in wanted if name not in model.outputs]
        if missing:
            raise UserError(
                f"test.weights: {file} gives no {missing[0]}, but {', '.join(model.outputs)} "
                "(maps: export it with --maps)"
            )
        return model

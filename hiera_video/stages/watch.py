"""Looks at the weights while a model is trained. They change nothing.

Fine-tuning is validated on data.val. Pretraining is probed: nearest neighbours among the encoder's
features, and pictures of what the masked autoencoder predicts.
"""

from pathlib import Path

from torch import Tensor, nn

from hiera_video import build
from hiera_video.config import Config
from hiera_video.data.lists import VideoList
from hiera_video.data.transforms import normalise
from hiera_video.evaluation.loop import evaluate, predict_features
from hiera_video.evaluation.probe import FeatureBank, nearest_neighbours, spread_rows
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.models.weights import load_weights
from hiera_video.pictures.reconstruct import reconstruct, sheet
from hiera_video.stages.protocol import accuracy_text
from hiera_video.stages.test import Views, score_videos
from hiera_video.system.distributed import World
from hiera_video.system.log import RunLog

DRAWN = 4  # videos whose reconstructions are drawn


class Validation:
    """One centre view of every video of data.val."""

    def __init__(
        self, config: Config, spec: build.ModelSpec, videos: VideoList, world: World, log: RunLog
    ):
        self._config = config
        self._spec = spec
        self._videos = videos
        self._world = world
        self._log = log

    def look(self, step: int, weights: dict[str, Tensor]) -> float:
        """Returns the top-1, in percent; 0 on ranks other than 0."""
        model = build.build_model(self._spec, seed=self._config.seed)
        load_weights(model, weights, strict=True)
        scores = score_videos(
            self._config,
            model.to(self._world.device),
            self._videos,
            Views(build.clip_format(self._config).uniform(1), 1, 1),
            world=self._world,
            log=self._log,
            what="val",
        )
        accuracy = scores.accuracy(self._videos)
        count = len(scores.rows)
        if self._world.is_main:
            self._log.metrics({"split": "val", "step": step, **accuracy, "videos": count})
            self._log.say(
                f"val at step {step}: {accuracy_text(accuracy)} of {count} videos, one view each"
            )
        return accuracy["top1"] or 0.0


class Probe:
    """Nearest neighbours of data.val among data.train, and reconstructions of data.val."""

    def __init__(
        self,
        config: Config,
        spec: build.ModelSpec,
        videos: VideoList,
        val_videos: VideoList,
        world: World,
        log: RunLog,
    ):
        self._config = config
        self._spec = spec
        self._videos = videos
        self._val_videos = val_videos
        self._world = world
        self._log = log

    def look(self, step: int, weights: dict[str, Tensor]) -> None:
        if self._world.is_main:
            self._draw(step, weights)
        encoder = build.build_encoder(self._config)
        load_weights(encoder, weights, strict=False)
        encoder = encoder.to(self._world.device).eval()
        train_features, labels = self._features(encoder, self._videos)
        queries, truth = self._features(encoder, self._val_videos)
        if self._world.is_main and len(train_features) and len(queries):
            votes = nearest_neighbours(train_features, labels, queries)
            top1 = 100 * (votes.argmax(1) == truth).double().mean().item()
            count = len(truth)
            self._log.metrics({"split": "probe", "step": step, "knn_top1": top1, "videos": count})
            self._log.say(
                f"probe at step {step}: nearest neighbours {top1:.2f} top-1, "
                f"{count} videos among {len(labels)}"
            )

    def _features(self, encoder: nn.Module, videos: VideoList) -> tuple[Tensor, Tensor]:
        """(features [N, dim], labels [N]) of some videos, on rank 0."""
        config = self._config
        some = videos.subset(spread_rows(videos, config.mae.probe_videos))
        bank = FeatureBank()
        sample = build.clip_format(config).uniform(1)
        rows = list(range(len(some)))
        evaluate(
            predict_features(encoder),
            build.test_loader(config, some, rows, sample=sample, crops=1, world=self._world),
            bank,
            build.forward(config, self._world, compile=False),
            world=self._world,
            progress=self._log.progress(len(some), what="probe", unit="videos"),
        )
        return bank.merged(self._world, some)

    def _draw(self, step: int, weights: dict[str, Tensor]) -> None:
        """The first videos of data.val, one picture each, in reconstructions/."""
        config = self._config
        device = self._world.device
        folder = Path(config.output) / "reconstructions"
        folder.mkdir(exist_ok=True)
        first = self._val_videos.subset(list(range(min(DRAWN, len(self._val_videos)))))
        model = build.build_model(self._spec, seed=config.seed)
        load_weights(model, weights, strict=True)
        model = model.to(device).eval()
        assert isinstance(model, MaskedAutoencoder)  # task=pretrain
        mean = config.data.mean
        std = config.data.std
        batches = build.test_loader(
            config,
            first,
            list(range(len(first))),
            sample=build.clip_format(config).uniform(1),
            crops=1,
            world=World(0, 1, device),  # this rank alone
        )
        for batch in batches:
            if batch["clip"] is None:
                continue
            for row, clip in zip(batch["index"].tolist(), batch["clip"]):
                clip = normalise(clip.to(device), mean, std)
                result = reconstruct(
                    model,
                    clip,
                    mask_ratio=config.mae.mask_ratio,
                    decoder_keep=config.mae.decoder_keep,
                    seed=row,
                    mean=mean,
                    std=std,
                )
                sheet(result).save(folder / f"step_{step:09d}_{row}.png")
        self._log.say(f"reconstructions of {len(first)} videos: {folder}")

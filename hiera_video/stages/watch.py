"""Looks at the weights while a model is trained. They change nothing.

Fine-tuning is validated on data.val. Pretraining is probed: what the masked autoencoder explains
beyond predictors without a model, how far features tell videos apart, what simple classifiers make
of them, and pictures of what it predicts.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from hiera_video import build
from hiera_video.config import Config, MAEConfig
from hiera_video.data.lists import VideoList
from hiera_video.data.transforms import normalise
from hiera_video.evaluation.eyes import (
    NAMES,
    PREDICTORS,
    PositionMeans,
    clip_losses,
    explained,
    spread_figures,
    spread_tokens,
    warning,
)
from hiera_video.evaluation.loop import Predict, evaluate
from hiera_video.evaluation.probe import Bank, Gathered, nearest_neighbours, ridge, spread_rows
from hiera_video.models.classifier import Classifier
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.models.weights import load_weights
from hiera_video.pictures.reconstruct import reconstruct, sheet
from hiera_video.stages.protocol import accuracy_text
from hiera_video.stages.test import Views, score_videos
from hiera_video.system.distributed import World
from hiera_video.system.log import RunLog
from hiera_video.training.tasks import HiddenDraws, hidden_draws

DRAWN = 4  # videos whose reconstructions are drawn
PROBES = ("knn_top1", "linear_top1", "linear_in_time_top1")


AT_CHANCE = (
    "what usually helps: init.weights of a pretraining, a longer run, another optim.lr, and "
    "model.head_pool=time where the order of frames tells the classes; docs/training.md"
)


class ProbeLists(NamedTuple):
    """train: what is pretrained on. labelled: what the probes learn from. val: held-out videos."""

    train: VideoList
    labelled: VideoList
    val: VideoList


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

    def begin(self, step: int, weights: dict[str, Tensor]) -> None:
        """Nothing is looked at before the first step."""

    def look(self, step: int, weights: dict[str, Tensor], *, progress: float = 0.0) -> float:
        """Returns the top-1, or of several labels the mAP, in percent; 0 on ranks other than 0."""
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
            if accuracy["top1"] is None:
                return accuracy.get("map") or 0.0
            chance = 100 / self._spec.arguments["num_classes"]
            if progress == 1 and at_chance(accuracy["top1"], chance, count):
                self._log.say(
                    f"WARNING: top-1 is no better than chance ({chance:.2f}); {AT_CHANCE}"
                )
        return accuracy["top1"] or 0.0


class Probe:
    """What the masked autoencoder has learned (eyes.py), and reconstructions of data.val."""

    def __init__(
        self,
        config: Config,
        spec: build.ModelSpec,
        lists: ProbeLists,
        world: World,
        log: RunLog,
    ):
        self._config = config
        self._spec = spec
        self._lists = lists
        self._world = world
        self._log = log
        self._means: Tensor | None = None  # [N, P], the mean patch of every place
        self._first: dict[str, Any] | None = None  # the figures before the first step

    def begin(self, step: int, weights: dict[str, Tensor]) -> None:
        """Before the first step; a run that goes on after `step` finds the figures in its log."""
        rows = self._log.rows("probe") if self._world.is_main else []
        at_start = [row for row in rows if row["step"] == 0 and "rank" in row]
        self._first = self._world.share(at_start[0] if at_start else None)
        if self._first is None and step == 0:
            self.look(0, weights)

    def look(self, step: int, weights: dict[str, Tensor], *, progress: float = 0.0) -> None:
        """progress: share of the run that is done."""
        if self._world.is_main and step:
            self._draw(step, weights)
        labelled, held_out = self._outputs(weights)
        if held_out is None:
            return
        row: dict[str, Any] = {"split": "probe", "step": step, "videos": len(held_out.labels)}
        row |= figures(labelled, held_out)
        if self._first is None and step == 0:
            self._first = row
        self._log.metrics(row)
        for line in probe_lines(row, self._first):
            self._log.say(line)
        wrong = warning(row, self._first, progress=progress)
        if wrong:
            self._log.say(f"WARNING: {wrong}")

    def _outputs(self, weights: dict[str, Tensor]) -> tuple[Gathered | None, Gathered | None]:
        """Of labelled videos to learn from and of data.val, on rank 0."""
        config = self._config
        device = self._world.device
        encoder = build.build_encoder(config)
        load_weights(encoder, weights, strict=False)
        model = build.build_model(self._spec, seed=config.seed)
        load_weights(model, weights, strict=True)
        encoder = encoder.to(device).eval()
        model = model.to(device).eval()
        assert isinstance(encoder, Classifier) and isinstance(model, MaskedAutoencoder)
        if self._means is None:
            means = PositionMeans()
            train = self._lists.train
            some = train.subset(spread_rows(train, config.mae.probe_videos, labelled=False))
            self._evaluate(lambda clips, _: means.add(model, clips), some, "patches")
            self._means = means.table(self._world)
        labelled = None
        learn_from = self._lists.labelled
        if (learn_from.labels >= 0).any():
            some = learn_from.subset(spread_rows(learn_from, config.mae.probe_videos))
            labelled = self._evaluate(lambda clips, _: seen_by(encoder, clips), some, "probe")

        def both(clips: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
            draws = hidden_draws(model, config.mae, seeds).to(device)
            losses = losses_of(model, config.mae, clips, draws, self._means)
            return seen_by(encoder, clips) | losses

        val = self._lists.val
        some = val.subset(spread_rows(val, config.mae.probe_videos, labelled=False))
        return labelled, self._evaluate(both, some, "probe")

    def _evaluate(self, predict: Predict, videos: VideoList, what: str) -> Gathered | None:
        """One centre view of each video; the outputs of all, on rank 0."""
        config = self._config
        bank = Bank()
        evaluate(
            predict,
            build.test_loader(
                config,
                videos,
                list(range(len(videos))),
                sample=build.clip_format(config).uniform(1),
                crops=1,
                world=self._world,
            ),
            bank,
            build.forward(config, self._world, compile=False),
            world=self._world,
            progress=self._log.progress(len(videos), what=what, unit="videos"),
        )
        return bank.merged(self._world, videos)

    def _draw(self, step: int, weights: dict[str, Tensor]) -> None:
        """The first videos of data.val, one picture each, in reconstructions/."""
        config = self._config
        if config.model.target == "hog":
            return  # which is no picture
        device = self._world.device
        folder = Path(config.output) / "reconstructions"
        folder.mkdir(exist_ok=True)
        val = self._lists.val
        first = val.subset(list(range(min(DRAWN, len(val)))))
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
                    tubes=config.mae.mask == "tube",
                    decoder_keep=config.mae.decoder_keep,
                    seed=row,
                    mean=mean,
                    std=std,
                )
                sheet(result).save(folder / f"step_{step:09d}_{row}.png")
        self._log.say(f"reconstructions of {len(first)} videos: {folder}")


def at_chance(top1: float | None, chance: float, videos: int) -> bool:
    """Percent; within two standard errors of what guessing gives on so many videos, or below."""
    if top1 is None:
        return False
    error = math.sqrt(chance * (100 - chance) / videos)
    return top1 <= chance + 2 * error


def seen_by(encoder: Classifier, clips: Tensor) -> dict[str, Tensor]:
    """Pooled features [B, dim], their means over space in time order [B, t * dim], tokens."""
    features, maps = encoder.features_and_maps(clips)
    return {
        "features": features,
        "in_time": maps[-1].mean(dim=(2, 3)).flatten(1),
        "tokens": spread_tokens(maps[-1]),
    }


def losses_of(
    model: MaskedAutoencoder,
    config: MAEConfig,
    clips: Tensor,
    draws: HiddenDraws,
    means: Tensor | None,
) -> dict[str, Tensor]:
    """The model's loss of each clip, and that of predictors without a model: [B] each."""
    out = model(
        clips,
        mask_ratio=config.mask_ratio,
        noise=draws.units,
        decoder_keep=config.decoder_keep,
        decoder_noise=draws.patches,
    )
    visible = out.keep.nonzero()[:, 1].view(len(clips), -1)
    hidden = model.predicted_patches(visible, config.decoder_keep, draws.patches)
    return clip_losses(model, clips, out, hidden, means)


def figures(labelled: Gathered | None, held_out: Gathered) -> dict[str, float]:
    """Losses, the spread of the features and, where there are labels, probes in percent."""
    outputs = held_out.outputs
    row = {name: value.double().mean().item() for name, value in outputs.items() if value.ndim == 1}
    row["explained"] = explained(row)
    row |= spread_figures(outputs["features"], outputs["tokens"])
    has_label = held_out.labels >= 0
    if labelled is None or not has_label.any():
        return row
    truth = held_out.labels[has_label]

    def top1(scores: Tensor) -> float:
        return 100 * (scores.argmax(1) == truth).double().mean().item()

    known = labelled.outputs
    asked = {name: outputs[name][has_label] for name in ("features", "in_time")}
    labels = labelled.labels
    row["knn_top1"] = top1(nearest_neighbours(known["features"], labels, asked["features"]))
    row["linear_top1"] = top1(ridge(known["features"], labels, asked["features"]))
    row["linear_in_time_top1"] = top1(ridge(known["in_time"], labels, asked["in_time"]))
    return row


def probe_lines(row: Mapping[str, Any], first: Mapping[str, Any] | None) -> list[str]:
    """For the log: every figure and, in brackets, that before the first step, where it is known."""
    step = row["step"]
    if step == 0:
        first = None

    def beside(key: str, form: str) -> str:
        now = f"{NAMES[key]} {row[key]:{form}}"
        return now if first is None or key not in first else f"{now} ({first[key]:{form}})"

    predictors = [f"{NAMES[name]} {row[name]:.4f}" for name in PREDICTORS if name in row]
    spread = [beside("rank", ".1f"), beside("token_rank", ".1f")]
    spread += [beside("variance", ".2f"), beside("token_variance", ".2f")]
    probes = [beside(key, ".1f") for key in PROBES if key in row]
    brackets = "" if first is None else " (in brackets: before the first step)"
    lines = [
        f"probe at step {step}: loss {row['mae_loss']:.4f} on {row['videos']} held-out videos, "
        f"{row['explained']:.1%} explained; without a model: {', '.join(predictors)}",
        f"probe at step {step}{brackets}: {', '.join(spread)}",
    ]
    if probes:
        lines.append(f"probe at step {step}{brackets}, top-1: {', '.join(probes)}")
    return lines

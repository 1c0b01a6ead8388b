"""The stage "test": several views of every video of a list, each video exactly once."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video import build
from hiera_video.config import Config
from hiera_video.data.lists import VideoList
from hiera_video.data.sampling import ClipSampler
from hiera_video.evaluation.loop import evaluate, predict_logits
from hiera_video.evaluation.multilabel import DEFAULT, thresholds_of
from hiera_video.evaluation.score_files import read_parts, write_part, write_test
from hiera_video.evaluation.scores import DialPoint, ViewScores
from hiera_video.models.classifier import Classifier
from hiera_video.models.token_dial import TokenDial
from hiera_video.models.weights import read_weights
from hiera_video.stages.inputs import Input, weights_to_use
from hiera_video.stages.protocol import Card, accuracy_text, card_lines, protocol_card
from hiera_video.system.distributed import World
from hiera_video.system.errors import RunStopped
from hiera_video.system.log import RunLog


@dataclass(frozen=True)
class Views:
    """The views of a video that are scored."""

    sample: ClipSampler
    clips: int | None  # that `sample` makes of a video; None if that is its choice
    crops: int


@dataclass(frozen=True)
class Parts:
    """Where scores are kept while a test goes on, and taken up again under the same card."""

    folder: Path
    card: Card


class TestStage:
    __test__ = False  # not a test case, whatever its name

    def __init__(self, config: Config, world: World, given: Input):
        build.check_dial(config)
        self.config = config
        self.world = world
        self.videos = given.videos
        self.classes = given.classes
        self.folder = Path(config.output) / "test"
        self.sample = build.test_sampler(config)

    def run(self, log: RunLog) -> None:
        config = self.config
        world = self.world
        # Of rank 0 alone: `latest` may have moved on when another rank looks.
        weights = world.on_main(lambda: weights_to_use(config))
        card = world.on_main(lambda: protocol_card(config, self.videos, weights))
        if world.on_main(lambda: self._is_done(card, log)):
            return
        thresholds = None
        if config.classify.multilabel:
            metadata = world.on_main(lambda: read_weights(weights)[1])
            assert self.classes.count is not None  # task=classify has classes
            thresholds = thresholds_of(metadata, self.classes.count)
        spec = build.model_spec(config, self.classes.count)
        model = build.build_model(spec, seed=config.seed)
        log.say(str(build.load_for_use(model, weights, key="test")))
        for line in card_lines(card):
            log.say(line)
        clips = None if config.test.clip_sampler else config.test.clips
        scores = score_videos(
            config,
            model.to(world.device),
            self.videos,
            Views(self.sample, clips, config.test.crops),
            world=world,
            log=log,
            what="test",
            parts=Parts(self.folder / "parts", card),
            too=config.test.keep_units_too,
            thresholds=thresholds,
        )
        coverage = world.on_main(lambda: self._write(scores, card, log))
        if not self._suffices(coverage):
            limit = f"less than test.min_coverage={config.test.min_coverage}"
            raise RunStopped(
                f"{coverage:.1%} of the test videos were scored, "
                f"{limit if coverage else 'none could be read'}; "
                "the same command tries the missing ones again"
            )

    def _suffices(self, coverage: float) -> bool:
        return coverage > 0 and coverage >= self.config.test.min_coverage

    def _is_done(self, card: Card, log: RunLog) -> bool:
        """If not, nothing is left that could pass for a result."""
        file = self.folder / "metrics.json"
        if not file.exists():
            return False
        metrics = json.loads(file.read_text())
        tested = json.loads((self.folder / "protocol.json").read_text())
        if tested["weights"]["sha256"] != card["weights"]["sha256"]:
            log.say("test: the weights are others than those that were tested; testing again")
        elif not self._suffices(metrics["videos"] / metrics["videos_expected"]):
            log.say(f"test: {len(metrics['missing'])} videos were missing; trying them again")
        else:
            # A kill may have come before they were removed.
            shutil.rmtree(self.folder / "parts", ignore_errors=True)
            log.say(f"test: done already, {file}")
            return True
        file.unlink()
        return False

    def _write(self, scores: ViewScores, card: Card, log: RunLog) -> float:
        """Returns the share of the videos that were scored."""
        counts = {
            "listed": len(self.videos),
            "scored": len(scores.rows),
            "missing": len(scores.bad),
        }
        metrics = write_test(
            self.folder,
            scores,
            self.videos,
            names=self.classes.names,
            protocol={**card, "videos": counts},
        )
        coverage = metrics["videos"] / metrics["videos_expected"]
        if self._suffices(coverage):
            shutil.rmtree(self.folder / "parts", ignore_errors=True)
        for line in self._result_lines(metrics):
            log.say(line)
        return coverage

    def _result_lines(self, metrics: dict[str, Any]) -> list[str]:
        lines = []
        for path, reason in zip(metrics["missing"], metrics["missing_reasons"]):
            lines.append(f"not scored: {path}: {reason}")
        clips, crops = metrics["views"]
        lines.append(
            f"test: {accuracy_text(metrics)}, {metrics['videos']} of {metrics['videos_expected']} "
            f"videos x {clips or 'all'} clips x {crops} crops; {self.folder}"
        )
        for point in metrics.get("by_keep_units", []):
            lines.append(
                f"at {point['keep_units']:.0%} of the mask units, {point['gmacs']:.3g} GMACs a "
                f"view: {accuracy_text(point)}"
            )
        if "view_top1" in metrics:
            lines.append(
                f"balanced accuracy (mean over classes) {metrics['mean_class']:.2f}, "
                f"macro F1 {metrics['macro_f1']:.2f}; "
                f"single views: top-1 {metrics['view_top1']:.2f}, "
                f"top-5 {metrics['view_top5']:.2f}; "
                "by class in classes.csv, by number of views in metrics.json"
            )
        return lines


def score_videos(
    config: Config,
    model: nn.Module,
    videos: VideoList,
    views: Views,
    *,
    world: World,
    log: RunLog,
    what: str,
    parts: Parts | None = None,
    too: Sequence[float] = (),
    thresholds: Tensor | None = None,
) -> ViewScores:
    """Scores of all ranks, on rank 0.

    what: for the log. too: other shares of the mask units that are scored. thresholds: [classes],
    of several labels a video; default 0.5 each.
    """
    if thresholds is None and build.is_multilabel(config):
        thresholds = torch.full((config.model.num_classes or len(videos.classes),), DEFAULT)
    before = read_parts(parts.folder, card=parts.card) if parts and world.is_main else {}
    done = world.share(set(before))
    if done:
        log.say(f"{what}: {len(done)} of {len(videos)} videos are scored already")
    scores = ViewScores(
        views.clips,
        views.crops,
        dial=dial_points(config, model, too) if too else (),
        thresholds=thresholds,
        keep=partial(write_part, parts.folder) if parts else None,
        keep_every_s=config.test.save_every_s,
    )
    rows = [row for row in range(len(videos)) if row not in done]
    try:
        evaluate(
            predict_logits(model.eval(), build.token_dial(config), too),
            build.test_loader(
                config,
                videos,
                rows,
                sample=views.sample,
                crops=views.crops,
                world=world,
                # A video that failed in an earlier run may be whole again.
                quarantine=parts is None,
            ),
            scores,
            build.forward(config, world),
            world=world,
            progress=log.progress(len(rows), what=what, unit="videos"),
        )
    finally:
        scores.flush()
    return scores.merged(world, before)


def dial_points(config: Config, model: nn.Module, too: Sequence[float]) -> list[DialPoint]:
    """The test's own share of the mask units and the others, with the cost of each."""
    # Imported here: fvcore makes torch warn on stderr.
    from hiera_video.models.flops import count_macs

    assert isinstance(model, Classifier)  # checked when the test began
    device = next(model.parameters()).device
    clip = torch.zeros(1, model.in_chans, *model.input_size, device=device)
    points = []
    for share in (config.test.keep_units, *too):
        units = TokenDial(share).choose(model, clip, [0])
        inputs = (clip,) if units is None else (clip, units)
        points.append(DialPoint(share, count_macs(model, *inputs) / 1e9))
    return points

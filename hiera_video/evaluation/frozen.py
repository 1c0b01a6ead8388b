"""What cached features of two lists are worth to simple classifiers (probe.py).

The linear and attentive probes are trained at several rates in one pass; the rate is chosen on a
tenth of the training videos that is held out, never on the test videos.

Legend: N videos of a folder, R rates, L tokens of a map, dim channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hiera_video.data.lists import VideoList, read_videos
from hiera_video.evaluation.feature_folder import FeatureFolder
from hiera_video.evaluation.probe import (
    NEIGHBOURS,
    AttentiveProbe,
    LinearProbe,
    nearest_neighbours,
    train_probes,
)
from hiera_video.evaluation.scores import hits, ranked
from hiera_video.system.errors import UserError

HELD_OUT = 0.1  # of the training videos
LINEAR_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
ATTENTIVE_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
ATTENTIVE_BATCH = 64  # at most: tokens are large
WINDOWS = 16  # of a video that are scored at a time


@dataclass(frozen=True)
class ProbeSettings:
    stage: int = 4  # whose map the attentive probe sees
    neighbours: int = NEIGHBOURS
    epochs: int = 200  # of the linear probe
    attentive_epochs: int = 50
    batch_size: int = 256  # videos
    seed: int = 0


class RateScores(NamedTuple):
    """Scores of each rate's probe."""

    rates: Sequence[float]
    held_out: Tensor  # [R, held-out videos, classes]
    test: Tensor  # [R, test videos, classes]


class CachedFeatures:
    """The videos of a features folder that have a label. Raises UserError."""

    def __init__(self, folder: Path, labels: str, classes: Sequence[str] = ()):
        """labels: a list that has the folder's videos and their labels

        classes: what its labels are named by, where they are names; default: its own.
        """
        every = FeatureFolder(folder)
        videos = read_videos(labels, root="", key="--lists")
        if videos.header and videos.classes and classes:
            videos = videos.numbered_by(classes, key="--lists")
        self.classes = videos.classes
        if videos.has_segments and len(every.lines) != len(videos):
            raise UserError(f"{videos.source}: not the segments that {folder} is of")
        found = labels_of(every.lines, videos)
        good = [row for row in every.rows if found[row] >= 0]
        if not good:
            raise UserError(
                f"{folder}: {labels} has no label for any of its {len(every.lines)} videos"
            )
        self.folder = folder
        self._videos = every.subset(good)
        self._videos.check()
        self.weights = every.made_of().get("weights")
        self.labels = torch.tensor([found[row] for row in good])
        self.left_out = len(every.lines) - len(good)

    def __len__(self) -> int:
        return len(self._videos)

    def means(self) -> Tensor:
        """Of each video's windows: [N, dim]."""
        return torch.stack([self._videos.features(row).mean(0) for row in range(len(self))])

    def in_time(self, stage: int) -> Tensor:
        """A map's means over space, one after the other in time, of each video: [N, t * dim]."""
        rows = []
        for row in range(len(self)):
            maps = self._videos.read(row, f"stage{stage}")  # [windows, t, h, w, dim]
            rows.append(maps.mean((0, 2, 3)).flatten())
        return torch.stack(rows)

    def windows(self, row: int, stage: int, which: int | None = None) -> Tensor:
        """Tokens of one window, or of all: [windows, L, dim]."""
        return self._videos.read(row, f"stage{stage}", which).flatten(1, -2)

    def has_maps(self, stage: int) -> bool:
        shape = self._videos.shape(f"stage{stage}")
        return shape is not None and len(shape) > 1

    def shape(self) -> list[int] | None:
        """Of a video's mean."""
        return self._videos.shape("features")

    def count_windows(self, row: int) -> int:
        return self._videos.windows(row)


def labels_of(lines: list[dict[str, str]], videos: VideoList) -> list[int]:
    """Of each line of a manifest, by its path; -1 where the list has none.

    A list of segments names a video many times: its rows must be the manifest's.
    """
    if videos.has_segments:
        if [line["path"] for line in lines] != [videos.written(i) for i in range(len(videos))]:
            raise UserError(f"{videos.source}: not the segments that the features are of")
        return videos.labels.tolist()
    label_of = {videos.written(row): videos.label(row) for row in range(len(videos))}
    return [label_of.get(line["path"], -1) for line in lines]


class FrozenEvaluation:
    """All probes on one pair of folders. Raises UserError if they are of different weights."""

    def __init__(self, train: CachedFeatures, test: CachedFeatures, settings: ProbeSettings):
        if train.shape() != test.shape() or train.weights != test.weights:
            raise UserError(
                f"{train.folder} and {test.folder} hold features of different weights; "
                "extract both with the same"
            )
        self._train = train
        self._test = test
        self._settings = settings
        self._classes = 1 + int(max(train.labels.max(), test.labels.max()))
        torch.manual_seed(settings.seed)
        generator = torch.Generator().manual_seed(settings.seed)
        order = torch.randperm(len(train), generator=generator)
        count = round(HELD_OUT * len(order)) if len(order) > 1 else 0
        self._held_out = order[:count].sort().values
        self._rows = order[count:].sort().values  # of training videos that are learned from

    @property
    def has_maps(self) -> bool:
        stage = self._settings.stage
        return self._train.has_maps(stage) and self._test.has_maps(stage)

    def nearest_neighbours(self) -> dict[str, float]:
        """top1 and top5, in percent."""
        votes = nearest_neighbours(
            self._train.means(),
            self._train.labels,
            self._test.means(),
            k=self._settings.neighbours,
        )
        return hits(ranked(votes), self._test.labels)

    def linear(self) -> dict[str, Any]:
        """rate, top1, top5 and by_rate, of the probe of the chosen rate."""
        return self._linear(self._train.means(), self._test.means())

    def linear_in_time(self) -> dict[str, Any]:
        """As `linear`, of a map's means over space, one after the other in time."""
        stage = self._settings.stage
        return self._linear(self._train.in_time(stage), self._test.in_time(stage))

    def _linear(self, train_features: Tensor, queries: Tensor) -> dict[str, Any]:
        learned = train_features[self._rows]
        probes = [LinearProbe(learned, self._classes) for _ in LINEAR_RATES]
        groups = _parameter_groups(probes, LINEAR_RATES)
        train_probes(
            probes,
            torch.optim.SGD(groups, momentum=0.9),
            lambda some, _: learned[some],
            self._train.labels[self._rows],
            epochs=self._settings.epochs,
            batch_size=self._settings.batch_size,
            seed=self._settings.seed,
        )

        @torch.inference_mode()
        def scores(features: Tensor) -> Tensor:
            return torch.stack([probe(features).softmax(-1) for probe in probes])

        held_out = scores(train_features[self._held_out])
        return self._choose(RateScores(LINEAR_RATES, held_out, scores(queries)))

    def attentive(self) -> dict[str, Any]:
        """As `linear`; one random window of a video at a time in training, all in testing."""
        stage = self._settings.stage
        dim = self._train.windows(0, stage).shape[-1]
        probes = [AttentiveProbe(dim, self._classes) for _ in ATTENTIVE_RATES]
        for probe in probes[1:]:  # all start alike
            probe.load_state_dict(probes[0].state_dict())
        rows = self._rows.tolist()
        counts = [self._train.count_windows(row) for row in rows]

        def one_window(some: Tensor, generator: torch.Generator) -> Tensor:
            chosen = some.tolist()
            drawn = [int(torch.randint(counts[k], (), generator=generator)) for k in chosen]
            parts = [self._train.windows(rows[k], stage, w) for k, w in zip(chosen, drawn)]
            return torch.cat(parts)

        groups = _parameter_groups(probes, ATTENTIVE_RATES)
        train_probes(
            probes,
            torch.optim.AdamW(groups, weight_decay=0.01),
            one_window,
            self._train.labels[self._rows],
            epochs=self._settings.attentive_epochs,
            batch_size=min(self._settings.batch_size, ATTENTIVE_BATCH),
            seed=self._settings.seed,
        )

        @torch.inference_mode()
        def scores(features: CachedFeatures, which: list[int]) -> Tensor:
            of_videos = []
            for row in which:
                parts = features.windows(row, stage).split(WINDOWS)
                of_probes = []
                for probe in probes:
                    of_windows = torch.cat([probe(part).softmax(-1) for part in parts])
                    of_probes.append(of_windows.mean(0))
                of_videos.append(torch.stack(of_probes))
            return torch.stack(of_videos, dim=1)

        held_out = scores(self._train, self._held_out.tolist())
        test = scores(self._test, list(range(len(self._test))))
        return self._choose(RateScores(ATTENTIVE_RATES, held_out, test))

    def _choose(self, scores: RateScores) -> dict[str, Any]:
        """The rate that is best on the held-out videos."""
        labels = self._train.labels[self._held_out]
        by_rate = []
        for rate, of_held_out, of_test in zip(*scores):
            held = hits(ranked(of_held_out), labels)["top1"] if len(labels) else 0.0
            found = hits(ranked(of_test), self._test.labels)
            by_rate.append({"rate": rate, "held_out_top1": held, **found})
        best = max(by_rate, key=lambda row: row["held_out_top1"])
        return {**best, "by_rate": by_rate}


def _parameter_groups(probes: Sequence[nn.Module], rates: Sequence[float]) -> list[dict[str, Any]]:
    return [{"params": list(p.parameters()), "lr": rate} for p, rate in zip(probes, rates)]

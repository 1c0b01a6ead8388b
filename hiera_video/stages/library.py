"""A folder of features with what made it: its videos, and features of others in the same way."""

import contextlib
import csv
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from hiera_video import build
from hiera_video.config import Config, load_config
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import read_videos
from hiera_video.evaluation.feature_folder import FeatureFolder
from hiera_video.models.weights import weights_file
from hiera_video.stages.run import extract_features
from hiera_video.system.errors import UserError
from hiera_video.system.files import join, sha256_of


class QueryFeatures(NamedTuple):
    features: Tensor  # [n, dim]
    times: np.ndarray  # [n, 2], seconds


class Library:
    """A folder that extract-features wrote, or the `features` of a run.

    overrides: `key=value` on top of the config that made it, where videos or weights have moved.
    """

    def __init__(self, folder: Path, overrides: Sequence[str] = ()):
        """Raises UserError."""
        self.folder = FeatureFolder(folder)
        if len(self.folder) == 0:
            raise UserError(f"{folder} holds no features")
        self.folder.check()
        places = [place for place in (folder, folder.parent) if (place / "config.yaml").is_file()]
        if not places:
            raise UserError(f"{folder} has no config.yaml, which says what made its features")
        config = load_config(places[0] / "config.yaml", overrides)
        if config.test.weights is None:  # the run's own
            test = dataclasses.replace(config.test, weights=str(places[0]))
            config = dataclasses.replace(config, test=test)
        self.config: Config = config
        self._places: dict[str, str] | None = None

    @property
    def in_order(self) -> bool:
        """Windows lie at one distance, in every video."""
        return self.config.features.clips is None and not self.config.features.average

    def source(self) -> VideoSource:
        return build.video_source(self.config, quarantine=False)

    def place(self, path: str) -> str:
        """Where a video lies, by the list or, where that is gone, under data.root."""
        if self._places is None:
            self._places = self._read_places()
        return self._places.get(path) or join(self.config.data.root or "", path)

    def list_name(self) -> str:
        data = self.config.data
        return str(self.config.features.videos or data.test or data.val)

    def features_of(self, videos: Sequence[str | Path]) -> list[QueryFeatures | None]:
        """Of other videos, as the folder's were made; None for one that cannot be read.

        What is done is told on stderr. Raises UserError, also for other weights.
        """
        self._check_weights()
        with tempfile.TemporaryDirectory() as output:
            table = Path(output) / "videos.csv"
            with open(table, "w", newline="", errors="surrogateescape") as f:
                rows = [[join(Path.cwd(), video)] for video in videos]
                csv.writer(f).writerows([["path"], *rows])
            options = dataclasses.replace(
                self.config.features, videos=str(table), layout="files", min_coverage=0.0
            )
            found = Path(output) / "features"
            config = dataclasses.replace(
                self.config, output=str(found), stages=("features",), features=options
            )
            with contextlib.redirect_stdout(sys.stderr):
                extract_features(config)
            folder = FeatureFolder(found)
            made: list[QueryFeatures | None] = [None for _ in videos]
            for k, row in enumerate(folder.rows):
                made[row] = QueryFeatures(folder.features(k), folder.times(k))
            return made

    def _check_weights(self) -> None:
        """Raises UserError."""
        weights = self.config.test.weights
        assert weights is not None
        try:
            digest = sha256_of(weights_file(weights))
        except ValueError as e:
            raise UserError(f"test.weights: {e}; say test.weights=.. where they are now") from e
        if self.folder.made_of().get("weights", digest) != digest:
            raise UserError(
                f"test.weights: {weights} is not what the features of {self.folder.folder} were "
                "made with; say test.weights=.. where that is now"
            )

    def _read_places(self) -> dict[str, str]:
        try:
            videos = read_videos(self.list_name(), root=self.config.data.root or "")
        except UserError:
            return {}
        return {videos.written(row): videos.path(row) for row in range(len(videos))}

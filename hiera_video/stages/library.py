"""A folder of features with what made it: its videos, and features of others in the same way."""

import contextlib
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
from hiera_video.config.sections import FeaturesConfig
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import read_videos
from hiera_video.evaluation.feature_folder import FeatureFolder, Span, extent_of
from hiera_video.models.weights import weights_file
from hiera_video.stages.run import extract_features
from hiera_video.system.errors import UserError
from hiera_video.system.files import join, sha256_of, write_csv
from hiera_video.system.stores import register_handlers

# A query's windows begin at as many places between two windows of the folder, for one of them to
# lie as a window does in the video that is looked for.
PHASES = 8
FRAME_S = 1 / 30


class QueryFeatures(NamedTuple):
    """Windows that lie as far apart as the folder's."""

    features: Tensor  # [n, dim]
    times: np.ndarray  # [n, 2], seconds
    extent: Span  # of the whole query, seconds


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
        try:
            register_handlers(config.data.path_handlers)
        except ImportError as e:
            raise UserError(f"data.path_handlers: {e}") from e
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

    def features_of(self, videos: Sequence[str | Path]) -> list[list[QueryFeatures]]:
        """Of other videos, as the folder's were made, in phases; none of one that cannot be read.

        What is done is told on stderr. Raises UserError, also for other weights.
        """
        self._check_weights()
        count, options = self._finer()
        with tempfile.TemporaryDirectory() as output:
            table = Path(output) / "videos.csv"
            write_csv(table, [["path"], *([join(Path.cwd(), video)] for video in videos)])
            found = Path(output) / "features"
            config = dataclasses.replace(
                self.config,
                output=str(found),
                stages=("features",),
                features=dataclasses.replace(
                    options, videos=str(table), layout="files", min_coverage=0.0
                ),
            )
            with contextlib.redirect_stdout(sys.stderr):
                extract_features(config)
            folder = FeatureFolder(found)
            made: list[list[QueryFeatures]] = [[] for _ in videos]
            for k, row in enumerate(folder.rows):
                times = folder.times(k)
                whole = QueryFeatures(folder.features(k), times, extent_of(times))
                made[row] = in_phases(whole, count) if self.in_order else [whole]
            return made

    def _finer(self) -> tuple[int, FeaturesConfig]:
        """(how many windows of a query to one of the folder's, what they are made by)"""
        options = dataclasses.replace(self.config.features, stages=())
        if not self.in_order:
            return 1, options
        stride = options.stride_frames
        if stride is not None:
            count = next(k for k in range(PHASES, 0, -1) if stride % k == 0)
            return count, dataclasses.replace(options, stride_frames=stride // count)
        hop_s = options.hop_s or build.clip_shape(self.config).seconds
        count = max(1, min(PHASES, int(hop_s / FRAME_S + 1e-6)))
        return count, dataclasses.replace(options, hop_s=hop_s / count)

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


def in_phases(query: QueryFeatures, count: int) -> list[QueryFeatures]:
    """Every `count`-th window, from each of the first `count` on; the longest of these rows.

    A last window that ends with the video, and lies nearer to the one before it, is of no row.
    """
    features, times, extent = query
    gaps = np.diff(times[:, 0])
    regular = len(times)
    if len(gaps) > 1 and gaps[-1] < 0.9 * gaps[0]:
        regular -= 1
    rows = [range(first, regular, count) for first in range(min(count, regular))]
    longest = max(map(len, rows))
    rows = [row for row in rows if len(row) >= max(1, longest - 1)]
    if longest <= 2 and regular < len(times):
        rows.append(range(regular, len(times)))
    return [QueryFeatures(features[list(row)], times[list(row)], extent) for row in rows]

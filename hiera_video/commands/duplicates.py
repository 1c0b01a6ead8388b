"""Near-duplicates in and between folders of features, such as those of train and val.

    hiera-video duplicates features/train features/val --output duplicates
    hiera-video duplicates features --within data.root=/new/place
    python datasets/check_lists.py train.csv val.csv --duplicates duplicates/duplicates.csv

Finds videos that were encoded again, resized or trimmed: OUTPUT/duplicates.csv has a line a pair
with the seconds that are the same, and OUTPUT/duplicates.html their pictures. Of several folders,
pairs between two of them are looked for, and with --within those inside one, too.

Features name candidates, and small grey frames of both videos decide: from --threshold on they are
the same. Where the videos are not at hand, or with --features-only, cosines of whitened features
decide, from --features-threshold on; they miss most copies that are trimmed. Cropped or mirrored
copies are not found. Windows of features.hop_s=0.5 find trimmed copies better than those that lie
end to end.
"""

import argparse
import csv
import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from hiera_video.commands.arguments import make_parser, without_overrides
from hiera_video.commands.search import SLACK_S, Span, clock, span, step
from hiera_video.data.decode.source import VideoSource
from hiera_video.evaluation.duplicates import Pair, exact_neighbours, near_duplicates
from hiera_video.evaluation.likeness import Match, Windows
from hiera_video.evaluation.same_frames import SAME, frames_alike
from hiera_video.pictures.page import page, panel, section
from hiera_video.pictures.strip import strip
from hiera_video.stages.library import Library
from hiera_video.system.errors import Unavailable, UserError, VideoError
from hiera_video.system.files import exists, write_text, written_whole

FEATURES_THRESHOLD = 0.9
MOST_SHOWN = 500  # pairs of a page
COLUMNS = (
    "path_a",
    "path_b",
    "frames",
    "features",
    "start_a_s",
    "end_a_s",
    "start_b_s",
    "end_b_s",
    "list_a",
    "list_b",
)


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("folders", nargs="+", metavar="FEATURES", help="folder, or key=value")
    parser.add_argument("--output", type=Path, default=Path("duplicates"), help="a folder")
    parser.add_argument("--within", action="store_true", help="pairs of one folder, too")
    parser.add_argument("--threshold", type=float, default=SAME, help="of frames, 0 to 1")
    parser.add_argument("--features-only", action="store_true", help="do not look at frames")
    parser.add_argument(
        "--features-threshold",
        type=float,
        default=FEATURES_THRESHOLD,
        help="of features, where frames are not looked at",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    for name in ("threshold", "features_threshold"):
        if not 0 < getattr(args, name) <= 1:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {getattr(args, name)} must be above 0 and at most 1")
    folders, overrides = without_overrides(args.folders)
    if not folders:
        raise UserError("name a folder of features")
    libraries = [Library(Path(folder), overrides) for folder in folders]
    check_alike(libraries)
    videos = Videos(libraries)
    source = libraries[0].source()
    within = args.within or len(libraries) == 1

    def is_wanted(a: int, b: int) -> bool:
        one, other = videos.of(a), videos.of(b)
        return (within or one.library is not other.library) and one.place != other.place

    def look(video: int, match: Match) -> float | None:
        return None if args.features_only else frames_of(source, videos, video, match)

    windows = Windows([library.folder for library in libraries])
    progress = tqdm(total=len(windows), unit="videos", disable=not sys.stderr.isatty())
    pairs = list(
        near_duplicates(
            len(windows),
            exact_neighbours(windows),
            is_wanted=is_wanted,
            look=look,
            least=args.threshold,
            least_features=args.features_threshold,
            advance=progress.update,
        )
    )
    progress.close()
    pairs.sort(key=lambda pair: -(pair.frames or 0))
    args.output.mkdir(parents=True, exist_ok=True)
    table = args.output / "duplicates.csv"
    write_table(table, videos, pairs)
    shown = args.output / "duplicates.html"
    write_text(shown, page_of(source, videos, pairs))
    source.close()
    blind = sum(pair.frames is None for pair in pairs)
    by_features = f", {blind} of them by features alone" if blind else ""
    print(f"{len(pairs)} pairs among {len(windows)} videos{by_features}: {table}, {shown}")
    if videos.unread:
        print(
            f"{len(videos.unread)} videos could not be read ({min(videos.unread)}): of them "
            f"features decided, from {args.features_threshold:g} on",
            file=sys.stderr,
        )


def check_alike(libraries: list[Library]) -> None:
    """Raises UserError where the folders' features cannot be compared."""
    first = libraries[0]
    for other in libraries[1:]:
        one, two = first.config, other.config
        same = (
            first.folder.made_of().get("weights") == other.folder.made_of().get("weights")
            and (one.features.hop_s, one.features.clips, one.features.stride_frames)
            == (two.features.hop_s, two.features.clips, two.features.stride_frames)
            and one.features.average == two.features.average
            and one.data.sampling_rate == two.data.sampling_rate
            and first.folder.shape("features") == other.folder.shape("features")
        )
        if not same:
            raise UserError(
                f"{first.folder.folder} and {other.folder.folder} hold features of different "
                "weights or windows; extract both in the same way"
            )


class Video(NamedTuple):
    library: Library
    number: int  # in its folder
    path: str  # as its list has it
    place: str  # where it lies

    def times(self) -> np.ndarray:
        return self.library.folder.times(self.number)


class Videos:
    """Of all folders, one after the other."""

    def __init__(self, libraries: list[Library]):
        self._every = [(lib, k) for lib in libraries for k in range(len(lib.folder))]
        self.unread: set[str] = set()

    def of(self, video: int) -> Video:
        library, k = self._every[video]
        path = library.folder.path(k)
        return Video(library, k, path, library.place(path))


def frames_of(source: VideoSource, videos: Videos, video: int, match: Match) -> float | None:
    """How alike they are; None where one of them cannot be read."""
    one, other = videos.of(video), videos.of(match.video)
    for place in (one.place, other.place):
        if place in videos.unread:
            return None
        if not exists(place):
            videos.unread.add(place)
            return None
    slack = min(step(one.times()), step(other.times()), SLACK_S)
    spans = spans_of(one, other, match)
    try:
        return frames_alike(source, (one.place, other.place), spans, slack_s=slack).score
    except (VideoError, Unavailable):
        videos.unread.add(one.place)
        return None


def spans_of(one: Video, other: Video, match: Match) -> tuple[Span, Span]:
    """Seconds of both."""
    return (
        span(one.times(), match.query_first, match.length),
        span(other.times(), match.first, match.length),
    )


def write_table(file: Path, videos: Videos, pairs: list[Pair]) -> None:
    with (
        written_whole(file) as temporary,
        open(temporary, "w", newline="", errors="surrogateescape") as f,
    ):
        writer = csv.writer(f)
        writer.writerow(COLUMNS)
        for pair in pairs:
            one, other = videos.of(pair.first), videos.of(pair.match.video)
            frames = "" if pair.frames is None else f"{pair.frames:.4f}"
            spans = [f"{t:.3f}" for part in spans_of(one, other, pair.match) for t in part]
            lists = [video.library.list_name() for video in (one, other)]
            row = [one.path, other.path, frames, f"{pair.match.score:.4f}", *spans, *lists]
            writer.writerow(row)


def page_of(source: VideoSource, videos: Videos, pairs: list[Pair]) -> str:
    """HTML: the two of a pair side by side."""
    rows = ""
    for pair in pairs[:MOST_SHOWN]:
        both = (videos.of(pair.first), videos.of(pair.match.video))
        for video, part in zip(both, spans_of(*both, pair.match)):
            frames = strip(source, video.place, alt=video.path, span=part)
            alike = "" if pair.frames is None else f"frames {pair.frames:.3f}, "
            said = f"{alike}features {pair.match.score:.3f}, {clock(part)} s"
            rows += panel(frames, said, video.path)
    found = f"{len(pairs)} pairs"
    if len(pairs) > MOST_SHOWN:
        found += f", of which {MOST_SHOWN} are shown"
    if len(pairs) == 0:
        rows = "<p>No two videos are alike.</p>"
    parts = ["<h1>Near-duplicates</h1>", section(found, f'<div class="pairs">{rows}</div>')]
    return page(escape(found), parts)

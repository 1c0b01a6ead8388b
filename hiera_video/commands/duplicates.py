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
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hiera_video.build import video_source
from hiera_video.commands.arguments import make_parser, without_overrides
from hiera_video.commands.search import SLACK_S, Span, clock, span, step
from hiera_video.data.decode.source import VideoSource
from hiera_video.evaluation.duplicates import Pair, near_pairs
from hiera_video.evaluation.likeness import Match, Windows
from hiera_video.evaluation.same_frames import SAME, frames_alike
from hiera_video.pictures.page import page, panel, section
from hiera_video.pictures.strip import strip
from hiera_video.stages.library import Library
from hiera_video.system.errors import RunStopped, Unavailable, UserError, VideoError
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
    parser.add_argument("--neighbours", type=int, default=4, help="of each video, looked at")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="videos at a time")
    return parser


def main(args: argparse.Namespace) -> None:
    for name in ("threshold", "features_threshold"):
        if not 0 < getattr(args, name) <= 1:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {getattr(args, name)} must be above 0 and at most 1")
    if args.neighbours < 1 or args.workers < 1:
        raise UserError("--neighbours and --workers must be > 0")
    folders, overrides = without_overrides(args.folders)
    if not folders:
        raise UserError("name a folder of features")
    libraries = [Library(Path(folder), overrides) for folder in folders]
    check_alike(libraries)
    videos = Videos(libraries)
    within = args.within or len(libraries) == 1
    with tqdm(total=len(videos), desc="near", unit="videos", disable=not is_seen()) as bar:
        pairs = near_pairs(
            Windows([library.folder for library in libraries]),
            neighbours=args.neighbours,
            allowed=lambda video: videos.others(video, within=within),
            advance=bar.update,
        )
    frames: list[float | None] = [None] * len(pairs)
    if not args.features_only:
        frames = look_at(videos, pairs, args.workers)
    found = []
    for pair, alike in zip(pairs, frames):
        least = args.features_threshold if alike is None else args.threshold
        if (pair.match.score if alike is None else alike) >= least:
            found.append(Found(pair, alike))
    found.sort(key=lambda each: -(each.frames or 0.0))
    args.output.mkdir(parents=True, exist_ok=True)
    table = args.output / "duplicates.csv"
    write_table(table, videos, found)
    shown = args.output / "duplicates.html"
    write_text(shown, page_of(videos, found))
    blind = sum(each.frames is None for each in found)
    by_features = f", {blind} of them by features alone" if blind else ""
    print(f"{len(found)} pairs among {len(videos)} videos{by_features}: {table}, {shown}")
    if videos.unread:
        print(
            f"{len(videos.unread)} videos could not be read ({min(videos.unread)}): of them "
            f"features decided, from {args.features_threshold:g} on",
            file=sys.stderr,
        )


def is_seen() -> bool:
    return sys.stderr.isatty()


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


class Found(NamedTuple):
    pair: Pair
    frames: float | None  # how alike they are; None where nobody looked


class Videos:
    """Of all folders, one after the other."""

    def __init__(self, libraries: list[Library]):
        self._every = [(lib, k) for lib in libraries for k in range(len(lib.folder))]
        self._folders = torch.tensor([libraries.index(lib) for lib, _ in self._every])
        numbers: dict[str, int] = {}
        places = [numbers.setdefault(self.of(v).place, v) for v in range(len(self._every))]
        self._places = torch.tensor(places)
        self.config = libraries[0].config
        self.unread: set[str] = set()

    def __len__(self) -> int:
        return len(self._every)

    def of(self, video: int) -> Video:
        library, k = self._every[video]
        path = library.folder.path(k)
        return Video(library, k, path, library.place(path))

    def others(self, video: int, *, within: bool) -> Tensor:
        """bool [V]: other files, of other folders."""
        allowed = self._places != self._places[video]
        return allowed if within else allowed & (self._folders != self._folders[video])


def look_at(videos: Videos, pairs: list[Pair], workers: int) -> list[float | None]:
    """How alike the frames of each pair are; None where one of them cannot be read."""
    own = threading.local()  # each thread has a decoding process of its own
    sources: list[VideoSource] = []

    def look(pair: Pair) -> float | None:
        if not hasattr(own, "source"):
            own.source = video_source(videos.config, quarantine=False)
            sources.append(own.source)
        return frames_of(own.source, videos, pair)

    with ThreadPoolExecutor(workers) as pool:
        looked = pool.map(look, pairs)
        shown = tqdm(looked, total=len(pairs), desc="frames", unit="pairs", disable=not is_seen())
        found = list(shown)
    for source in sources:
        source.close()
    return found


def frames_of(source: VideoSource, videos: Videos, pair: Pair) -> float | None:
    one, other = videos.of(pair.first), videos.of(pair.match.video)
    for place in (one.place, other.place):
        if place not in videos.unread and not exists(place):
            videos.unread.add(place)
        if place in videos.unread:
            return None
    slack = min(step(one.times()), step(other.times()), SLACK_S)
    spans = spans_of(one, other, pair.match)
    try:
        return frames_alike(source, (one.place, other.place), spans, slack_s=slack).score
    except Unavailable as e:
        raise RunStopped(str(e)) from e
    except VideoError as e:
        videos.unread.add(other.place if other.place in str(e) else one.place)
        return None


def spans_of(one: Video, other: Video, match: Match) -> tuple[Span, Span]:
    """Seconds of both."""
    return (
        span(one.times(), match.query_first, match.length),
        span(other.times(), match.first, match.length),
    )


def write_table(file: Path, videos: Videos, found: list[Found]) -> None:
    with (
        written_whole(file) as temporary,
        open(temporary, "w", newline="", errors="surrogateescape") as f,
    ):
        writer = csv.writer(f)
        writer.writerow(COLUMNS)
        for pair, alike in found:
            one, other = videos.of(pair.first), videos.of(pair.match.video)
            frames = "" if alike is None else f"{alike:.4f}"
            spans = [f"{t:.3f}" for part in spans_of(one, other, pair.match) for t in part]
            lists = [video.library.list_name() for video in (one, other)]
            row = [one.path, other.path, frames, f"{pair.match.score:.4f}", *spans, *lists]
            writer.writerow(row)


def page_of(videos: Videos, found: list[Found]) -> str:
    """HTML: the two of a pair side by side."""
    source = video_source(videos.config, quarantine=False)
    rows = ""
    for pair, alike in found[:MOST_SHOWN]:
        both = (videos.of(pair.first), videos.of(pair.match.video))
        for video, part in zip(both, spans_of(*both, pair.match)):
            frames = strip(source, video.place, alt=video.path, span=part)
            of_frames = "" if alike is None else f"frames {alike:.3f}, "
            said = f"{of_frames}features {pair.match.score:.3f}, {clock(part)} s"
            rows += panel(frames, said, video.path)
    source.close()
    title = f"{len(found)} pairs"
    if len(found) > MOST_SHOWN:
        title += f", of which {MOST_SHOWN} are shown"
    if len(found) == 0:
        rows = "<p>No two videos are alike.</p>"
    parts = ["<h1>Near-duplicates</h1>", section(title, f'<div class="pairs">{rows}</div>')]
    return page(title, parts)

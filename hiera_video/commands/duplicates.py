"""Near-duplicates in and between folders of features, such as those of train and val.

    hiera-video duplicates features/train features/val --output duplicates
    hiera-video duplicates features --within data.root=/new/place
    python datasets/check_lists.py train.csv val.csv --duplicates duplicates/duplicates.csv

Finds videos that were encoded again, resized or trimmed: OUTPUT/duplicates.csv has a line a pair
with the seconds that are the same, and OUTPUT/duplicates.html their pictures. Of several folders,
pairs between two of them are looked for, and with --within those inside one, too.

Features name candidates, and small grey frames of both videos decide: from --threshold on they are
the same. With --features-only cosines of whitened features decide, from --features-threshold on;
they miss most copies that are trimmed, and mean little of a few videos. Cropped or mirrored copies
are not found. Windows of features.hop_s=0.5 find trimmed copies better than those that lie
end to end.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hiera_video.commands.arguments import make_parser, without_overrides
from hiera_video.commands.search import clock
from hiera_video.data.decode.source import VideoSource
from hiera_video.evaluation.duplicates import Pair, near_pairs
from hiera_video.evaluation.feature_folder import Span, extent_of, gap_of, span_of
from hiera_video.evaluation.likeness import Match, Windows
from hiera_video.evaluation.same_frames import SAME, Alike, FrameLook, same_part
from hiera_video.pictures.page import page, panel, section
from hiera_video.pictures.strip import strip
from hiera_video.stages.library import Library
from hiera_video.system.errors import UserError
from hiera_video.system.files import write_csv, write_text

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
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--output: cannot make the folder {args.output}: {e.strerror}") from e
    videos = Videos(libraries)
    within = args.within or len(libraries) == 1
    with tqdm(total=len(videos), desc="near", unit="videos", disable=not is_seen()) as bar:
        pairs = near_pairs(
            Windows([library.folder for library in libraries]),
            neighbours=args.neighbours,
            allowed=lambda video: videos.others(video, within=within),
            advance=bar.update,
        )
    look = FrameLook(libraries[0].source)
    if args.features_only:
        near = args.features_threshold
        found = [Found(pair, None) for pair in pairs if pair.match.score >= near]
    else:
        with contextlib.closing(look):
            frames = look_at(look, videos, pairs, args.workers)
        seen = [Found(pair, alike) for pair, alike in zip(pairs, frames)]
        found = [each for each in seen if each.frames >= args.threshold]
        found.sort(key=lambda each: -each.frames)
    table = args.output / "duplicates.csv"
    write_csv(table, table_of(videos, found))
    shown = args.output / "duplicates.html"
    write_text(shown, page_of(libraries[0].source(), videos, found))
    how = ", by features alone" if args.features_only else ""
    print(f"{len(found)} pairs among {len(videos)} videos{how}: {table}, {shown}")
    if look.unread:
        place, why = next(iter(look.unread.items()))
        print(
            f"{len(look.unread)} videos could not be looked at ({place}: {why}) and are in no "
            "pair; say data.root=.. where they are now, or --features-only",
            file=sys.stderr,
        )
        if not look.read:
            raise UserError("none of the videos could be looked at")


def is_seen() -> bool:
    return sys.stderr.isatty()


def check_alike(libraries: list[Library]) -> None:
    """Raises UserError where the folders' features cannot be compared."""
    first = libraries[0]
    for other in libraries[1:]:
        if what_made(first) != what_made(other):
            raise UserError(
                f"{first.folder.folder} and {other.folder.folder} hold features of different "
                "weights or windows; extract both in the same way"
            )


def what_made(library: Library) -> dict[str, object]:
    """All that must be alike for features to be compared."""
    own = ("rows of the list", "shards")
    made = {key: value for key, value in library.folder.made_of().items() if key not in own}
    features = library.config.features
    data = library.config.data
    for name in ("hop_s", "clips", "stride_frames", "average"):
        made[name] = getattr(features, name)
    for name in ("num_frames", "sampling_rate", "target_fps", "crop_size", "squash"):
        made[name] = getattr(data, name)
    return made | {"short side": library.config.test.short_side}


class Video(NamedTuple):
    library: Library
    number: int  # in its folder
    path: str  # as its list has it
    place: str  # where it lies

    def times(self) -> np.ndarray:
        return self.library.folder.times(self.number)


class Found(NamedTuple):
    pair: Pair
    seen: Alike | None  # how alike the frames are; None where nobody looked

    @property
    def frames(self) -> float:
        return 0.0 if self.seen is None else self.seen.score


class Videos:
    """Of all folders, one after the other."""

    def __init__(self, libraries: list[Library]):
        self._every = [(lib, k) for lib in libraries for k in range(len(lib.folder))]
        self._folders = torch.tensor([libraries.index(lib) for lib, _ in self._every])
        numbers: dict[str, int] = {}
        places = [numbers.setdefault(self.of(v).place, v) for v in range(len(self._every))]
        self._places = torch.tensor(places)

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


def look_at(look: FrameLook, videos: Videos, pairs: list[Pair], workers: int) -> list[Alike | None]:
    """How alike the frames of each pair are; None where one of them cannot be read."""

    def look_at_one(pair: Pair) -> Alike | None:
        one, other = videos.of(pair.first), videos.of(pair.match.video)
        slack_s = min(gap_of(one.times()), gap_of(other.times()))
        spans = spans_of(one, other, pair.match)
        return look((one.place, other.place), spans, slack_s=slack_s)

    with ThreadPoolExecutor(workers) as pool:
        looked = pool.map(look_at_one, pairs)
        shown = tqdm(looked, total=len(pairs), desc="frames", unit="pairs", disable=not is_seen())
        return list(shown)


def spans_of(
    one: Video, other: Video, match: Match, seen: Alike | None = None
) -> tuple[Span, Span]:
    """Seconds of both: by their windows or, where frames were seen, by these."""
    times, other_times = one.times(), other.times()
    span = span_of(times, match.query_first, match.length)
    if seen is None:
        return span, span_of(other_times, match.first, match.length)
    extents = (extent_of(times), extent_of(other_times))
    return same_part(span, extents, seen.offset_s, gap_s=gap_of(times))


def table_of(videos: Videos, found: list[Found]) -> list[Sequence[object]]:
    """Rows of the csv, its header first; `a` is of the folder that was named earlier."""
    rows: list[Sequence[object]] = [COLUMNS]
    for pair, seen in found:
        numbers = (pair.first, pair.match.video)
        one, other = map(videos.of, numbers)
        both = list(zip(numbers, (one, other), spans_of(one, other, pair.match, seen)))
        (_, one, part), (_, other, part_of_other) = sorted(both, key=lambda each: each[0])
        frames = "" if seen is None else f"{seen.score:.4f}"
        times = [f"{max(t, 0):.3f}" for t in (*part, *part_of_other)]
        lists = (one.library.list_name(), other.library.list_name())
        rows.append((one.path, other.path, frames, f"{pair.match.score:.4f}", *times, *lists))
    return rows


def page_of(source: VideoSource, videos: Videos, found: list[Found]) -> str:
    """HTML: the two of a pair side by side."""
    rows = ""
    for pair, seen in found[:MOST_SHOWN]:
        both = (videos.of(pair.first), videos.of(pair.match.video))
        for video, part in zip(both, spans_of(*both, pair.match, seen)):
            frames = strip(source, video.place, alt=video.path, span=part)
            of_frames = "" if seen is None else f"frames {seen.score:.3f}, "
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

"""Finds a video, or what is like it, in a folder of features.

    hiera-video search features query.mp4
    hiera-video search features query.mp4 --by window --top 20 --page found.html
    hiera-video search features query.mp4 data.root=/new/place test.weights=runs/own

FEATURES is what extract-features wrote, or the features of a run; the query's features are made by
the config and the weights that made those. Printed are the nearest videos with their cosine and
when: seconds of the video and of the query. --by window lists several places of a video, too. A
cut that is about as short as a window is found better in windows of features.hop_s=0.5 than in
those that lie end to end.

Frames of the nearest ones are looked at, too: videos that show the query itself, encoded again or
resized, come first ("same"), with the time to a frame; --features-only leaves that out.

Cosines are taken after whitening: the mean is taken away, and every direction counts alike; --plain
leaves the features as they are. Every window is looked at. Above a million an index is made first
(pip install 'hiera_video[faiss]') and kept in the folder; --index says otherwise.
"""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import torch

from hiera_video.commands.arguments import make_parser, without_overrides
from hiera_video.commands.predict import find_videos
from hiera_video.evaluation.feature_folder import Span, extent_of, gap_of, span_of
from hiera_video.evaluation.likeness import Match, Windows, matches, plain, whitened
from hiera_video.evaluation.same_frames import SAME, FrameLook, same_part
from hiera_video.evaluation.search_index import ABOVE, SearchIndex
from hiera_video.pictures.page import page, panel, section
from hiera_video.pictures.strip import strip
from hiera_video.stages.library import Library, QueryFeatures
from hiera_video.system.errors import UserError
from hiera_video.system.files import join, write_text

LOOKED_AT = 20  # of the nearest ones, at least


class Found(NamedTuple):
    path: str
    score: float
    span: Span
    query_span: Span
    same: float | None  # how alike the frames are; None where nobody looked

    def rank(self) -> tuple[bool, float]:
        is_same = self.same is not None and self.same >= SAME
        return not is_same, -(self.same or 0.0) if is_same else -self.score


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("features", type=Path, help="folder of features")
    parser.add_argument("queries", nargs="+", metavar="VIDEO", help="file or URL, or key=value")
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--by", choices=("video", "window"), default="video")
    parser.add_argument("--plain", action="store_true", help="cosines of the features as they are")
    parser.add_argument("--features-only", action="store_true", help="do not look at frames")
    parser.add_argument("--index", choices=("auto", "exact", "faiss"), default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write it with pictures, as HTML")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.top < 1:
        raise UserError(f"--top {args.top} must be > 0")
    given, overrides = without_overrides(args.queries)
    queries = find_videos(given)
    if not queries:
        raise UserError("name a video to search for")
    try:
        for file in filter(None, (args.json, args.page)):  # before the work is done
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.is_dir():
                raise UserError(f"{file} is a folder; name a file")
            file.touch()
    except OSError as e:
        raise UserError(f"cannot write {file}: {e.strerror}") from e
    library = Library(args.features, overrides)
    made = library.features_of(queries)
    search = Search(library, args)
    results: dict[str, list[Found]] = {}
    with contextlib.closing(search):
        for query, phases in zip(queries, made):
            print(query)
            if not phases:
                continue
            results[query] = search(query, phases)
            for k, found in enumerate(results[query], start=1):
                same = "  same" if not found.rank()[0] else ""
                when = f"{clock(found.span)} s (query {clock(found.query_span)} s){same}"
                print(f"  {k:3} {found.score:7.4f}  {found.path}  {when}", flush=True)
    if args.json:
        rows = {query: [found._asdict() for found in every] for query, every in results.items()}
        write_text(args.json, json.dumps(rows, indent=1) + "\n")
    if args.page:
        write_text(args.page, result_page(library, results))
    if search.look.unread:
        place, why = next(iter(search.look.unread.items()))
        print(
            f"{len(search.look.unread)} videos could not be looked at ({place}: {why}); say "
            "data.root=.. where they are now, or --features-only",
            file=sys.stderr,
        )
    if search.look.unread and not search.look.read:
        raise UserError(
            "none of the nearest videos could be looked at: only features were compared"
        )
    unread = [query for query, phases in zip(queries, made) if not phases]
    if unread:
        raise UserError(f"{len(unread)} of {len(queries)} queries cannot be read: {unread[0]}")


class Search:
    def __init__(self, library: Library, args: argparse.Namespace):
        """Raises UserError."""
        self.look = FrameLook(library.source)
        self._library = library
        self._folder = library.folder
        self._args = args
        self._index = self._make_index()
        self._windows: Windows | None = None

    def __call__(self, query: str, phases: list[QueryFeatures]) -> list[Found]:
        place = join(Path.cwd(), query)
        found = [self._found(place, *match) for match in self._nearest(phases)]
        return sorted(found, key=Found.rank)[: self._args.top]

    def close(self) -> None:
        self.look.close()

    def _nearest(self, phases: list[QueryFeatures]) -> list[tuple[QueryFeatures, Match]]:
        """The best matches of all phases; their videos are numbered as the folder's."""
        names: Sequence[int] = range(len(self._folder))
        if self._index is not None:
            names = self._index.videos_near(torch.cat([phase.features for phase in phases]))
            part = self._folder.subset([self._folder.rows[k] for k in names])
            windows = Windows([part], space=self._index.space)
        else:
            if self._windows is None:
                measure = plain if self._args.plain else whitened
                self._windows = Windows([self._folder], measure=measure)
            windows = self._windows
        count = max(self._args.top, LOOKED_AT)
        apart = self._apart(phases[0]) if self._args.by == "window" else None
        every = []
        for phase in phases:
            own = windows.space(phase.features)
            in_order = self._library.in_order
            for match in matches(own, windows, top=count, in_order=in_order, apart=apart):
                every.append((phase, match._replace(video=names[match.video])))
        every.sort(key=lambda found: -found[1].score)
        kept: list[tuple[QueryFeatures, Match]] = []
        for phase, match in every:
            others = [other for _, other in kept if other.video == match.video]
            if all(apart and abs(match.first - other.first) >= apart for other in others):
                kept.append((phase, match))
        return kept[:count]

    def _found(self, query: str, phase: QueryFeatures, match: Match) -> Found:
        """query: where it lies"""
        path = self._folder.path(match.video)
        times = self._folder.times(match.video)
        of_query = span_of(phase.times, match.query_first, match.length)
        of_video = span_of(times, match.first, match.length)
        seen = None
        if not self._args.features_only:
            places = (query, self._library.place(path))
            seen = self.look(places, (of_query, of_video), slack_s=gap_of(times))
        if seen is None:
            return Found(path, match.score, of_video, of_query, None)
        if seen.score >= SAME:
            extents = (phase.extent, extent_of(times))
            of_query, of_video = same_part(of_query, extents, seen.offset_s, gap_s=gap_of(times))
        return Found(path, match.score, of_video, of_query, seen.score)

    def _apart(self, query: QueryFeatures) -> int:
        """Windows after which two places of a video do not overlap."""
        folder = self._folder
        several = next((k for k in range(len(folder)) if folder.windows(k) > 1), None)
        times = query.times if several is None else folder.times(several)
        start, end = times[0]
        return len(query.times) - 1 + max(1, math.ceil((end - start) / gap_of(times) - 1e-6))

    def _make_index(self) -> SearchIndex | None:
        """Raises UserError."""
        total = sum(map(self._folder.windows, range(len(self._folder))))
        asked = self._args.index
        if asked == "exact" or (asked == "auto" and (total <= ABOVE or self._args.plain)):
            return None
        if self._args.plain:
            raise UserError("--plain: the index is of whitened features; --index exact")
        try:
            return SearchIndex(self._folder)
        except ImportError as e:
            if asked == "faiss":
                raise UserError("--index faiss needs pip install 'hiera_video[faiss]'") from e
            print(f"{total} windows are gone through one by one: no faiss here", file=sys.stderr)
            return None


def clock(part: Span) -> str:
    return f"{max(part[0], 0):.2f}-{part[1]:.2f}"


def result_page(library: Library, results: dict[str, list[Found]]) -> str:
    """HTML."""
    source = library.source()
    parts = [f"<h1>Nearest in {escape(str(library.folder.folder))}</h1>"]
    for query, every in results.items():
        panels = [panel(strip(source, join(Path.cwd(), query), alt=query), "the query", query)]
        for found in every:
            frames = strip(source, library.place(found.path), alt=found.path, span=found.span)
            panels.append(panel(frames, f"{found.score:.4f}, {clock(found.span)} s", found.path))
        parts.append(section(Path(query).name, f'<div class="videos">{"".join(panels)}</div>'))
    source.close()
    return page("search", parts)

"""One's own videos, a folder of class folders or a table: checked, split, written as lists."""

import dataclasses
import difflib
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tqdm import tqdm

from hiera_video.data.background import gaps_between, spread_over
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import VideoList, read_videos
from hiera_video.data.splits import split_by_groups
from hiera_video.data.tables import END, LABEL, PATH, SEVERAL, START, as_csv, split_labels
from hiera_video.system.errors import UserError, VideoError
from hiera_video.system.files import exists, join, write_csv, written_whole

NOTHING = "nothing"  # the class of the background
SPLIT = "split"  # column that says in which list a row is
GROUP = "group"  # column whose values stay together
PARTS = ("train", "val", "test")
SHARES = (0.7, 0.1, 0.2)
COLUMNS = (PATH, LABEL, START, END, GROUP, SPLIT)
DISTANCE_S = 0.1  # of the background from segments, and the least that a gap has
NAMED = 3  # examples in a message


@dataclass(frozen=True)
class Row:
    path: str  # as written, without detours such as ./
    labels: tuple[str, ...]
    segment: tuple[float, float] | None
    group: str
    part: str  # of PARTS, or empty: to be drawn


@dataclass(frozen=True)
class OwnVideos:
    root: Path
    rows: list[Row]
    names: list[str]  # of the classes
    multilabel: bool  # a row may have several, or none
    unknown: list[Row]  # without a label, where each row has one: neither a class nor nothing

    @property
    def has_segments(self) -> bool:
        return any(row.segment is not None for row in self.rows)

    def numbers(self, row: Row) -> list[int]:
        return [self.names.index(label) for label in row.labels]

    def median_s(self) -> float:
        """Of the segments."""
        return median(row.segment[1] - row.segment[0] for row in self.rows if row.segment)

    def balance(self) -> float:
        """Rows of the most frequent class, as a multiple of the rarest one's."""
        counts = Counter(label for row in self.rows for label in row.labels)
        return max(counts.values()) / min(counts.values())


def read_own(source: Path, *, group: str | None, say: Callable[[str], None]) -> OwnVideos:
    """group: column of a table whose values stay together; default: `group`, where there is one.

    Raises UserError.
    """
    if not source.exists():
        raise UserError(f"there is no folder or table {source}")
    videos = read_videos(source.absolute(), key="videos")
    is_folder = source.is_dir()
    if not is_folder and videos.header is None:
        raise UserError(
            f"{source} is neither a folder of class folders nor a table (its first line needs the "
            "columns path and label)"
        )
    if not is_folder and LABEL not in (videos.header or ()):
        raise UserError(f"{source} has no column {LABEL}")
    rows = _rows(videos, source, group)
    header = videos.header or []
    for name in header:
        meant = difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.6)
        if meant and name not in (*COLUMNS, group) and meant[0] not in header:
            say(f"WARNING: {source} has a column {name!r}, which is ignored: is it {meant[0]!r}?")
    labelled = [row for row in rows if row.labels]
    multilabel = any(len(row.labels) > 1 for row in rows)
    unknown: list[Row] = []
    if not multilabel and len(labelled) < len(rows):
        say(f"{len(rows) - len(labelled)} rows have no label and are left out")
        unknown = [row for row in rows if not row.labels]
        rows = labelled
    names = sorted({label for row in rows for label in row.labels}, key=_by_number)
    if len(names) < 2:
        found = f"only the class {names[0]!r}" if names else "no label"
        raise UserError(f"{source} has {found}: there is nothing to tell apart")
    root = source.absolute() if is_folder else source.absolute().parent
    own = OwnVideos(root, rows, names, multilabel, unknown)
    _check_groups(own, source)
    _say_overlaps(own, say)
    return own


def _rows(videos: VideoList, source: Path, group: str | None) -> list[Row]:
    """Raises UserError."""
    columns = {}
    for name in (group or GROUP, SPLIT):
        columns[name] = videos.column(name)
    groups = columns[group or GROUP]
    if group is not None and source.is_dir():
        raise UserError(f"--group {group}: columns are of tables, and {source} is a folder")
    if group is not None and groups is None:
        raise UserError(f"--group {group}: {source} has no such column")
    splits = columns[SPLIT] or [""] * len(videos)
    rows = []
    for i, part in enumerate(splits):
        where = f"row {i + 1} of {source}"
        if part not in (*PARTS, "") or (part == "" and any(splits)):
            raise UserError(f"{where}: {SPLIT}={part!r} must be one of {', '.join(PARTS)}")
        if source.is_dir():
            labels: Sequence[str] = [videos.classes[videos.label(i)]]
        else:
            labels = split_labels(videos.label_text(i))
        path = os.path.normpath(videos.written(i))
        together = groups[i] if groups is not None and groups[i] else path
        for label in labels:
            if source.is_dir() and SEVERAL in label:
                raise UserError(f"{source}: {label!r} is several labels in a table: rename it")
            if not _is_unicode(label):
                raise UserError(f"{where}: the label {label!r} is not UTF-8: save it as UTF-8")
        rows.append(Row(path, tuple(dict.fromkeys(labels)), videos.segment(i), together, part))
    return rows


def _check_groups(own: OwnVideos, source: Path) -> None:
    """Raises UserError where a split is impossible, or a given one leaks."""
    of_video: dict[str, str] = {}
    spelling: dict[str, str] = {}
    for row in own.rows:
        place = join(own.root, row.path)
        if spelling.setdefault(place, row.path) != row.path:
            raise UserError(
                f"{source}: one video is written as {spelling[place]} and as {row.path}: write it "
                "in one way"
            )
        if of_video.setdefault(row.path, row.group) != row.group:
            raise UserError(
                f"{source}: {row.path} is in the groups {of_video[row.path]!r} and "
                f"{row.group!r}: a video belongs to one"
            )
    of_group: dict[str, str] = {}
    for row in own.rows:
        if of_group.setdefault(row.group, row.part) != row.part:
            raise UserError(
                f"{source}: {row.group!r} is in {of_group[row.group]} and in {row.part} (column "
                f"{SPLIT}): what is tested would have been trained on"
            )
    given = {row.part for row in own.rows}
    if given != {""} and not {"train", "test"} <= given:
        raise UserError(f"{source}: the column {SPLIT} needs rows of train and of test")
    if len(of_group) < 2:
        what = "one video" if len(of_video) == 1 else f"one group of {len(of_video)} videos"
        raise UserError(f"{source} has {what}: training and testing need one each")


def _say_overlaps(own: OwnVideos, say: Callable[[str], None]) -> None:
    """Moments of one video under two labels, where a row has one."""
    if own.multilabel:
        return
    of_video: dict[str, list[Row]] = {}
    for row in own.rows:
        of_video.setdefault(row.path, []).append(row)
    found = []
    for path, rows in of_video.items():
        rows.sort(key=lambda row: row.segment or (0.0, math.inf))
        for one, other in zip(rows, rows[1:]):
            first = one.segment or (0.0, math.inf)
            second = other.segment or (0.0, math.inf)
            if second[0] < first[1] and one.labels != other.labels:
                where = "" if other.segment is None else f" at {second[0]:g} s"
                found.append(f"{path}{where}: {one.labels[0]}, {other.labels[0]}")
    if found:
        say(
            f"WARNING: {len(found)} times two rows give one moment of a video other labels "
            f"({'; '.join(found[:NAMED])}): what happens at once can be learned as several labels "
            f"of one row, joined by {SEVERAL}"
        )


# -- files


def measure_videos(own: OwnVideos, source: VideoSource) -> tuple[dict[str, float], dict[str, str]]:
    """(path -> seconds, path -> why it cannot be read) of every video."""
    lengths_s = {}
    unread = {}
    paths = list(dict.fromkeys(row.path for row in own.rows))
    for path in tqdm(paths, unit="videos", disable=not sys.stderr.isatty()):
        file = join(own.root, path)
        if not exists(file):
            unread[path] = "there is no such file"
            continue
        try:
            with source.open(file) as video:
                video.get([0])
                lengths_s[path] = video.info.num_frames / video.info.fps
        except VideoError as e:
            unread[path] = str(e)
    source.close()
    return lengths_s, unread


def without_unread(
    own: OwnVideos, lengths_s: Mapping[str, float], unread: Mapping[str, str], source: Path
) -> OwnVideos:
    """The rows whose videos can be read. Raises UserError: too few, or a segment outside."""
    if len(unread) > len(lengths_s):
        path, reason = next(iter(unread.items()))
        raise UserError(
            f"{source}: {len(unread)} of {len(unread) + len(lengths_s)} videos cannot be read, "
            f"such as {path}: {reason}"
        )
    outside = []
    for row in own.rows:
        if row.segment is not None and row.segment[0] >= lengths_s.get(row.path, math.inf):
            length_s = lengths_s[row.path]
            outside.append(f"{row.path} at {row.segment[0]:g} s, of {length_s:.2f} s")
    if outside:
        raise UserError(
            f"{source}: {len(outside)} segments begin behind the end of their video: "
            f"{', '.join(outside[:NAMED])}"
        )
    rows = [row for row in own.rows if row.path in lengths_s]
    held = {label for row in rows for label in row.labels}
    kept = dataclasses.replace(own, rows=rows, names=[n for n in own.names if n in held])
    if len(kept.names) < 2:
        raise UserError(f"{source}: fewer than two classes have a video that can be read")
    _check_groups(kept, source)
    return kept


# -- lists


def draw_parts(own: OwnVideos, *, seed: int) -> list[Row]:
    """The rows with their parts, where they were not given."""
    if own.rows[0].part:
        return own.rows
    parts = split_by_groups(*_labels_and_groups(own), SHARES, seed=seed)
    return [dataclasses.replace(row, part=PARTS[k]) for row, k in zip(own.rows, parts)]


def draw_folds(own: OwnVideos, folds: int, *, seed: int) -> list[list[Row]]:
    """For every fold, the rows with their parts: it is the test, the next one val, others train.

    Raises UserError where there are too few groups.
    """
    labels, groups = _labels_and_groups(own)
    if len(set(groups)) < folds or folds < 3:
        raise UserError(
            f"--folds {folds}: at least 3, and at most the {len(set(groups))} groups or videos"
        )
    fold = split_by_groups(labels, groups, [1.0] * folds, seed=seed)
    every = []
    for k in range(folds):
        name = {k: "test", (k + 1) % folds: "val"}
        parts = [name.get(int(of_row), "train") for of_row in fold]
        every.append([dataclasses.replace(row, part=p) for row, p in zip(own.rows, parts)])
    return every


def _labels_and_groups(own: OwnVideos) -> tuple[list[list[int]], list[str]]:
    return [own.numbers(row) for row in own.rows], [row.group for row in own.rows]


def background(
    own: OwnVideos, rows: Sequence[Row], lengths_s: Mapping[str, float], *, share: float
) -> list[Row]:
    """Rows of nothing, between segments: at most `share` times as many as each part has.

    A long gap is cut in parts, none of them shorter than a usual segment.
    """
    label = () if own.multilabel else (NOTHING,)
    found = []
    for part in PARTS:
        of_part = [row for row in rows if row.part == part]
        segments: dict[str, list[tuple[float, float]]] = {}
        groups = {row.path: row.group for row in of_part}
        for row in of_part:
            segments.setdefault(row.path, []).append(row.segment or (0.0, math.inf))
        for row in own.unknown:
            if row.path in segments:
                segments[row.path].append(row.segment or (0.0, math.inf))
        gaps = []
        for path, of_video in segments.items():
            for gap in gaps_between(
                of_video, distance_s=DISTANCE_S, least_s=DISTANCE_S, length_s=lengths_s[path]
            ):
                gaps.append((path, *gap))
        chosen = Counter(spread_over(gaps, round(share * len(of_part))))
        for (path, start, end), times in chosen.items():
            pieces = max(min(times, int((end - start) / own.median_s())), 1)
            for k in range(pieces):
                first, last = (start + (end - start) * i / pieces for i in (k, k + 1))
                found.append(Row(path, label, (first, last), groups[path], part))
    return found


def write_lists(folder: Path, own: OwnVideos, rows: Sequence[Row]) -> dict[str, int]:
    """train.csv, val.csv, test.csv and classes.txt. Returns the number of rows of each.

    Raises UserError where a run has begun on other ones.
    """
    names = list(own.names)
    if any(row.labels == (NOTHING,) for row in rows) and NOTHING not in names:
        names.append(NOTHING)
    header = [PATH, LABEL, *([START, END] if own.has_segments else []), GROUP]
    as_numbers = by_number(names, own.multilabel)
    texts = {"classes.txt": "".join(f"{name}\n" for name in names)}
    counts = {}
    for part in PARTS:
        lines = [header]
        for row in rows:
            if row.part != part:
                continue
            labels = [str(names.index(n)) if as_numbers else n for n in row.labels]
            cells = [row.path, SEVERAL.join(labels)]
            if own.has_segments:
                cells += ["", ""] if row.segment is None else [f"{t:.3f}" for t in row.segment]
            lines.append([*cells, row.group])
        counts[part] = len(lines) - 1
        texts[f"{part}.csv"] = "".join(as_csv(cells) + "\n" for cells in lines)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            file = folder / name
            written = text.encode(errors="surrogateescape")
            if file.exists() and file.read_bytes() != written and is_run(folder.parent):
                raise UserError(
                    f"{folder.parent} holds a run on other rows than these: name another --output"
                )
            with written_whole(file) as whole:
                whole.write_bytes(written)
    except OSError as e:
        raise UserError(f"--output: cannot write {folder}: {e.strerror}") from e
    return counts


def by_number(names: Sequence[str], multilabel: bool) -> bool:
    """Whether lists have classes by their places, as which every integer in them is read."""
    return not multilabel and any(re.fullmatch(r"[+-]?\d+", name) for name in names)


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists()


def write_unread(folder: Path, unread: Mapping[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--output: cannot write {folder}: {e.strerror}") from e
    write_csv(folder / "left_out.csv", [["path", "reason"], *map(list, unread.items())])


def _by_number(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isdecimal() else (sys.maxsize, name)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

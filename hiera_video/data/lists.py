"""Lists of videos: `train.csv` and the like, or a folder of class folders.

A list has one video a line, `path label` or `path` alone. The last token is the label only if it is
an integer, so paths may hold spaces (the format of PyTorchVideo's LabeledVideoPaths). One that
begins with a header is a table (tables.py). Rows are kept in flat arrays, not in Python objects:
data-loader workers then share the memory instead of copying it row by row.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hiera_video.data.flat import FlatSets, FlatTexts
from hiera_video.data.tables import (
    PATH,
    SHARD,
    Cells,
    Places,
    Table,
    Texts,
    as_csv,
    is_table,
    label_texts,
    numbered,
    read_table,
    split_labels,
    with_path,
)
from hiera_video.system.errors import UserError
from hiera_video.system.files import exists, join, local

# Rows looked up before a run starts, to tell a wrong data.root from a few missing files.
LOOKED_UP = 20
VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov")
_LABEL = re.compile(r"[+-]?\d+\Z")


class VideoList:
    """Rows of a list.

    `path(i)` is where row i lies, `written(i)` its path as the list has it, `label(i)` its label,
    -1 where there is none, `segment(i)` the part of the video that it is, None for all of it.
    """

    def __init__(
        self,
        paths: list[str],
        labels: list[int],
        *,
        root: str = "",
        source: str = "",
        classes: tuple[str, ...] = (),
        table: Table | None = None,
    ):
        """table: the rows, where the list is one; then `paths` is of no matter."""
        self._records = FlatTexts(table.records) if table else None
        self._paths: Texts = FlatTexts(paths)
        if table is not None and self._records is not None:
            self._paths = Cells(self._records, table.header.index(PATH))
        self._places: Texts = self._paths
        if table is not None and self._records is not None and set(SHARD) <= set(table.header):
            self._places = Places(self._records, table.header)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.root = root
        self.source = source
        # Names of the labels, where the list has them: class folders, or a column of names.
        self.classes = classes
        self.header = table.header if table else None
        segments = np.asarray(table.segments if table else [], dtype=np.float64).reshape(-1, 2)
        # Seconds, [rows, 2].
        self._segments = segments if np.isfinite(segments).any() else None
        self._sets: FlatSets | None = None

    @classmethod
    def from_records(cls, table: Table, *, root: str, source: str) -> "VideoList":
        """Of rows as CSV; their labels are numbered anew."""
        labels, classes = numbered(label_texts(table.records, table.header))
        return cls([], labels, root=root, source=source, classes=classes, table=table)

    def __len__(self) -> int:
        return len(self.labels)

    def written(self, i: int) -> str:
        return self._paths[i]

    def path(self, i: int) -> str:
        return join(self.root, self._places[i])

    def label(self, i: int) -> int:
        return int(self.labels[i])

    @property
    def has_label_sets(self) -> bool:
        """A row has any number of labels (with_label_sets)."""
        return self._sets is not None

    def label_set(self, i: int) -> list[int]:
        assert self._sets is not None  # asked of such lists alone
        return self._sets[i].tolist()

    def target(self, i: int) -> int | np.ndarray:
        """The label, or, of a list with label sets, 1 for each of them: float32 [classes]."""
        if self._sets is None:
            return self.label(i)
        found = np.zeros(self._sets.count, dtype=np.float32)
        found[self._sets[i]] = 1
        return found

    def with_label_sets(self, names: Sequence[str], count: int, *, key: str) -> "VideoList":
        """Its labels as sets, by their places in `names` where they are no integers.

        count: classes. A list without any label stays as it is. Raises UserError for a label that
        is no class.
        """
        texts = [split_labels(self.label_text(i)) for i in range(len(self))]
        if not any(texts):
            return self
        every = {text for labels in texts for text in labels}
        if all(_LABEL.match(text) for text in every) and not set(names) & every:
            number = {text: int(text) for text in every}
        else:
            number = {name: k for k, name in enumerate(names)}
        for i, labels in enumerate(texts):
            for text in labels:
                if not 0 <= number.get(text, -1) < count:
                    raise UserError(
                        f"{key}: row {i + 1} of {self.source} has the label {text!r}, which is "
                        f"none of the {count} classes"
                    )
        listed = self.subset(list(range(len(self))))
        listed._sets = FlatSets([[number[text] for text in labels] for labels in texts], count)
        return listed

    def rows_by_class(self) -> list[np.ndarray]:
        """The rows of every class that has any."""
        if self._sets is not None:
            owners = self._sets.owners()
            classes = self._sets.flat
        else:
            owners = np.flatnonzero(self.labels >= 0)
            classes = self.labels[owners]
        return [owners[classes == c] for c in np.unique(classes)]

    def examples(self, count: int) -> np.ndarray:
        """int64 [count], of every class."""
        labels = self._sets.flat if self._sets is not None else self.labels[self.labels >= 0]
        return np.bincount(labels, minlength=count)

    def label_names(self) -> list[str]:
        """All labels that its rows have, sorted; none where all are integers."""
        texts = (split_labels(self.label_text(i)) for i in range(len(self)))
        every = sorted({text for labels in texts for text in labels})
        return [] if all(_LABEL.match(text) for text in every) else every

    @property
    def has_segments(self) -> bool:
        return self._segments is not None

    def segment(self, i: int) -> tuple[float, float] | None:
        """(start, end) in seconds; None for the whole video."""
        if self._segments is None or math.isnan(self._segments[i, 0]):
            return None
        return float(self._segments[i, 0]), float(self._segments[i, 1])

    def subset(self, rows: list[int]) -> "VideoList":
        labels = [self.label(i) for i in rows]
        table = None
        if self.header is not None and self._records is not None:
            whole = (math.nan, math.nan)
            segments = [self.segment(i) or whole for i in rows] if self.has_segments else []
            records = [self._records[i] for i in rows]
            table = Table(self.header, records, segments=segments)
        part = VideoList(
            [] if table else [self.written(i) for i in rows],
            labels,
            root=self.root,
            source=self.source,
            classes=self.classes,
            table=table,
        )
        if self._sets is not None:
            part._sets = FlatSets([self.label_set(i) for i in rows], self._sets.count)
        return part

    def whole_videos(self) -> "VideoList":
        """Every video of it once, in the order of their first rows, whatever its segments."""
        first = {self.written(i): i for i in reversed(range(len(self)))}
        videos = self.subset(sorted(first.values()))
        videos._segments = None
        return videos

    def column(self, name: str) -> list[str] | None:
        """A table's column, row by row; None where there is none."""
        if self.header is None or self._records is None or name not in self.header:
            return None
        cells = Cells(self._records, self.header.index(name))
        return [cells[i].strip() for i in range(len(self))]

    def label_text(self, i: int) -> str:
        """As the list has it; several are joined by `;`, and there may be none."""
        if self.header is not None and self._records is not None:
            return label_texts([self._records[i]], self.header)[0]
        return "" if self.label(i) < 0 else str(self.label(i))

    def numbered_by(self, names: Sequence[str], *, key: str) -> "VideoList":
        """Labels that were named by this list's own classes, by their places in `names`.

        key: what named the list, for the message. Raises UserError for a class that is not there.
        """
        place = {name: k for k, name in enumerate(names)}
        unknown = [name for name in self.classes if name not in place]
        if unknown:
            row = int(np.flatnonzero(self.labels == self.classes.index(unknown[0]))[0])
            raise UserError(
                f"{key}: row {row + 1} of {self.source} has the label {unknown[0]!r}, which is "
                f"none of the {len(names)} classes ({len(unknown)} such names)"
            )
        numbers = np.array([place[name] for name in self.classes] + [0], dtype=np.int64)
        labels = np.where(self.labels >= 0, numbers[self.labels.clip(-1)], self.labels)
        return self._with_labels(labels, tuple(names))

    def by_name(self) -> "VideoList":
        """A table's labels as names, also where all of them are integers."""
        if self.header is None or self._records is None or self.classes:
            return self
        records = [self._records[i] for i in range(len(self))]
        labels, classes = numbered(label_texts(records, self.header), names=True)
        return self._with_labels(np.asarray(labels, dtype=np.int64), classes)

    def _with_labels(self, labels: np.ndarray, classes: tuple[str, ...]) -> "VideoList":
        renumbered = self.subset(list(range(len(self))))
        renumbered.labels = labels
        renumbered.classes = classes
        return renumbered

    def named(self, i: int) -> str:
        """The path as written and, of a segment, its place: `a.mp4#t=2.0,4.5` (W3C's form)."""
        segment = self.segment(i)
        place = "" if segment is None else f"#t={segment[0]},{segment[1]}"
        return self.written(i) + place

    def sha256(self) -> str:
        """Of the paths as written, the labels and the segments, in order."""
        digest = hashlib.sha256()
        for i in range(len(self)):
            segment = self.segment(i)
            part = "" if segment is None else f" {segment[0]!r} {segment[1]!r}"
            label = self.label_set(i) if self.has_label_sets else self.label(i)
            text = f"{self.written(i)} {label}{part}\n"
            digest.update(text.encode(errors="surrogateescape"))
        return digest.hexdigest()

    def line(self, i: int, path: str | None = None) -> str:
        """The row as its list has it, or with another path, without the end of the line."""
        if self.header is not None and self._records is not None:
            record = self._records[i]
            return record if path is None else with_path(record, self.header, path)
        path = self.written(i) if path is None else path
        return path if self.label(i) == -1 else f"{path} {self.label(i)}"

    def head(self) -> str:
        """What comes before the rows in a list of this kind: a table's header, or nothing."""
        return "" if self.header is None else as_csv(self.header) + "\n"


def read_videos(source: str | Path, *, root: str | Path = "", key: str = "data.train") -> VideoList:
    """Reads a list file, or a folder of class folders.

    Relative paths, of the list and in it, are under `root`.

    `key` is the config key that named it, for the message. Raises UserError.
    """
    name = join(root, source)
    try:
        where = Path(local(name))
    except OSError as e:
        raise UserError(f"{key}: {e}") from e
    if where.is_dir():
        return _read_folders(where, key)
    if not where.is_file():
        raise UserError(
            f"{key}: there is no list {where}; set data.root to the folder that holds it, or {key} "
            "to the list"
        )
    text = where.read_text(encoding="utf-8", errors="surrogateescape")
    if is_table(text):
        return _from_table(read_table(text, source=name, key=key), str(root), name, key)
    paths = []
    labels = []
    for line in text.splitlines():
        line = line.strip()
        if not line:
            continue
        head, *last = line.rsplit(None, 1)
        if last and _LABEL.match(last[0]):
            paths.append(head)
            labels.append(int(last[0]))
        else:
            paths.append(line)
            labels.append(-1)
    if not paths:
        raise UserError(
            f"{key}: the list {where} is empty; it needs one video a line, `path label`"
        )
    return VideoList(paths, labels, root=str(root), source=name)


def _from_table(table: Table, root: str, source: str, key: str) -> VideoList:
    if not table.records:
        raise UserError(f"{key}: the list {source} has a header and no rows")
    return VideoList(
        [],
        table.labels,
        root=root,
        source=source,
        classes=table.classes,
        table=table,
    )


def read_lists(sources: Mapping[str, str], *, root: str) -> dict[str, VideoList]:
    """Key -> list, of key -> source. Raises UserError, also where none of the videos is there."""
    lists = {}
    for key, source in sources.items():
        videos = read_videos(source, root=root, key=key)
        first = range(min(len(videos), LOOKED_UP))
        try:
            found = any(exists(videos.path(i)) for i in first)
        except OSError as e:  # of a remote path
            raise UserError(f"{key}: {videos.path(0)}: {e}") from e
        if not found:
            raise UserError(
                f"{key}: none of the first videos of {videos.source} exists ({videos.path(0)}); "
                "set data.root to the folder that the list's paths are relative to"
            )
        lists[key] = videos
    return lists


def _read_folders(folder: Path, key: str) -> VideoList:
    classes = sorted(f.name for f in folder.iterdir() if f.is_dir())
    paths = []
    labels = []
    for label, name in enumerate(classes):
        for file in sorted((folder / name).rglob("*")):
            if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file():
                paths.append(str(file.relative_to(folder)))
                labels.append(label)
    if not paths:
        raise UserError(
            f"{key}: {folder} has no class folders with videos ({', '.join(VIDEO_SUFFIXES)}) in it"
        )
    return VideoList(paths, labels, root=str(folder), source=str(folder), classes=tuple(classes))

"""Lists of videos: `train.csv` and the like, or a folder of class folders.

A list has one video a line, `path label` or `path` alone. The last token is the label only if it is
an integer, so paths may hold spaces (the format of PyTorchVideo's LabeledVideoPaths). Rows are kept
in flat arrays, not in Python objects: data-loader workers then share the memory instead of copying
it row by row.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hiera_video.system.errors import UserError
from hiera_video.system.files import exists, join, local

# Rows looked up before a run starts, to tell a wrong data.root from a few missing files.
LOOKED_UP = 20
VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov")
_LABEL = re.compile(r"[+-]?\d+\Z")


class VideoList:
    """Rows of a list.

    `path(i)` is where row i lies, `written(i)` its path as the list has it, `label(i)` its label,
    -1 where there is none.
    """

    def __init__(
        self,
        paths: list[str],
        labels: list[int],
        *,
        root: str = "",
        source: str = "",
        classes: tuple[str, ...] = (),
    ):
        encoded = [os.fsencode(p) for p in paths]
        self._text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(p) for p in encoded], dtype=np.int64)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.root = root
        self.source = source
        # Names of the class folders, where the list came from folders.
        self.classes = classes

    def __len__(self) -> int:
        return len(self.labels)

    def written(self, i: int) -> str:
        start = self._ends[i - 1] if i else 0
        return os.fsdecode(self._text[start : self._ends[i]].tobytes())

    def subset(self, rows: list[int]) -> "VideoList":
        paths = [self.written(i) for i in rows]
        labels = [self.label(i) for i in rows]
        return VideoList(paths, labels, root=self.root, source=self.source, classes=self.classes)

    def sha256(self) -> str:
        """Of the paths as written and the labels, in order."""
        digest = hashlib.sha256()
        for i in range(len(self)):
            digest.update(f"{self.written(i)} {self.label(i)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def line(self, i: int) -> str:
        """The row as a list has it: `path label`, or `path` alone."""
        return self.written(i) if self.label(i) == -1 else f"{self.written(i)} {self.label(i)}"

    def path(self, i: int) -> str:
        return join(self.root, self.written(i))

    def label(self, i: int) -> int:
        return int(self.labels[i])


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
    paths = []
    labels = []
    for line in where.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
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


def read_lists(sources: Mapping[str, str], *, root: str) -> dict[str, VideoList]:
    """Key -> list, of key -> source. Raises UserError, also where none of the videos is there."""
    lists = {}
    for key, source in sources.items():
        videos = read_videos(source, root=root, key=key)
        first = range(min(len(videos), LOOKED_UP))
        if not any(exists(videos.path(i)) for i in first):
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


def read_class_names(file: str, *, root: str, key: str) -> list[str]:
    """One name a line, of a file under `root` or, if it is not there, as named.

    key: what named the file, for the message. Raises UserError.
    """
    for name in (join(root, file), file):
        try:
            if exists(name):
                return Path(local(name)).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"{key}: {name}: {e}") from e
    raise UserError(f"{key}: there is no file {file}, here or under data.root")


def check_labels(videos: VideoList, num_classes: int, *, key: str) -> None:
    """Raises UserError for the first row whose label is missing or not in [0, num_classes)."""
    wrong = np.flatnonzero((videos.labels < 0) | (videos.labels >= num_classes))
    if len(wrong):
        row = int(wrong[0])
        label = int(videos.labels[wrong[0]])
        what = "has no label" if label == -1 else f"has label {label}"
        raise UserError(
            f"{key}: row {row + 1} of {videos.source} ({videos.written(row)}) {what}, but the "
            f"model has {num_classes} classes, 0 to {num_classes - 1}; "
            f"set model.num_classes or mend the list ({len(wrong)} such rows)"
        )

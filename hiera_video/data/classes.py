"""Names of classes, and whether the labels of a list are among them."""

from pathlib import Path

import numpy as np

from hiera_video.data.lists import VideoList
from hiera_video.data.tables import NO_LABEL, SEVERAL_LABELS
from hiera_video.system.errors import UserError
from hiera_video.system.files import exists, join, local

# What check_labels says of labels that are none.
WITHOUT = {NO_LABEL: "has no label", SEVERAL_LABELS: "has several labels"}


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
        what = WITHOUT.get(label, f"has label {label}")
        raise UserError(
            f"{key}: row {row + 1} of {videos.source} ({videos.written(row)}) {what}, but the "
            f"model has {num_classes} classes, 0 to {num_classes - 1}; "
            f"set model.num_classes or mend the list ({len(wrong)} such rows)"
        )

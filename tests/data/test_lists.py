"""Lists and folders, as users write them."""

import os

import numpy as np
import pytest

from hiera_video.data.classes import check_labels
from hiera_video.data.lists import read_videos
from hiera_video.system.errors import UserError


def rows(videos):
    return [(videos.written(i), videos.label(i)) for i in range(len(videos))]


def test_list_format(tmp_path):
    text = "a/b.mp4 3\n\nmy holiday 2.mp4 17\nno_label.mp4\nwith spaces.mp4\n"
    text += "  tabbed.mp4\t0  \nüber.mp4 -1\n"
    (tmp_path / "train.csv").write_text(text, encoding="utf-8")
    videos = read_videos("train.csv", root=tmp_path)
    assert rows(videos) == [
        ("a/b.mp4", 3),
        ("my holiday 2.mp4", 17),
        ("no_label.mp4", -1),
        ("with spaces.mp4", -1),
        ("tabbed.mp4", 0),
        ("über.mp4", -1),
    ]
    assert videos.path(0) == str(tmp_path / "a/b.mp4")


def test_same_as_pytorchvideo_on_plain_lists(tmp_path):
    paths = pytest.importorskip("pytorchvideo.data.labeled_video_paths")
    (tmp_path / "train.csv").write_text("a/b.mp4 3\nc d.mp4 17\n/e/f.mp4 0\n")
    theirs = paths.LabeledVideoPaths.from_path(str(tmp_path / "train.csv"))
    ours = read_videos(tmp_path / "train.csv")
    assert [(p, label["label"]) for p, label in (theirs[i] for i in range(len(theirs)))] == rows(
        ours
    )


def test_class_folders(tmp_path):
    for name in ("run/x.mp4", "run/deep/y.webm", "jump/z.MOV", "jump/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    videos = read_videos(tmp_path)
    assert videos.classes == ("jump", "run")
    assert rows(videos) == [("jump/z.MOV", 0), ("run/deep/y.webm", 1), ("run/x.mp4", 1)]


def test_rows_are_flat_arrays(tmp_path):
    """No Python object a row: what workers share stays shared."""
    (tmp_path / "train.csv").write_text(
        "".join(f"videos/{i:09d}.mp4 {i % 400}\n" for i in range(2000))
    )
    videos = read_videos("train.csv", root=tmp_path)
    arrays = [v for v in vars(videos).values() if isinstance(v, np.ndarray)]
    assert sum(a.nbytes for a in arrays) < 2000 * 50
    assert not any(isinstance(v, (list, dict)) and len(v) > 10 for v in vars(videos).values())
    assert videos.written(1999) == "videos/000001999.mp4"


def test_wrong_lists_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.train: there is no list .*set data\.root"):
        read_videos("train.csv", root=tmp_path)
    (tmp_path / "train.csv").write_text("\n\n")
    with pytest.raises(UserError, match="is empty"):
        read_videos("train.csv", root=tmp_path)
    with pytest.raises(UserError, match="no class folders"):
        read_videos(tmp_path)
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 8\n")
    with pytest.raises(UserError, match=r"row 2 .*b\.mp4.* label 8.* 8 classes"):
        check_labels(read_videos("train.csv", root=tmp_path), 8, key="data.train")


def test_a_large_list_is_shared_by_workers(tmp_path):
    """650,000 rows (Kinetics-700): flat arrays, which forked workers read without a copy of their
    own.
    """
    rows = 650_000
    with open(tmp_path / "list.csv", "w") as f:
        f.writelines(
            f"train/some class name {i % 700}/abcdefghijk_{i:06d}_{i + 10:06d}.mp4 {i % 700}\n"
            for i in range(rows)
        )
    videos = read_videos("list.csv", root=tmp_path)
    assert len(videos) == rows and videos.label(649_999) == 649_999 % 700
    assert videos.written(649_999) == "train/some class name 399/abcdefghijk_649999_650009.mp4"
    arrays = [v for v in vars(videos).values() if isinstance(v, np.ndarray)]
    assert sum(a.nbytes for a in arrays) < 60e6, "no Python object a row"
    pid = os.fork()
    # a worker: walks the whole list, and says by its exit status how much memory became its own
    if pid == 0:
        before = private_mib()
        for i in range(rows):
            videos.path(i)
        os._exit(min(int(private_mib() - before), 100))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) < 15


def private_mib():
    with open("/proc/self/smaps_rollup") as f:
        return sum(int(line.split()[1]) for line in f if line.startswith("Private")) / 1024

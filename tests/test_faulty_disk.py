"""Storage that stalls, breaks reads off, refuses locks: real faults, of a real file system."""

import shutil

import numpy as np
import pytest
import torch
from faulty_disk import faulty_disk

from hiera_video.data.dataset import ClipDataset, Key
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import read_videos
from hiera_video.data.transforms import EvalCrops

VIDEOS = 4


@pytest.fixture
def disk(shapes, tmp_path):
    """mounted(faults): a folder with some videos and their list, behind the faults."""
    folder = tmp_path / "disk"
    folder.mkdir()
    rows = (shapes / "train.csv").read_text().splitlines()[:VIDEOS]
    for number, row in enumerate(rows):
        shutil.copy(shapes / row.rsplit(" ", 1)[0], folder / f"{number}.mp4")
    (folder / "train.csv").write_text("".join(f"{n}.mp4 {n % 2}\n" for n in range(VIDEOS)))

    def mounted(faults):
        try:
            import fuse  # noqa: F401
        except (ImportError, OSError) as e:
            pytest.skip(f"no FUSE here: {e}")
        return faulty_disk(folder, tmp_path / "mount", faults)

    return mounted


def first_frames(count, fps, rng):
    return np.arange(4)[None]


def clips_of(folder, *, timeout_s=2.0, quarantine=None):
    source = VideoSource(timeout_s=timeout_s, quarantine=quarantine)
    dataset = ClipDataset(
        read_videos("train.csv", root=folder),
        sample=first_frames,
        transform=EvalCrops(64, 64, 1),
        source=source,
    )
    samples = [dataset[Key(0, index)] for index in range(VIDEOS)]
    source.close()
    return samples


@pytest.mark.parametrize(
    "fault",
    [
        {"on": "read", "match": "1.mp4", "times": 2, "stall_s": 5},
        {"on": "open", "match": "*.mp4", "skip": 1, "times": 2, "stall_s": 5},
        {"on": "read", "match": "2.mp4", "times": 4, "error": "EIO"},
        {"on": "open", "match": "*.mp4", "times": 3, "error": "ESTALE"},
        {"on": "getattr", "match": "3.mp4", "times": 3, "error": "ESTALE"},
    ],
)
def test_storage_that_comes_back_costs_no_video(disk, tmp_path, fault):
    whole = clips_of(tmp_path / "disk")
    with disk([fault]):
        found = clips_of(tmp_path / "mount", quarantine=tmp_path / "quarantine.csv")
    assert [sample["bad"] for sample in found] == [[]] * VIDEOS
    assert all(torch.equal(a["clip"], b["clip"]) for a, b in zip(found, whole))
    assert not (tmp_path / "quarantine.csv").exists()


def test_storage_that_stays_away_is_named_and_no_video_condemned(disk, tmp_path, monkeypatch):
    with disk([{"on": "read", "match": "1.mp4", "times": None, "error": "EIO"}]):
        found = clips_of(tmp_path / "mount", quarantine=tmp_path / "quarantine.csv")
    assert [bool(sample.get("unavailable")) for sample in found] == [False, True, False, False]
    assert "1.mp4 cannot be read: Input/output error" in found[1]["unavailable"]
    assert found[1]["bad"] == [] and not (tmp_path / "quarantine.csv").exists()


def test_a_bad_file_is_bad_on_any_disk(disk, tmp_path):
    (tmp_path / "disk/2.mp4").write_bytes(b"no video" * 1000)
    with disk([]):
        found = clips_of(tmp_path / "mount")
    assert [len(sample["bad"]) for sample in found] == [0, 0, 1, 0]
    assert "Invalid data" in found[2]["bad"][0][1]

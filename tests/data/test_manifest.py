"""The manifest of packet scans: what it saves, and that it never lies."""

import json
import os
import shutil
import sqlite3
import zlib

import numpy as np
import pytest

from hiera_video.data.decode import pyav_reader
from hiera_video.data.decode.packets import Manifest
from hiera_video.data.decode.process import DecodeProcess
from hiera_video.data.decode.readers import open_video


@pytest.fixture
def video(shapes, tmp_path):
    return shutil.copy(sorted(shapes.rglob("*.mp4"))[0], tmp_path / "video.mp4")


@pytest.fixture
def scans(monkeypatch):
    """Paths that were scanned."""
    paths = []
    scan = pyav_reader.PyAVReader._scan
    monkeypatch.setattr(
        pyav_reader.PyAVReader, "_scan", lambda self: paths.append(self._path) or scan(self)
    )
    return paths


def test_a_file_is_scanned_once_and_again_when_it_changes(video, tmp_path, scans):
    manifest = Manifest(tmp_path / "m/manifest.sqlite")
    for decoder in ("auto", "decord", "auto"):
        with open_video(video, decoder, manifest=manifest) as v:
            first = v.info
    with open_video(video, "auto") as plain:
        assert np.array_equal(plain.info.times, first.times) and plain.info.fps == first.fps
        packets = plain.packets
    assert len(scans) == 2
    assert Manifest(tmp_path / "m/manifest.sqlite").find(str(video)) == packets, "kept between runs"
    os.utime(video, (1, 1))
    with open_video(video, manifest=manifest):
        assert len(scans) == 3


def test_many_processes_share_it(video, tmp_path, scans):
    file = tmp_path / "manifest.sqlite"
    processes = [DecodeProcess(timeout_s=60, manifest=file) for _ in range(3)]
    for process in processes:
        with process.open(video, "auto") as v:
            assert v.get([0]).shape[0] == 1
        process.close()
    assert Manifest(file).find(str(video)) is not None


@pytest.mark.parametrize("content", [b"", b"this is no data base" * 100])
def test_a_broken_one_is_no_obstacle(video, tmp_path, content):
    file = tmp_path / "manifest.sqlite"
    file.write_bytes(content)
    for _ in range(2):
        with open_video(video, manifest=Manifest(file)) as v:
            assert v.get([0]).shape[0] == 1
    assert Manifest(file).find(str(video)) is not None, "a new one is in its place"


@pytest.mark.parametrize("wrong", ["damaged", "another version"])
def test_an_entry_that_cannot_be_read_is_written_anew(video, tmp_path, scans, wrong):
    file = tmp_path / "manifest.sqlite"
    with open_video(video, manifest=Manifest(file)):
        pass
    with sqlite3.connect(file) as connection:
        (scan,) = connection.execute("SELECT scan FROM scans").fetchone()
        content = json.loads(zlib.decompress(scan)) | {"a_field_of_tomorrow": 1}
        later = zlib.compress(json.dumps(content).encode())
        entry = scan[:-5] if wrong == "damaged" else later
        connection.execute("UPDATE scans SET scan = ?", (entry,))
    connection.close()
    for _ in range(2):
        with open_video(video, manifest=Manifest(file)) as v:
            assert v.get([0]).shape[0] == 1
    assert len(scans) == 2, "once at the beginning, once for the entry that was wrong"


def test_a_folder_that_cannot_be_written_is_no_obstacle(video):
    with open_video(video, manifest=Manifest("/proc/none/manifest.sqlite")) as v:
        assert v.get([0]).shape[0] == 1

"""tools/check_videos.py on real files: what it says of each, and that nothing stops it."""

import csv

import pytest
from conftest import ROOT, killed_when
from forked import Script

# status, frames, width, height, as the clips' own description has them
REAL = {
    "dog.mp4": ("ok", 150, 256, 256),
    "flipping_a_pancake.mkv": ("ok", 310, 426, 240),
    "kinetics_like.mp4": ("ok", 300, 340, 256),
    "part_0.mp4": ("ok", 32, 340, 256),
    "test.avi": ("ok", 164, 320, 240),
    "demo.avi": ("ok", 300, 853, 480),
    "h264_10bits.mp4": ("ok", 30, 200, 200),
    "h265_video.mp4": ("ok", 10, 128, 128),
    "av1_video.mkv": ("ok", 125, 640, 360),
    "corrupted.mp4": ("damaged", 49, 1280, 720),
}


def manifest_of(file):
    with open(file.with_suffix(".manifest.csv"), newline="") as f:
        return {row["path"]: row for row in csv.DictReader(f)}


def test_real_clips(clips, tmp_path, tool):
    names = [*REAL, "video_90.mov", "hangs_decord.mp4"]
    file = tmp_path / "all.csv"
    file.write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)))
    tool("tools/check_videos.py", file, "--root", clips)
    rows = manifest_of(file)
    assert list(rows) == names
    for name, (status, *numbers) in REAL.items():
        row = rows[name]
        assert (row["status"], *(int(row[k]) for k in ("frames", "width", "height"))) == (
            status,
            *numbers,
        ), name
    assert "header says 301" in rows["demo.avi"]["reason"]
    assert rows["video_90.mov"]["status"] == "ok" and int(rows["video_90.mov"]["frames"]) == 3
    assert int(rows["video_90.mov"]["width"]) < int(rows["video_90.mov"]["height"])  # upright
    assert rows["hangs_decord.mp4"]["status"] == "ok"  # PyAV reads it
    clean = (tmp_path / "all.clean.csv").read_text().splitlines()
    assert clean == [f"{name} {i}" for i, name in enumerate(names) if rows[name]["status"] == "ok"]


def test_bad_files(shapes, tmp_path, tool):
    good = (
        shapes / (shapes / "val.csv").read_text().splitlines()[0].rsplit(" ", 1)[0]
    ).read_bytes()
    (tmp_path / "my good.mp4").write_bytes(good)
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    file = tmp_path / "list.csv"
    file.write_text("my good.mp4 0\ncut.mp4 1\ntext.mp4\nempty.mp4 2\ngone.mp4 3\n")
    done = tool("tools/check_videos.py", file, "--workers", "2")
    rows = manifest_of(file)
    assert [rows[n]["status"] for n in ("my good.mp4", "text.mp4", "empty.mp4", "gone.mp4")] == [
        "ok", "unreadable", "unreadable", "missing",
    ]  # fmt: skip
    assert rows["cut.mp4"]["status"] in ("unreadable", "damaged")
    assert (tmp_path / "list.clean.csv").read_text() == "my good.mp4 0\n"
    assert "missing: gone.mp4" in done.stdout
    assert "no list" in tool("tools/check_videos.py", tmp_path / "absent.csv", check=2).stderr


def test_a_check_that_was_killed_goes_on(shapes, tmp_path, tool):
    lines = (shapes / "train.csv").read_text().splitlines()
    file = tmp_path / "list.csv"
    file.write_text("".join(f"{line}\n" for line in [*lines, "gone.mp4 0", *lines]))
    command = ["tools/check_videos.py", file, "--root", shapes, "--workers", "1"]
    partial = tmp_path / "list.manifest.csv.partial"
    killed_when(
        lambda: partial.exists() and len(partial.read_bytes().splitlines()) > 20, Script(*command)
    )
    assert not (tmp_path / "list.clean.csv").exists(), "nothing passes for a result"
    done = tool(*command)
    assert "videos are ok as a check before found" in done.stdout
    rows = file.with_suffix(".manifest.csv").read_bytes()
    clean = file.with_suffix(".clean.csv").read_text().splitlines()
    assert clean == [*lines, *lines] and not partial.exists()
    again = tool(*command)
    assert "check before" not in again.stdout
    assert file.with_suffix(".manifest.csv").read_bytes() == rows


@pytest.mark.parametrize(
    "body, status", [("while True: pass", "timeout"), ("ctypes.string_at(0)", "crashed")]
)
def test_hangs_and_crashes_have_a_status(shapes, tmp_path, tool, monkeypatch, body, status):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'hiera_video.data.decode.process' in ' '.join(sys.orig_argv):\n"
        "    import ctypes, hiera_video.data.decode.readers as video\n"
        "    def inspect(self):\n"
        f"        {body}\n"
        "    video.PyAVReader.inspect = inspect\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    file = tmp_path / "list.csv"
    file.write_text((shapes / "val.csv").read_text().splitlines()[0] + "\n")
    tool("tools/check_videos.py", file, "--root", shapes, "--timeout", "2")
    assert [row["status"] for row in manifest_of(file).values()] == [status]

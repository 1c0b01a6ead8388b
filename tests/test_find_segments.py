"""hiera-video find-segments: long files with gaps, made of MovingShapes."""

import csv
import json

import av
import numpy as np
import pytest
from conftest import SHORT, start
from safetensors.torch import load_file
from test_report import browse
from test_search import frames_of

from hiera_video.data.lists import read_videos
from hiera_video.evaluation.detection import detection_figures
from hiera_video.evaluation.segments import Segment, SegmentSettings, find_segments

GAP = 15  # frames between two words, of the last one's end standing still


def stitch(file, parts):
    """One file of several videos with still frames between them -> [(start_s, end_s)] of each"""
    times = []
    count = 0
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.height, stream.width = parts[0][0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frames in parts:
            still = [frames[0]] * GAP
            times.append(((count + GAP) / 30, (count + GAP + len(frames)) / 30))
            for frame in [*still, *frames]:
                image = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(image))
            count += GAP + len(frames)
        container.mux(stream.encode())
    return times


@pytest.fixture(scope="module")
def long_files(shapes, tmp_path_factory):
    """Two files of four words each, and their table."""
    folder = tmp_path_factory.mktemp("long")
    names = (shapes / "classes.txt").read_text().splitlines()
    lines = [line.split() for line in (shapes / "val.csv").read_text().splitlines()]
    rows = [["path", "label", "start_s", "end_s"]]
    for k in range(2):
        chosen = lines[4 * k : 4 * k + 4]
        times = stitch(folder / f"{k}.mp4", [frames_of(shapes / path) for path, _ in chosen])
        for (_, label), (first, last) in zip(chosen, times):
            rows.append([f"{k}.mp4", names[int(label)], f"{first:.3f}", f"{last:.3f}"])
    with open(folder / "table.csv", "w", newline="") as f:
        csv.writer(f).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("find") / "run"
    start(f"data.root={shapes}", f"output={out}", "init.weights=null", *SHORT, "stages=[train]")
    return out


def find(tool, weights, videos, output, *more, **how):
    command = ("tools/find_segments.py", "--weights", weights, "--videos", videos)
    return tool(*command, "--output", output, "--hop-s", "0.1", *more, **how)


def test_segments_are_measured(trained, long_files, tmp_path, tool):
    """The figures are those of the written files; other settings need no model; a page shows it."""
    out = tmp_path / "out"
    settings = ("--high", "0.2", "--low", "0.15", "--smooth-s", "0.2", "--least-s", "0.2")
    said = find(tool, trained, long_files / "table.csv", out, *settings).stdout
    assert "in 2 videos" in said and "mAP" in said
    listed = read_videos("table.csv", root=long_files)
    truth = {"0.mp4": [], "1.mp4": []}
    for row in range(len(listed)):
        truth[listed.written(row)].append(
            Segment(listed.label_text(row), 1.0, *listed.segment(row))
        )
    found = {"0.mp4": [], "1.mp4": []}
    with open(out / "segments.csv") as f:
        for row in csv.DictReader(f):
            times = float(row["start_s"]), float(row["end_s"])
            found[row["path"]].append(Segment(row["label"], float(row["score"]), *times))
    assert all(found.values())
    classes = [row["class"] for row in csv.DictReader((out / "classes.csv").open())]
    lengths = {f"{k}.mp4": 4 * (GAP + 28) / 30 for k in range(2)}
    expected = detection_figures(truth, found, lengths, classes)
    expected.pop("classes")
    assert json.loads((out / "metrics.json").read_text()) == pytest.approx(expected, abs=0.5)
    # From the scores that were kept, by hand.
    stored = load_file(out / "scores/000000.safetensors")
    assert float(stored["length_s"]) == pytest.approx(lengths["0.mp4"])
    again = find_segments(
        stored["times"].numpy(),
        stored["scores"].numpy(),
        classes,
        SegmentSettings(0.2, 0.2, 0.15, 0.2),
    )
    assert [s.label for s in again] == [s.label for s in found["0.mp4"]]
    assert np.allclose([s[1:] for s in again], [s[1:] for s in found["0.mp4"]], atol=1e-3)
    before = (out / "scores/000000.safetensors").stat().st_mtime_ns
    find(tool, trained, long_files / "table.csv", out, "--high", "0.9", "--nothing", classes[0])
    assert (out / "scores/000000.safetensors").stat().st_mtime_ns == before
    assert json.loads((out / "settings.json").read_text())["high"] == 0.9
    with open(out / "segments.csv") as f:
        assert classes[0] not in {row["label"] for row in csv.DictReader(f)}
    said, asked = browse(out / "report.html", tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    assert "CONSOLE" not in said and not asked
    assert (out / "report.html").read_text().count('class="truth"') == 8


def test_what_is_wrong_is_said(trained, weights, long_files, tmp_path, tool):
    out = tmp_path / "out"
    for more, words in (
        (("--low", "0.9"), "0 <= low <= high <= 1"),
        (("--nothing", "jump"), "--nothing jump"),
        (("--hop-s", "-1"), "must be > 0"),
    ):
        videos = long_files / "table.csv"
        assert words in find(tool, trained, videos, out, *more, check=2).stderr
    (tmp_path / "list.csv").write_text(f"path\n{long_files}/0.mp4\n{tmp_path}/gone.mp4\n")
    done = find(tool, trained, tmp_path / "list.csv", out, check=2)
    assert "1 videos could not be read" in done.stderr and (out / "segments.csv").exists()
    assert not (out / "metrics.json").exists(), "no truth is known"
    first = sorted((weights / "checkpoints").glob("step_*"))[0]
    other = find(tool, first, long_files / "table.csv", out, check=2).stderr
    assert "scores of other weights" in other
    (tmp_path / "jump.csv").write_text(f"path,label,start_s,end_s\n{long_files}/0.mp4,jump,0,1\n")
    wrong = find(tool, trained, tmp_path / "jump.csv", tmp_path / "new", check=2).stderr
    assert "none of its labels" in wrong

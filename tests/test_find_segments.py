"""hiera-video find-segments: long files with gaps, made of MovingShapes."""

import csv
import json
import subprocess
import sys

import av
import numpy as np
import pytest
from conftest import ROOT, SHORT, start
from moving_shapes import CLASSES, HEIGHT, NUM_FRAMES, WIDTH, draw_video
from safetensors.torch import load_file
from test_report import browse
from test_search import frames_of

from hiera_video.data.lists import read_videos
from hiera_video.evaluation.detection import detection_figures
from hiera_video.evaluation.segments import Segment, SegmentSettings, find_segments
from hiera_video.system.files import write_csv

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
    # The background of the second time is in neither bar.
    shown = sum(s.label != classes[0] for of_video in truth.values() for s in of_video)
    assert (out / "report.html").read_text().count('class="truth"') == shown


def long_table(folder, name, labels, seeds):
    """Files of 60 s of MovingShapes words, with 1 to 2.5 s of a still mouth between them."""
    rows = [["path", "label", "start_s", "end_s"]]
    rng = np.random.default_rng(len(labels))
    words = list(zip(labels, seeds))
    file = 0
    while words:
        path = folder / f"{name}{file}.mp4"
        count = 0
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            while words and count < 60 * 30 - NUM_FRAMES - 75:
                label, seed = words.pop()
                frames = draw_video(label, seed)
                before, after = rng.integers((15, 15), (45, 30))
                still = [frames[0]] * before, [frames[-1]] * after
                for frame in (*still[0], *frames, *still[1]):
                    image = av.VideoFrame.from_ndarray(frame, format="rgb24")
                    container.mux(stream.encode(image))
                start = (count + before) / 30
                end = start + NUM_FRAMES / 30
                rows.append([path.name, CLASSES[label], f"{start:.3f}", f"{end:.3f}"])
                count += before + NUM_FRAMES + after
            container.mux(stream.encode())
        file += 1
    write_csv(folder / f"{name}.csv", rows)


@pytest.mark.trial
def test_words_are_found_in_long_files(tmp_path):
    """The demo's videos in files of 60 s, its pretraining, 1,500 steps of 32 clips: at a temporal
    IoU of 0.5 a mean average precision of 90 and more.
    """
    shapes = tmp_path / "shapes"
    for script, *arguments in (
        ("datasets/moving_shapes.py", shapes),
        (
            *("tools/run_net.py", "--cfg", "configs/demo/pretrain.yaml", f"data.root={shapes}"),
            *(f"data.frame_cache={tmp_path}/frames", f"output={tmp_path / 'mae'}"),
        ),
    ):
        subprocess.run([sys.executable, script, *map(str, arguments)], cwd=ROOT, check=True)
    for name, count, first in (("train", 1600, 0), ("val", 320, 1_000_000)):
        labels = np.random.default_rng(first).permutation(np.arange(count) % len(CLASSES))
        long_table(tmp_path, name, labels.tolist(), range(first, first + count))
    (tmp_path / "classes.txt").write_text("\n".join(sorted([*CLASSES, "nothing"])) + "\n")
    keys = [f"data.root={tmp_path}", f"init.weights={tmp_path / 'mae'}", "data.frame_cache=null"]
    keys += ["train.epochs=20", "optim.warmup_epochs=1", "train.save_every=20", "train.val_every=0"]
    keys += ["data.background_share=0.5", "data.background_class=nothing", "stages=[train]"]
    # Words that are seen in part alone are background.
    keys += ["data.background_distance_s=-0.45", f"output={tmp_path / 'run'}"]
    command = ["tools/run_net.py", "--cfg", "configs/demo/finetune.yaml", *keys]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    command = ["tools/find_segments.py", "--weights", tmp_path / "run", "--hop-s", "0.1"]
    command += ["--videos", tmp_path / "val.csv", "--output", tmp_path / "found"]
    command += ["--nothing", "nothing", "--edges", "windows"]
    command += ["--smooth-s", "0.2", "--high", "0.3", "--low", "0.1"]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
    figures = json.loads((tmp_path / "found/metrics.json").read_text())
    print(figures)
    assert figures["map_0.5"] >= 90


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

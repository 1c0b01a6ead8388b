"""Features in the layouts of action detectors, by the arithmetic of their own loaders.

ActionFormer@61ea7eb libs/datasets/thumos14.py, OpenTAD@3dd7b03
opentad/datasets/transforms/loading.py: written out here as they have it.
"""

import csv
import json

import numpy as np
import pytest
from conftest import FINETUNE
from forked import run_forked
from safetensors.torch import load_file
from test_features import extract

from hiera_video.data.sampling import consecutive_windows

STRIDE = 3
KEYS = (f"features.stride_frames={STRIDE}", "data.num_workers=0")


def run(videos, output, weights, *keys):
    """The features of the list `videos`, in the folder that it lies in."""
    command = extract(videos.parent, output, weights, *KEYS, *keys)
    run_forked(*(videos if part == str(videos.parent / "list.csv") else part for part in command))


@pytest.fixture(scope="module")
def listed(shapes, tmp_path_factory):
    """Four videos, of which two have segments: a table."""
    folder = tmp_path_factory.mktemp("detect")
    videos = sorted((shapes / "train").rglob("*.mp4"))[:4]
    rows = []
    for k, video in enumerate(videos):
        (folder / f"v{k}.mp4").symlink_to(video)
    (folder / "run.mp4").symlink_to(videos[0])
    rows = [("v0.mp4", "jump;run", 0.1, 0.4), ("v0.mp4", "run", 0.5, 0.8), ("v1.mp4", "run", 0, 1)]
    rows += [
        ("v2.mp4", "", "", ""),
        ("v3.mp4", "", "", ""),
        ("run.mp4", "", "", ""),
        ("gone.mp4", "run", 0, 1),
    ]
    with open(folder / "val.csv", "w", newline="") as f:
        csv.writer(f).writerows([("path", "label", "start_s", "end_s"), *rows])
    return folder


@pytest.mark.parametrize("layout", ["actionformer", "opentad"])
def test_a_detector_finds_the_times(listed, tmp_path, weights, layout):
    run(listed / "val.csv", tmp_path / "npy", weights, f"features.layout={layout}")
    # The same windows, with our own times.
    plain = tmp_path / "plain.csv"
    plain.write_text("".join(f"{listed}/v{k}.mp4\n" for k in range(4)))
    run(plain, tmp_path / "own", weights)
    facts = json.loads((tmp_path / "npy/features.json").read_text())
    truth = json.loads((tmp_path / "npy/annotations.json").read_text())["database"]
    with open(tmp_path / "own/manifest.csv") as f:
        own = {row["path"].split("/")[-1][:-4]: row["file"] for row in csv.DictReader(f)}
    for name in ("v0", "v1", "v2", "v3"):
        array = np.load(tmp_path / f"npy/{name}.npy")
        ours = load_file(tmp_path / "own" / own[name])
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, ours["features"].numpy(), rtol=1e-5, atol=1e-6)
        fps = truth[name]["fps"]
        centre = np.arange(len(array))
        if layout == "actionformer":
            stride = facts["actionformer"]["feat_stride"]
            feat_offset = 0.5 * facts["actionformer"]["num_frames"] / stride
            seconds = (centre + feat_offset) * stride / fps
        else:
            o = facts["opentad"]
            seconds = (centre * o["feature_stride"] * o["sample_stride"] + o["offset_frames"]) / fps
        assert np.abs(seconds - ours["times"].numpy().mean(1)).max() <= 0.5 / fps
        sidecar = json.loads((tmp_path / f"npy/{name}.npy.json").read_text())
        assert (
            sidecar["features"] == len(array) and truth[name]["duration"] == sidecar["duration_s"]
        )


def test_the_ground_truth_is_that_of_the_list(listed, tmp_path, weights):
    run(listed / "val.csv", tmp_path, weights, "features.layout=actionformer")
    truth = json.loads((tmp_path / "annotations.json").read_text())["database"]
    assert [a["label"] for a in truth["v0"]["annotations"]] == ["jump", "run", "run"]
    assert truth["v0"]["annotations"][2] == {"label": "run", "label_id": 1, "segment": [0.5, 0.8]}
    assert truth["v0"]["subset"] == "validation" and truth["v2"]["annotations"] == []
    assert "command" in json.loads((tmp_path / "run.json").read_text())  # the run's own
    assert (tmp_path / "category_idx.txt").read_text() == "jump\nrun\n"
    assert (tmp_path / "missing_files.txt").read_text() == "gone\n" and "gone" not in truth
    with open(tmp_path / "manifest.csv") as f:
        rows = list(csv.DictReader(f))
    assert [row["file"] for row in rows] == ["v0.npy", "v1.npy", "v2.npy", "v3.npy", "run.npy", ""]


def test_windows_of_consecutive_frames():
    """`range(0, N - 15, 4)` of THUMOS's features, and a video shorter than a window."""
    for frames in (16, 17, 40, 41):
        found = consecutive_windows(frames, 16, 4)
        assert found[:, 0].tolist() == list(range(0, frames - 15, 4))
        assert (np.diff(found) == 1).all() and found.max() < frames
    assert consecutive_windows(5, 16, 4).tolist() == [[0, 1, 2, 3, *[4] * 12]]


def test_what_does_not_go_together(listed, tmp_path, weights, tool):
    command = ("tools/extract_features.py", "--cfg", FINETUNE, "--weights", weights)
    command += ("--videos", listed / "val.csv", "--output", tmp_path / "out")
    for keys, words in (
        (["features.layout=opentad"], "needs features.stride_frames"),
        (["features.stride_frames=4", "features.hop_s=1"], "set one of them"),
        (
            ["features.layout=opentad", "features.stride_frames=4", "features.stages=[4]"],
            "one vector a window",
        ),
        (
            ["features.layout=opentad", "features.stride_frames=4", "features.dtype=float16"],
            "in float32",
        ),
    ):
        assert words in tool(*command, *keys, check=2).stderr
    (tmp_path / "twice.csv").write_text(f"{listed}/v0.mp4\n{listed}/a/v0.mp4\n")
    command = (*command[:-4], "--videos", tmp_path / "twice.csv", "--output", tmp_path / "out")
    keys = ("features.layout=opentad", "features.stride_frames=4")
    assert "would both be v0.npy" in tool(*command, *keys, check=2).stderr

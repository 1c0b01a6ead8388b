"""Testing and features: each video once, whoever is killed, whatever the ranks and the length of a video."""

import contextlib
import csv
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import av
import moving_shapes
import numpy as np
import pytest
import torch
from conftest import FINETUNE, ROOT, start
from safetensors.torch import load_file
from test_ranks import ranks

from hiera_video.data.annotations import VideoList
from hiera_video.data.sampling import sliding_windows
from hiera_video.data.transforms import EvalCrops, normalise
from hiera_video.data.video import open_video
from hiera_video.distributed import World
from hiera_video.models import create_hiera, load_weights
from hiera_video.scores import ViewScores, hits, subsets

FILES = ("metrics.json", "predictions.csv", "scores.safetensors", "classes.csv", "confusion.csv", "protocol.json")


@pytest.fixture(scope="module")
def weights(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "run"
    short = ["train.epochs=2", "model.embed_dim=16", "model.stages=[1,1,1,1]", "data.num_workers=0"]
    start(f"data.root={shapes}", f"output={folder}", "init.weights=null", "stages=[train]", "train.val_every=0", *short)
    return folder


def killed_when(command, there, **environment):
    """Starts the command in a group of its own and kills all of it as soon as `there()`."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, env={**os.environ, **environment})
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not there():
        time.sleep(0.002)
    assert process.poll() is None, "it ended before it was killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def outcome(folder):
    return {name: (folder / "test" / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def prime(shapes, weights, tmp_path_factory):
    """Overrides for the test of 31 videos, every one flushed at once, and what one rank makes of it.

    One thread everywhere: how many there are decides how a sum is rounded.
    """
    folder = tmp_path_factory.mktemp("prime")
    (folder / "prime.csv").write_text("".join((shapes / "train.csv").read_text().splitlines(keepends=True)[:31]))
    overrides = [f"data.root={shapes}", f"data.test={folder / 'prime.csv'}", f"test.weights={weights}", "stages=[test]"]
    overrides += ["init.weights=null", "model.embed_dim=16", "model.stages=[1,1,1,1]", "data.num_workers=0"]
    overrides += ["test.save_every_s=0"]
    ranks(1, *overrides, f"output={folder / 'whole'}")
    assert not (folder / "whole/test/parts").exists()
    return overrides, outcome(folder / "whole")


def parts_of(run):
    return sorted((run / "test/parts").glob("[0-9]*"))


def kill_test(world, overrides, run, count):
    """Starts the test on `world` ranks and kills them all when `count` more videos are scored."""
    before = len(parts_of(run))
    with socket.socket() as s:
        s.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(s.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    command = shlex.join([sys.executable, "tools/run_net.py", "--cfg", FINETUNE, *overrides, f"output={run}"])
    if world > 1:
        place["WORLD_SIZE"] = str(world)
        command = f"for r in $(seq 0 {world - 1}); do RANK=$r LOCAL_RANK=$r {command} & done; wait"
    killed_when(["bash", "-c", command], lambda: len(parts_of(run)) >= before + count, **place)
    assert not (run / "test/metrics.json").exists()


def test_a_killed_test_goes_on(tmp_path, prime):
    """A prime number of videos; killed twice on one rank, ended on three: the same bytes."""
    overrides, whole = prime
    run = tmp_path / "run"
    for count in (1, 3):
        kill_test(1, overrides, run, count)
    part = parts_of(run)[0]
    part.write_bytes(part.read_bytes()[:-20])  # the machine lost the end of one
    ranks(3, *overrides, f"output={run}")
    assert outcome(run) == whole
    assert "of 31 videos are scored already" in (run / "log.txt").read_text()
    card = json.loads((run / "test/protocol.json").read_text())
    assert card["videos"] == {"listed": 31, "scored": 31, "missing": 0} and card["views"]["clips"] == 5
    metrics = json.loads((run / "test/metrics.json").read_text())
    by_views = {(row["clips"], row["crops"]): row for row in metrics["by_views"]}
    assert set(by_views) == {(1, 1), (1, 3), (3, 1), (3, 3), (5, 1), (5, 3)}
    assert by_views[5, 3]["top1"] == metrics["top1"] and by_views[5, 3]["top5"] == metrics["top5"]


@pytest.mark.trial
@pytest.mark.parametrize(("world", "kills"), [(1, 4), (2, 3), (3, 3)])
def test_killed_on_any_number_of_ranks(tmp_path, prime, world, kills):
    overrides, whole = prime
    for count in random.Random(world).choices(range(1, 7), k=kills):
        kill_test(world, overrides, tmp_path / "run", count)
    ranks(world, *overrides, f"output={tmp_path / 'run'}")
    assert outcome(tmp_path / "run") == whole


def test_other_weights_are_tested_again(tmp_path, finetune, weights):
    copy = tmp_path / "weights.safetensors"
    copy.write_bytes((weights / "checkpoints/latest/model.safetensors").read_bytes())
    more = [f"test.weights={copy}", "stages=[test]", "test.clips=1", "test.crops=1"]
    start(*finetune("run", *more))
    first = (tmp_path / "run/test/scores.safetensors").read_bytes()
    start(*finetune("run", *more))
    assert "done already" in (tmp_path / "run/log.txt").read_text()
    early = sorted((weights / "checkpoints").glob("step_*"))[0] / "model.safetensors"
    copy.write_bytes(early.read_bytes())
    start(*finetune("run", *more))
    assert "testing again" in (tmp_path / "run/log.txt").read_text()
    assert (tmp_path / "run/test/scores.safetensors").read_bytes() != first


def test_scores_by_hand(tmp_path):
    """Two videos, 3 clips x 1 crop, 3 classes: everything that the files say can be told with a pencil."""
    scores = ViewScores(3, 1)
    logits = torch.tensor([[[5.0, 0, 0], [0, 9, 0], [5, 0, 0]], [[0.0, 0, 4], [0, 0, 4], [0, 9, 0]]])
    batch = {"index": torch.tensor([1, 0])}
    scores.update(batch, {"logits": logits})
    videos = VideoList(["b.mp4", "a.mp4"], [1, 0])
    merged = scores.merged(World(0, 1, torch.device("cpu")), {})
    torch.testing.assert_close(merged.rows[1]["scores"], logits[0].softmax(-1).mean(0))
    metrics = merged.write(tmp_path, videos, names=["x", "y", "z"], protocol={})
    assert metrics["top1"] == 50.0 and metrics["top5"] == 100.0 and metrics["mean_class"] == 50.0
    assert metrics["view_top1"] == pytest.approx(100 * 3 / 6)
    assert metrics["by_views"][0] == {
        "clips": 1,
        "crops": 1,
        "top1": 0.0,
        "top5": 100.0,
    }  # the middle clip is wrong in both
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert rows[0]["name"] == "x" and rows[0]["top1"] == "100.00" and rows[1]["taken_for_name"] == "z"
    assert (tmp_path / "confusion.csv").read_text().split() == ["label,prediction,videos", "0,0,1", "1,2,1"]
    assert hits(torch.tensor([[0, 1], [2, 0]]), torch.tensor([1, 1])) == {"top1": 0.0, "top5": 50.0}


def test_fewer_views_are_spread_over_the_video():
    chosen = {(n, k): views for n, k, views in subsets(5, 3)}
    assert chosen[1, 1] == [7] and chosen[3, 1] == [1, 7, 13] and chosen[1, 3] == [6, 7, 8]
    assert chosen[5, 3] == list(range(15)) and [n for n, _, _ in subsets(4, 1)] == [1, 3, 4]


def write_long(folder, minutes):
    """A video at 30 frames a second in which what is seen changes all the time, and its list."""
    folder.mkdir(exist_ok=True)
    scene = np.concatenate([moving_shapes.draw_video(k % 8, k)[:, :, 16:80] for k in range(150)])  # 2 minutes
    with av.open(str(folder / "long.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for k in range(minutes * 60 * 30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene[k % len(scene)], format="rgb24")))
        container.mux(stream.encode())
    (folder / "list.csv").write_text("long.mp4 0\n")
    return folder


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    return write_long(tmp_path_factory.mktemp("long"), 5)


def extract(folder, output, weights, *more):
    command = [sys.executable, "tools/extract_features.py", "--cfg", FINETUNE, "--weights", str(weights)]
    command += [
        "--videos",
        str(folder / "list.csv"),
        "--output",
        str(output),
        f"data.root={folder}",
        "data.classes=null",
    ]
    return [
        *command,
        "model.embed_dim=16",
        "model.stages=[1,1,1,1]",
        "model.num_classes=8",
        "data.num_workers=1",
        *more,
    ]


def test_features_of_a_long_video_killed_half_way(long_video, tmp_path, weights):
    """A file in many chunks: after a kill the same bytes; every window equals the model called by hand."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    more = ["features.stages=[4]"]
    subprocess.run(extract(long_video, whole, weights, *more), cwd=ROOT, check=True)
    command = extract(long_video, run, weights, *more)
    killed_when(command, lambda: len(list(run.glob(".parts/000000/[0-9]*"))) >= 3)
    assert not (run / "manifest.csv").exists()
    subprocess.run(command, cwd=ROOT, check=True)
    name = "000000_long.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes() and not (run / ".parts").exists()
    assert (run / "manifest.csv").read_text().splitlines()[1].startswith(f"long.mp4,{name},563,ok")
    tensors = load_file(whole / name)
    assert tensors["features"].shape == (563, 128) and tensors["stage4"].shape == (563, 4, 2, 2, 128)

    model = create_hiera("hiera_tiny_16x224", input_size=(8, 64, 64), embed_dim=16, stages=(1, 1, 1, 1), num_classes=8)
    load_weights(model, weights)
    with open_video(long_video / "long.mp4", "pyav") as video:
        windows = sliding_windows(video.info.num_frames, video.info.fps, 8, 2)
        for k in (0, 16, 130, 562):
            frames = torch.from_numpy(video.get(windows[k])).permute(0, 3, 1, 2)
            clip = normalise(EvalCrops(64, 64, 1)(frames).clips, (0.45,) * 3, (0.225,) * 3)
            with torch.inference_mode():
                torch.testing.assert_close(tensors["features"][k], model.eval().features(clip)[0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(tensors["stage4"][k], model.feature_maps(clip)[3][0], rtol=1e-4, atol=1e-4)
            times = video.info.times[windows[k][[0, -1]]]
            assert tensors["times"][k].tolist() == pytest.approx([times[0], times[1] + 1 / video.info.fps])


def memory_of_group(group):
    """Bytes of all processes of a process group; what several share counts once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[2]) == group:
                pss = next(
                    line for line in (folder / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:")
                )
                total += int(pss.split()[1]) * 1024
    return total


@pytest.mark.trial
def test_features_of_two_hours(tmp_path, weights):
    """Bounded memory and time; killed half-way, the same bytes."""
    folder = write_long(tmp_path / "long", 120)
    command = extract(folder, tmp_path / "whole", weights)
    began, peak = time.monotonic(), 0
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    while process.poll() is None:
        peak = max(peak, memory_of_group(process.pid))
        time.sleep(0.2)
    seconds = time.monotonic() - began
    print(f"two hours: {seconds:.0f} s, peak {peak / 1e9:.2f} GB")
    assert process.returncode == 0 and seconds < 300 and 0 < peak < 1.5e9
    command = extract(folder, tmp_path / "run", weights)
    parts = (tmp_path / "whole" / "000000_long.safetensors").stat().st_size  # of features alone: what the parts grow to
    killed_when(command, lambda: sum(f.stat().st_size for f in tmp_path.glob("run/.parts/000000/[0-9]*")) > parts / 2)
    subprocess.run(command, cwd=ROOT, check=True)
    name = "000000_long.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_averages_halves_and_pooled_maps(long_video, tmp_path, weights):
    for name, more in (
        ("plain", ["features.stages=[4]"]),
        ("mean", ["features.average=true"]),
        ("half", ["features.dtype=float16", "features.stages=[4]", "features.pool_maps=true"]),
    ):
        subprocess.run(extract(long_video, tmp_path / name, weights, *more), cwd=ROOT, check=True)
    plain, mean, half = (load_file(tmp_path / n / "000000_long.safetensors") for n in ("plain", "mean", "half"))
    torch.testing.assert_close(mean["features"][0], plain["features"].mean(0))
    assert mean["times"].tolist() == [[plain["times"][0, 0], plain["times"][-1, 1]]]
    assert half["features"].dtype == torch.float16
    torch.testing.assert_close(half["features"].float(), plain["features"], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(half["stage4"].float(), plain["stage4"].flatten(1, -2).mean(1), rtol=1e-2, atol=1e-2)
    other = extract(
        long_video, tmp_path / "mean", sorted((weights / "checkpoints").glob("step_*"))[0], "features.average=true"
    )
    done = subprocess.run(other, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "test.weights" in done.stderr


def test_jobs_share_a_list(shapes, tmp_path, weights):
    """Three tasks of a job array with one output, and a video that is missing: one manifest, as of one job."""
    (tmp_path / "list.csv").write_text((shapes / "val.csv").read_text() + "nothing.mp4 0\n")
    common = [*extract(tmp_path, tmp_path / "out", weights), f"data.root={shapes}", "data.num_workers=0"]
    common[common.index("--output") + 1] = str(tmp_path / "one")
    subprocess.run(common, cwd=ROOT, check=True)
    common[common.index("--output") + 1] = str(tmp_path / "out")
    for k in (2, 0, 1):
        task = {"SLURM_ARRAY_TASK_ID": str(k), "SLURM_ARRAY_TASK_COUNT": "3"}
        subprocess.run([*common, "--shard", "slurm"], cwd=ROOT, check=True, env={**os.environ, **task})
    assert (tmp_path / "out/manifest.csv").read_text() == (tmp_path / "one/manifest.csv").read_text()
    rows = list(csv.DictReader((tmp_path / "out/manifest.csv").open()))
    assert len(rows) == 10 and [r["status"] == "ok" for r in rows] == [True] * 9 + [False]
    wrong = subprocess.run([*common, "--shard", "3/3"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and "shards of 3 are 0 to 2" in wrong.stderr
    (tmp_path / "list.csv").write_text((shapes / "val.csv").read_text())
    for shard, said in (
        ("0/3", "list.csv has changed"),
        ("0/2", "other rows in its list"),
    ):  # rows are known by their number
        other = subprocess.run([*common, "--shard", shard], cwd=ROOT, capture_output=True, text=True)
        assert other.returncode == 2 and said in other.stderr

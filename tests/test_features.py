"""Features: every window once, whoever is killed, whatever the length of a video and the jobs that
share a list.
"""

import contextlib
import csv
import os
import shutil
import subprocess
import sys
import time

import av
import moving_shapes
import numpy as np
import pytest
import torch
from conftest import FINETUNE, ROOT, killed_when
from forked import Script, run_forked
from run_folders import memory_of_group
from safetensors.torch import load_file

from hiera_video.config import load_config
from hiera_video.data.decode.readers import open_video
from hiera_video.data.sampling import sliding_windows
from hiera_video.data.transforms import EvalCrops, normalise
from hiera_video.evaluation import features, layouts
from hiera_video.evaluation.feature_folder import FeatureFolder
from hiera_video.models import create_hiera, load_weights
from hiera_video.stages.run import extract_features
from hiera_video.system.errors import RunStopped, UserError


def write_long(folder, minutes):
    """A video at 30 frames a second in which what is seen changes all the time, and its list."""
    folder.mkdir(exist_ok=True)
    # 2 minutes
    scene = np.concatenate([moving_shapes.draw_video(k % 8, k)[:, :, 16:80] for k in range(150)])
    with av.open(str(folder / "long.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width = 64
        stream.height = 64
        stream.pix_fmt = "yuv420p"
        for k in range(minutes * 60 * 30):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(scene[k % len(scene)], format="rgb24"))
            )
        container.mux(stream.encode())
    (folder / "list.csv").write_text("long.mp4 0\n")
    return folder


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    return write_long(tmp_path_factory.mktemp("long"), 5)


@pytest.fixture(scope="module")
def whole_features(long_video, weights, tmp_path_factory):
    """Of the long video, with the last stage's maps."""
    output = tmp_path_factory.mktemp("whole") / "features"
    run_forked(*extract(long_video, output, weights, "features.stages=[4]"))
    return output


def extract(folder, output, weights, *more):
    command = ["tools/extract_features.py", "--cfg", FINETUNE, "--weights", str(weights)]
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


def test_features_of_a_long_video_killed_half_way(long_video, whole_features, tmp_path, weights):
    """A file in many chunks: after a kill the same bytes; every window equals the model called by
    hand.
    """
    whole = whole_features
    run = tmp_path / "run"
    more = ["features.stages=[4]"]
    command = extract(long_video, run, weights, *more)
    killed_when(lambda: len(list(run.glob(".parts/000000/[0-9]*"))) >= 3, Script(*command))
    assert not (run / "manifest.csv").exists()
    run_forked(*command)
    name = "000000_long.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes() and not (
        run / ".parts"
    ).exists()
    assert (run / "manifest.csv").read_text().splitlines()[1].startswith(f"long.mp4,{name},563,ok")
    tensors = load_file(whole / name)
    assert tensors["features"].shape == (563, 128) and tensors["stage4"].shape == (
        563,
        4,
        2,
        2,
        128,
    )

    model = create_hiera(
        "hiera_tiny_16x224",
        input_size=(8, 64, 64),
        embed_dim=16,
        stages=(1, 1, 1, 1),
        num_classes=8,
    )
    load_weights(model, weights)
    with open_video(long_video / "long.mp4", "pyav") as video:
        windows = sliding_windows(video.info.num_frames, video.info.fps, 8, 2)
        for k in (0, 16, 130, 562):
            frames = torch.from_numpy(video.get(windows[k])).permute(0, 3, 1, 2)
            clip = normalise(EvalCrops(64, 64, 1)(frames).clips, (0.45,) * 3, (0.225,) * 3)
            with torch.inference_mode():
                torch.testing.assert_close(
                    tensors["features"][k], model.eval().features(clip)[0], rtol=1e-4, atol=1e-5
                )
                torch.testing.assert_close(
                    tensors["stage4"][k], model.feature_maps(clip)[3][0], rtol=1e-4, atol=1e-4
                )
            times = video.info.times[windows[k][[0, -1]]]
            assert tensors["times"][k].tolist() == pytest.approx(
                [times[0], times[1] + 1 / video.info.fps]
            )


@pytest.mark.trial
def test_features_of_two_hours(tmp_path, weights):
    """Bounded memory and time; killed half-way, the same bytes."""
    folder = write_long(tmp_path / "long", 120)
    command = extract(folder, tmp_path / "whole", weights)
    began = time.monotonic()
    peak = 0
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, start_new_session=True)
    while process.poll() is None:
        peak = max(peak, memory_of_group(process.pid))
        time.sleep(0.2)
    seconds = time.monotonic() - began
    print(f"two hours: {seconds:.0f} s, peak {peak / 1e9:.2f} GB")
    assert process.returncode == 0 and seconds < 300 and 0 < peak < 1.5e9
    command = extract(folder, tmp_path / "run", weights)
    # of features alone: what the parts grow to
    parts = (tmp_path / "whole" / "000000_long.safetensors").stat().st_size
    killed_when(
        lambda: (
            sum(f.stat().st_size for f in tmp_path.glob("run/.parts/000000/[0-9]*")) > parts / 2
        ),
        Script(*command),
    )
    run_forked(*command)
    name = "000000_long.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_averages_halves_and_pooled_maps(long_video, whole_features, tmp_path, weights):
    for name, more in (
        ("mean", ["features.average=true"]),
        ("half", ["features.dtype=float16", "features.stages=[4]", "features.pool_maps=true"]),
    ):
        run_forked(*extract(long_video, tmp_path / name, weights, *more))
    plain = load_file(whole_features / "000000_long.safetensors")
    mean, half = (load_file(tmp_path / n / "000000_long.safetensors") for n in ("mean", "half"))
    torch.testing.assert_close(mean["features"][0], plain["features"].mean(0))
    assert mean["times"].tolist() == [[plain["times"][0, 0], plain["times"][-1, 1]]]
    assert half["features"].dtype == torch.float16
    torch.testing.assert_close(half["features"].float(), plain["features"], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(
        half["stage4"].float(), plain["stage4"].flatten(1, -2).mean(1), rtol=1e-2, atol=1e-2
    )
    other = extract(
        long_video,
        tmp_path / "mean",
        sorted((weights / "checkpoints").glob("step_*"))[0],
        "features.average=true",
    )
    done = Script(*other).wait(60)
    assert done.returncode == 2 and "test.weights" in done.stderr


def test_jobs_share_a_list(shapes, tmp_path, weights, tool):
    """Three tasks of a job array with one output, and a video that is missing: one manifest, as of
    one job.
    """
    (tmp_path / "list.csv").write_text((shapes / "val.csv").read_text() + "nothing.mp4 0\n")
    common = [
        *extract(tmp_path, tmp_path / "out", weights),
        f"data.root={shapes}",
        "data.num_workers=0",
    ]
    common[common.index("--output") + 1] = str(tmp_path / "one")
    run_forked(*common)
    common[common.index("--output") + 1] = str(tmp_path / "out")
    for k in (2, 0, 1):
        task = {"SLURM_ARRAY_TASK_ID": str(k), "SLURM_ARRAY_TASK_COUNT": "3"}
        Script(*common, "--shard", "slurm", **task).check(280)
    assert (tmp_path / "out/manifest.csv").read_text() == (
        tmp_path / "one/manifest.csv"
    ).read_text()
    rows = list(csv.DictReader((tmp_path / "out/manifest.csv").open()))
    assert len(rows) == 10 and [r["status"] == "ok" for r in rows] == [True] * 9 + [False]
    assert "shards of 3 are 0 to 2" in tool(*common, "--shard", "3/3", check=2).stderr
    (tmp_path / "list.csv").write_text((shapes / "val.csv").read_text())
    # rows are known by their number, and all jobs must make the same of them
    for shard, more, said in (
        ("0/3", [], "list.csv has changed"),
        ("1/2", [], "features of other rows of the list"),
        ("1/3", ["features.dtype=float16"], "these keys differ: features.dtype"),
    ):
        assert said in tool(*common, "--shard", shard, *more, check=2).stderr


def test_many_videos_a_file(shapes, tmp_path, weights):
    """Packed, killed after the first file: what each video has in a file of its own; in the end a
    few files, and nothing that waits.
    """
    (tmp_path / "list.csv").write_text((shapes / "train.csv").read_text() + "nothing.mp4 0\n")
    more = [f"data.root={shapes}", "features.stages=[1]", "data.num_workers=0"]
    run_forked(*extract(tmp_path, tmp_path / "each", weights, *more))
    packed = tmp_path / "packed"
    more += ["features.layout=packed", "features.pack_mib=1"]
    command = extract(tmp_path, packed, weights, *more)
    killed_when(lambda: len(list(packed.glob("packed_*"))) >= 1, Script(*command))
    for shard in ("0/2", "1/2"):  # another way to share the rows, in another folder
        run_forked(*extract(tmp_path, tmp_path / "jobs", weights, *more), "--shard", shard)
    run_forked(*command)
    each = FeatureFolder(tmp_path / "each")
    for folder in (packed, tmp_path / "jobs"):
        files = sorted(folder.glob("packed_*"))
        assert 2 < len(files) < 8 and not (folder / ".parts").exists()
        of_all = sorted(row for file in files for row in load_file(file)["rows"].tolist())
        assert of_all == list(range(32)), "every row once"
        found = FeatureFolder(folder)
        assert len(found) == 32 and found.lines[32]["status"] != "ok"
        for k in range(32):
            assert found.path(k) == each.path(k)
            assert torch.equal(found.features(k), each.features(k))
            assert torch.equal(found.read(k, "stage1", 1), each.read(k, "stage1")[1:2])
            assert (found.times(k) == each.times(k)).all()
    run_forked(*command)
    assert "done already" in (packed / "log.txt").read_text()


def test_a_long_video_in_a_packed_file(long_video, whole_features, tmp_path, weights):
    more = ["features.layout=packed", "features.stages=[4]"]
    run_forked(*extract(long_video, tmp_path / "packed", weights, *more))
    each = load_file(whole_features / "000000_long.safetensors")
    packed = load_file(tmp_path / "packed/packed_000000.safetensors")
    assert packed.pop("rows").tolist() == [0] and packed.pop("windows").tolist() == [563]
    assert packed.keys() == each.keys()
    assert all(torch.equal(packed[name], each[name]) for name in each)


@pytest.mark.parametrize("layout", ["files", "packed"])
def test_more_jobs_than_videos(shapes, tmp_path, weights, layout):
    (tmp_path / "list.csv").write_text((shapes / "val.csv").read_text().splitlines()[0] + "\n")
    command = [*extract(tmp_path, tmp_path / "out", weights), f"data.root={shapes}"]
    for shard in ("1/2", "0/2"):
        run_forked(*command, f"features.layout={layout}", "data.num_workers=0", "--shard", shard)
    assert len(FeatureFolder(tmp_path / "out")) == 1


@pytest.mark.parametrize(("average", "step"), [(False, "join"), (True, "average")])
def test_killed_when_all_parts_are_there(
    long_video, tmp_path, weights, tool, monkeypatch, average, step
):
    """In the middle of putting them together, or just after it."""
    more = [f"features.average={str(average).lower()}", "data.num_workers=0"]
    command = extract(long_video, tmp_path / "run", weights, *more)
    whole = tmp_path / "whole/000000_long.safetensors"
    run_forked(*extract(long_video, tmp_path / "whole", weights, *more))

    def dies(*_, **__):
        raise KeyboardInterrupt

    of_step = features if average else layouts
    for place, name in ((of_step, step), (features.shutil, "rmtree")):
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(place, name, dies)
            m.setattr(sys, "argv", command)
            extraction(long_video, tmp_path / "run", weights, *more)
    assert list((tmp_path / "run/.parts/000000").glob("[0-9]*"))
    run_forked(*command)
    assert (tmp_path / "run/000000_long.safetensors").read_bytes() == whole.read_bytes()
    assert (
        not (tmp_path / "run/.parts").exists()
        and "long.mp4" in (tmp_path / "run/manifest.csv").read_text()
    )


def extraction(folder, output, weights, *more):
    """What extract() is the command of, in this process."""
    small = [
        "model.embed_dim=16",
        "model.stages=[1,1,1,1]",
        "model.num_classes=8",
        "data.classes=null",
    ]
    given = [
        f"test.weights={weights}",
        f"features.videos={folder / 'list.csv'}",
        f"data.root={folder}",
    ]
    extract_features(
        load_config(
            ROOT / FINETUNE,
            [*small, *given, f"output={output}", "stages=[features]", "data.num_workers=0", *more],
        )
    )


def test_damaged_files_and_odd_names(shapes, tmp_path, weights):
    """A file that lost its end is made again; names that no file system or table likes lose
    nobody's features.
    """
    source = sorted(shapes.rglob("*.mp4"))[0]
    odd = [b"caf\xe9.mp4", b"x" * 240 + b".mp4", "видео, два.mp4".encode()]
    for name in odd:
        shutil.copy(source, os.path.join(os.fsencode(tmp_path), name))
    (tmp_path / "list.csv").write_bytes(b"".join(name + b" 0\n" for name in odd))
    extraction(tmp_path, tmp_path / "out", weights)
    files = sorted(tmp_path.glob("out/*.safetensors"))
    before = [f.read_bytes() for f in files]
    assert len(files) == 3 and len(set(map(len, before))) == 1
    rows = list(
        csv.DictReader((tmp_path / "out/manifest.csv").open(errors="surrogateescape", newline=""))
    )
    assert [os.fsencode(row["path"]) for row in rows] == odd and all(
        row["status"] == "ok" for row in rows
    )
    files[1].write_bytes(before[1][:100])
    (tmp_path / "out/manifest.csv").unlink()
    extraction(tmp_path, tmp_path / "out", weights)
    assert [f.read_bytes() for f in files] == before and "2 of 3 videos are done" in (
        tmp_path / "out/log.txt"
    ).read_text()


def test_what_was_missing_is_made_by_the_same_command(shapes, tmp_path, weights):
    """Too few is exit status 3 (RunStopped), and the next call tries them again."""
    videos = sorted(shapes.rglob("*.mp4"))[:3]
    for number, video in enumerate(videos):
        shutil.copy(video, tmp_path / f"{number}.mp4")
    (tmp_path / "list.csv").write_text("".join(f"{n}.mp4 0\n" for n in range(3)))
    (tmp_path / "1.mp4").rename(tmp_path / "away")
    run = (tmp_path, tmp_path / "out", weights, "features.min_coverage=0.9")
    with pytest.raises(RunStopped, match=r"2 of 3 videos have features.*min_coverage=0\.9"):
        extraction(*run)
    before = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("out/*.safetensors")}
    assert len(before) == 2
    (tmp_path / "away").rename(tmp_path / "1.mp4")
    extraction(*run)
    after = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("out/*.safetensors")}
    assert len(after) == 3 and before.items() <= after.items(), "what is there is not made again"


def test_finished_features_of_other_weights_are_refused(shapes, tmp_path, weights):
    shutil.copy(shapes / "val.csv", tmp_path / "list.csv")
    copy = tmp_path / "weights.safetensors"
    steps = sorted((weights / "checkpoints").glob("step_*"))
    for step, error in ((0, None), (0, None), (-1, "features of other weights")):
        shutil.copy(steps[step] / "model.safetensors", copy)
        with pytest.raises(UserError, match=error) if error else contextlib.nullcontext():
            extraction(tmp_path, tmp_path / "out", copy, f"data.root={shapes}")
    assert "done already" in (tmp_path / "out/log.txt").read_text()


def test_class_names_are_not_needed(shapes, weights, tmp_path):
    """The weights say how many classes there are: a file that is not there is no obstacle."""
    overrides = [f"data.root={shapes}", "model.embed_dim=16", "model.stages=[1,1,1,1]"]
    overrides += ["data.classes=gone.txt", f"test.weights={weights}", f"output={tmp_path / 'out'}"]
    extract_features(load_config(ROOT / FINETUNE, [*overrides, "stages=[features]"]))
    assert "val" in (tmp_path / "out/manifest.csv").read_text()

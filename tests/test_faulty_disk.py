"""Storage that stalls, breaks reads off, refuses locks: real faults, of a real file system."""

import functools
import shutil
import subprocess
import sys
import time

import av
import numpy as np
import pytest
import torch
from conftest import FINETUNE, PRETRAIN, ROOT, SHORT
from faulty_disk import faulty_disk, seeded_faults
from forked import Script
from run_folders import rows, state

from hiera_video.config import load_config
from hiera_video.data.dataset import ClipDataset, Key
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import read_videos
from hiera_video.data.transforms import EvalCrops
from hiera_video.stages.folder import open_run_folder
from hiera_video.system.distributed import World

VIDEOS = 4
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def disk(shapes, tmp_path):
    """mounted(faults): a folder with some videos and their list, behind the faults."""
    folder = tmp_path / "disk"
    folder.mkdir()
    lines = (shapes / "train.csv").read_text().splitlines()[:VIDEOS]
    for number, row in enumerate(lines):
        shutil.copy(shapes / row.rsplit(" ", 1)[0], folder / f"{number}.mp4")
    (folder / "train.csv").write_text("".join(f"{n}.mp4 {n % 2}\n" for n in range(VIDEOS)))

    def mounted(faults):
        return faulty_disk(folder, tmp_path / "mount", faults)

    return mounted


def first_frames(count, fps, rng):
    return np.arange(4)[None]


def clips_of(folder, *, timeout_s=1.0, quarantine=None):
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
        {"on": "read", "match": "1.mp4", "times": 2, "stall_s": 2.5},
        pytest.param(
            {"on": "open", "match": "*.mp4", "skip": 1, "times": 2, "stall_s": 2.5},
            marks=pytest.mark.trial,
        ),
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


def test_storage_that_stays_away_is_named_and_no_video_condemned(disk, tmp_path):
    with disk([{"on": "read", "match": "*.mp4", "times": None, "error": "EIO"}]):
        began = time.monotonic()
        found = clips_of(tmp_path / "mount", quarantine=tmp_path / "quarantine.csv")
        assert time.monotonic() - began < 40, "it is waited for once, and not for every video"
    for sample in found:
        assert "0.mp4 cannot be read: Input/output error" in sample["unavailable"]
    assert not (tmp_path / "quarantine.csv").exists()


def test_one_file_that_stays_away_among_others_is_a_bad_one(disk, tmp_path):
    with disk([{"on": "read", "match": "1.mp4", "times": None, "error": "EIO"}]):
        found = clips_of(tmp_path / "mount", quarantine=tmp_path / "quarantine.csv")
    assert [len(sample["bad"]) for sample in found] == [0, 1, 0, 0]
    assert "Input/output error" in found[1]["bad"][0][1]
    assert not (tmp_path / "quarantine.csv").exists()


def test_a_long_file_may_take_as_long_as_it_comes(tmp_path):
    """It goes on, if slowly, with a limit of 1 s for each decode."""
    folder = tmp_path / "disk"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (72, 240, 320, 3), np.uint8)
    with av.open(folder / "long.mp4", "w") as file:
        stream = file.add_stream("libx264", rate=24, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height = 320, 240
        for frame in [*noise, None]:
            picture = None if frame is None else av.VideoFrame.from_ndarray(frame)
            file.mux(stream.encode(picture))
    slow = {"on": "read", "match": "*.mp4", "times": None, "stall_s": 0.09}
    with faulty_disk(folder, tmp_path / "mount", [slow]):
        began = time.monotonic()
        source = VideoSource(timeout_s=1.0)
        with source.open(str(tmp_path / "mount/long.mp4")) as video:
            assert video.info.num_frames == 72 and video.get([71]).shape == (1, 240, 320, 3)
        source.close()
        assert time.monotonic() - began > 2


def test_a_run_goes_on_where_files_cannot_be_locked(disk, tmp_path):
    config = load_config(ROOT / FINETUNE)
    with disk([{"on": "lock", "match": "*", "error": "ENOLCK"}]):
        log = open_run_folder(config, ALONE, {}, folder=tmp_path / "mount/run")
        log.close()
    said = (tmp_path / "disk/run/log.txt").read_text()
    assert "WARNING: the file system of" in said and "No locks available" in said


def test_a_bad_file_is_bad_on_any_disk(disk, tmp_path):
    (tmp_path / "disk/2.mp4").write_bytes(b"no video" * 1000)
    with disk([]):
        found = clips_of(tmp_path / "mount")
    assert [len(sample["bad"]) for sample in found] == [0, 0, 1, 0]
    assert "Invalid data" in found[2]["bad"][0][1]


WORK = {  # what runs -> overrides
    "pretrain": (PRETRAIN, "train.repeats=1"),
    "finetune": (FINETUNE, "stages=[train]"),
    "test": (FINETUNE, "stages=[train,test]", "train.epochs=1", "test.clips=2", "test.crops=1"),
    "features": (FINETUNE, "stages=[train,features]", "train.epochs=1", "features.videos=val.csv"),
}
SHORT_FORM = [("pretrain", 6, 0, 1)]
LONG_FORM = [
    pytest.param(what, seed, workers, ranks, marks=pytest.mark.trial)
    for seed in range(30)
    for what in WORK
    for workers, ranks in ((0, 1), (2, 1), (2, 2))
]


def files_of(shapes, folder):
    """Lists and a few videos."""
    folder.mkdir(parents=True)
    for split, count in (("train", 12), ("val", 6)):
        listed = (shapes / f"{split}.csv").read_text().splitlines()[:count]
        for number, line in enumerate(listed):
            shutil.copy(shapes / line.rsplit(" ", 1)[0], folder / f"{split}_{number}.mp4")
        lines = (f"{split}_{n}.mp4 {line.rsplit(' ', 1)[1]}\n" for n, line in enumerate(listed))
        (folder / f"{split}.csv").write_text("".join(lines))
    shutil.copy(shapes / "classes.txt", folder / "classes.txt")


def run_on(disk, name, what, *, workers, ranks):
    """The work, all of it on the disk; how it ended."""
    cfg, *overrides = WORK[what]
    overrides = [f"data.root={disk}/data", "init.weights=null", *SHORT, *overrides]
    overrides += ["train.batch_size=4", "train.val_every=1", "train.save_every=1"]
    overrides += [f"data.num_workers={workers}", "data.decode_timeout_s=3", "step_timeout_s=120"]
    command = ["tools/run_net.py", "--cfg", cfg, *overrides, f"output={disk}/{name}"]
    if ranks == 1:
        return Script(*command).wait(400)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, *launcher, *command]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="session")
def undisturbed(shapes, tmp_path_factory):
    """found(what, ranks): results on a disk without faults. No number of workers changes them."""

    @functools.cache
    def found(what, ranks):
        disk = tmp_path_factory.mktemp("whole")
        files_of(shapes, disk / "data")
        done = run_on(disk, "run", what, workers=0, ranks=ranks)
        assert done.returncode == 0, done.stderr[-3000:]
        return results(disk / "run")

    return found


@pytest.mark.parametrize("what, seed, workers, ranks", [*SHORT_FORM, *LONG_FORM])
def test_a_run_on_a_faulty_disk(
    shapes, tmp_path, undisturbed, record_property, what, seed, workers, ranks
):
    """Data and run folder lie on it. The run ends with the results of an undisturbed one, or stops
    with one line and does so when it is started again after the faults are gone.
    """
    whole = undisturbed(what, ranks)
    disk = tmp_path / "disk"
    mount = tmp_path / "mount"
    files_of(shapes, disk / "data")
    plan = seeded_faults(seed)
    record_property("faults", plan)
    with faulty_disk(disk, mount, plan) as change:
        done = run_on(mount, "run", what, workers=workers, ranks=ranks)
        outcome = "ended"
        if done.returncode:
            last = done.stderr.strip().splitlines()
            stopped = [line for line in last if line.startswith(("stopped: ", "error: "))]
            assert stopped, (plan, done.stderr[-3000:])
            if ranks == 1:  # torchrun has words and a status of its own
                assert "Traceback" not in done.stderr, (plan, done.stderr[-3000:])
                assert done.returncode in (2, 3), (plan, done.returncode)
            outcome = stopped[-1]
            change([])
            again = run_on(mount, "run", what, workers=workers, ranks=ranks)
            assert again.returncode == 0, (plan, done.stderr[-1000:], again.stderr[-3000:])
    record_property("outcome", outcome)
    assert results(disk / "run") == whole, plan
    assert not (disk / "run/quarantine.csv").exists(), plan


@pytest.mark.parametrize(
    ("what", "match", "ranks"),
    [
        ("finetune", "*report.html*", 1),
        ("features", "*/features/*", 1),
        pytest.param("features", "*/features/*", 2, marks=pytest.mark.trial),
    ],
)
def test_storage_that_fails_under_a_result_ends_a_run_in_one_line(
    shapes, tmp_path, what, match, ranks
):
    """And the same command goes on when it is back."""
    disk = tmp_path / "disk"
    mount = tmp_path / "mount"
    files_of(shapes, disk / "data")
    with faulty_disk(disk, mount, [{"on": "rename", "match": match, "error": "EIO"}]) as change:
        done = run_on(mount, "run", what, workers=0, ranks=ranks)
        said = [line for line in done.stderr.splitlines() if line.startswith("stopped: ")]
        assert said and all("storage failed" in line for line in said), done.stderr
        if ranks == 1:  # torchrun has words and a status of its own
            assert done.returncode == 3 and "Traceback" not in done.stderr
        change([])
        assert run_on(mount, "run", what, workers=0, ranks=ranks).returncode == 0


def results(folder):
    files = [*folder.glob("test/*.csv"), folder / "test/metrics.json"]
    files += folder.glob("features/*.safetensors")
    found = {str(f.relative_to(folder)): f.read_bytes() for f in files if f.exists()}
    return found | state(folder) | {"losses": [row["loss"] for row in rows(folder)]}

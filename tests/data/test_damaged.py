"""Damaged files by the hundred: nothing hangs, nothing crashes, every file is classified, memory
stays flat.
"""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from damage import damaged_files

from hiera_video.data.dataset import ClipDataset, Key
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import VideoList
from hiera_video.data.sampling import random_clip
from hiera_video.data.transforms import EvalCrops

STATUSES = {"ok", "damaged", "unreadable", "missing", "timeout", "crashed"}


def draw(count, fps, rng):
    return random_clip(count, fps, rng=rng)


def tree_mib():
    """Resident set of this process and all below it."""
    below = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        below.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    total = 0
    left = [os.getpid()]
    while left:
        pid = left.pop()
        left += below.get(pid, [])
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf(
                "SC_PAGE_SIZE"
            )
        except OSError:
            continue
    return total / 2**20


def read_all(files, decoder, *, timeout_s):
    """What became of each file, and the process tree's memory after each."""
    dataset = ClipDataset(
        VideoList([str(f) for f in files], [0] * len(files)),
        sample=draw,
        transform=EvalCrops(64, 64, 1),
        source=VideoSource(decoder, timeout_s=timeout_s),
    )
    fates = []
    memory = []
    for i in range(len(files)):
        sample = dataset[Key(0, i)]
        fates.append("clip" if "clip" in sample else sample["bad"][0][1])
        memory.append(tree_mib())
    dataset.source.close()
    return fates, memory


def check(files, folder, tool, *, slack_mib):
    lists = folder / "list.csv"
    lists.write_text("".join(f"{f.name}\n" for f in files))
    tool("tools/check_videos.py", lists, "--root", files[0].parent, "--timeout", "10")
    with open(folder / "list.manifest.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [r["path"] for r in rows] == [f.name for f in files]
    assert {r["status"] for r in rows} <= STATUSES
    whole = [f for f, r in zip(files, rows) if r["status"] == "ok"]
    for decoder in ("decord", "auto"):
        fates, memory = read_all(files, decoder, timeout_s=10)
        assert len(fates) == len(files) and all(fates)
        settled = memory[len(memory) // 10]
        print(
            f"{decoder}: {len(files)} files, {fates.count('clip')} clips, memory after a tenth "
            f"{settled:.0f} MiB, at the end "
            f"{memory[-1]:.0f} MiB, highest {max(memory):.0f} MiB"
        )
        if decoder == "decord":
            assert memory[-1] - settled <= slack_mib
        by_file = dict(zip(files, fates))
        assert [f.name for f in whole if by_file[f] != "clip"] == [], (
            "what decodes whole gives clips"
        )
    counts = {s: sum(r["status"] == s for r in rows) for s in sorted(STATUSES)}
    print(f"check_videos: {counts}")


def test_damaged_files(shapes, tmp_path, tool):
    sources = sorted(shapes.rglob("*.mp4"))[:3]
    check(damaged_files(sources, tmp_path, 36), tmp_path, tool, slack_mib=100)


@pytest.mark.trial
def test_500_damaged_files(clips, tmp_path, tool):
    sources = [
        f
        for f in clips.iterdir()
        if f.suffix in (".mp4", ".mkv", ".mov", ".avi") and "hangs" not in f.name
    ]
    files = damaged_files(sources, tmp_path, 500)
    files.append(Path(shutil.copy(clips / "hangs_decord.mp4", tmp_path)))
    check(files, tmp_path, tool, slack_mib=100)


def run_over(folder, files, out, tool, workers, monkeypatch, tmp_path):
    """Training and test over damaged files, good ones, and one that crashes its decoder."""
    crash = folder / "crash.mp4"
    (folder / "list.csv").write_text(
        "".join(f"{f.relative_to(folder)} {k % 2}\n" for k, f in enumerate([*files, crash]))
    )
    (tmp_path / "sitecustomize.py").write_text(
        "import ctypes, sys\n"
        "if 'hiera_video.data.decode.process' in ' '.join(sys.orig_argv):\n"
        "    import hiera_video.data.decode.readers as video\n"
        "    def trap(reader):\n"
        "        each = reader.each\n"
        "        def new(self, indices):\n"
        "            if self._path.endswith('crash.mp4'): ctypes.string_at(0)\n"
        "            return each(self, indices)\n"
        "        reader.each = new\n"
        "    trap(video.PyAVReader), trap(video.DecordReader)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    model = [
        "data.classes=null",
        "model.num_classes=2",
        "init.weights=null",
        "model.embed_dim=16",
        "model.stages=[1,1,1,1]",
    ]
    lists = [
        f"data.root={folder}",
        "data.train=list.csv",
        "data.val=list.csv",
        f"data.num_workers={workers}",
    ]
    run = [
        "train.epochs=1",
        "train.batch_size=4",
        "data.max_bad_fraction=1",
        "test.min_coverage=0.1",
        "data.decode_timeout_s=5",
        f"output={out}",
    ]
    tool(
        "tools/run_net.py",
        "--cfg",
        "tests/configs/finetune.yaml",
        "data.decoder=auto",
        *lists,
        *model,
        *run,
    )
    metrics = json.loads((out / "test/metrics.json").read_text())
    assert (
        metrics["videos"] + len(metrics["missing"]) == metrics["videos_expected"] == len(files) + 1
    )
    assert "crash.mp4" in metrics["missing"] and "crash.mp4" in (out / "quarantine.csv").read_text()
    return metrics


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.trial), 2])
def test_a_run_over_damaged_files(shapes, tmp_path, tool, workers, monkeypatch):
    folder = tmp_path / "videos"
    folder.mkdir()
    sources = sorted(shapes.rglob("*.mp4"))[:4]
    good = [Path(shutil.copy(s, folder)) for s in sources]
    shutil.copy(sources[0], folder / "crash.mp4")
    metrics = run_over(
        folder,
        good + damaged_files(sources, folder, 12),
        tmp_path / "run",
        tool,
        workers,
        monkeypatch,
        tmp_path,
    )
    assert metrics["videos"] >= 4


@pytest.mark.trial
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_40_damaged_real_files(clips, tmp_path, tool, workers, monkeypatch):
    folder = tmp_path / "videos"
    folder.mkdir()
    sources = [
        f
        for f in clips.iterdir()
        if f.suffix in (".mp4", ".mkv", ".mov", ".avi") and "hangs" not in f.name
    ]
    shutil.copy(clips / "dog.mp4", folder / "crash.mp4")
    files = [
        Path(shutil.copy(clips / "hangs_decord.mp4", folder)),
        *damaged_files(sources, folder, 40),
    ]
    metrics = run_over(folder, files, tmp_path / "run", tool, workers, monkeypatch, tmp_path)
    print(f"{workers} workers: {metrics['videos']} of {metrics['videos_expected']} scored")


@pytest.mark.trial
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_20000_opens(clips, decoder):
    """In one decoding process that is never renewed."""
    from hiera_video.data.decode.process import DecodeProcess

    process = DecodeProcess(timeout_s=60)
    names = ["dog.mp4", "part_0.mp4", "h264_10bits.mp4", "video_90.mov"]
    memory = {}
    for k in range(20_000):
        with process.open(clips / names[k % len(names)], decoder) as video:
            video.get(np.arange(2))
        if k + 1 in (2_000, 20_000):
            pid = process._child.pid
            memory[k + 1] = (
                int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                * os.sysconf("SC_PAGE_SIZE")
                / 2**20
            )
    process.close()
    print(
        f"{decoder}: {memory[2_000]:.1f} MiB after 2,000 opens, {memory[20_000]:.1f} after 20,000"
    )
    assert memory[20_000] - memory[2_000] < 20

"""Every tool starts and says how it is used; the small ones do their job."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from hiera_video.data.decode.readers import open_video
from hiera_video.stages.dry_run import compare

TOOLS = sorted(
    str(p.relative_to(ROOT))
    for folder in ("tools", "datasets")
    for p in (ROOT / folder).glob("*.py")
    if p.name != "door.py"
)


@pytest.mark.parametrize("path", TOOLS)
def test_help(tool, path):
    assert "usage:" in tool(path, "--help").stdout


def test_without_the_environment_it_says_so():
    bare = [sys.executable, "-S", "tools/run_net.py", "--cfg", "configs/K400/hiera_b_16x4.yaml"]
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "activate the environment" in done.stderr


def test_flops_tool(tool):
    out = tool("tools/count_flops.py", "hiera_base_16x224", "x3d_m").stdout
    assert "101.9" in out and "102" in out and "x3d_m" in out
    assert "there is no model" in tool("tools/count_flops.py", "hiera_x", check=2).stderr


def test_moving_shapes_are_repeatable_and_apart(tmp_path):
    import moving_shapes

    assert (moving_shapes.draw_video(3, 5) == moving_shapes.draw_video(3, 5)).all()
    assert (moving_shapes.draw_video(3, 5) != moving_shapes.draw_video(3, 1_000_005)).any()
    files = []
    for folder in ("one", "two"):
        moving_shapes.make_dataset(tmp_path / folder, train=40, val=8)
        files.append([f.read_bytes() for f in sorted((tmp_path / folder).rglob("*.*"))])
        for file in (tmp_path / folder).rglob(
            "*.mp4"
        ):  # it was what memory held that made the encoder give other bytes
            with open_video(file, "pyav") as video:
                video.get([0, 1])
    assert files[0] == files[1]
    # How much is dark, the inside of the mouth, follows the word's poses in their order.
    for label, word in enumerate(moving_shapes.CLASSES):
        dark = np.zeros(3)
        for seed in range(24):
            grey = moving_shapes.draw_video(label, seed)[[8, 13, 18]].mean(3)
            dark += (grey < 0.6 * np.median(grey, (1, 2), keepdims=True)).mean((1, 2))
        areas = [np.prod(moving_shapes.POSES[pose]) for pose in word.split()]
        assert (np.argsort(dark) == np.argsort(areas)).all(), word
    moving_shapes.make_dataset(tmp_path / "a", train=8, val=8)
    lists = [(tmp_path / f"a/{split}.csv").read_text().splitlines() for split in ("train", "val")]
    assert [len(rows) for rows in lists] == [8, 8] and sorted(
        int(r.split()[-1]) for r in lists[0]
    ) == list(range(8))
    moving_shapes.make_dataset(tmp_path / "a", train=8, val=8)
    (tmp_path / "a/classes.txt").write_text("disc\nsquare\n")
    with pytest.raises(SystemExit, match="2"):
        moving_shapes.make_dataset(tmp_path / "a", train=8, val=8)


def test_make_lists_keeps_what_is_there(tmp_path, tool):
    for name in ("a/1.mp4", "a/2.mp4", "b/3.avi", "b/4.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    tool("datasets/make_lists.py", tmp_path)
    rows = (tmp_path / "train.csv").read_text() + (tmp_path / "val.csv").read_text()
    assert sorted(rows.splitlines()) == ["a/1.mp4 0", "a/2.mp4 0", "b/3.avi 1", "b/4.avi 1"]
    assert "--force" in tool("datasets/make_lists.py", tmp_path, check=2).stderr
    (tmp_path / "c").mkdir()
    assert "no video" in tool("datasets/make_lists.py", tmp_path, "--force", check=2).stderr


@pytest.mark.parametrize("split, shape", [("train", (4, 2)), ("test", (4, 3))])
def test_show_clip(shapes, tmp_path, tool, split, shape):
    """Not a blank sheet: every row has colours, and the rows of one video differ."""
    views = [
        "train.repeats=2",
        "test.clips=1",
        "test.crops=3",
        "test.short_side=72",
        "data.erase=1",
    ]
    out = tmp_path / "batch.png"
    args = ("--output", out, "--split", split, f"data.root={shapes}", *views)
    done = tool("tools/show_clip.py", "--cfg", "tests/configs/finetune.yaml", *args)
    assert f"{shape[0]} videos x {shape[1]} views" in done.stdout
    sheet = np.asarray(Image.open(out).convert("RGB")).astype(int)
    rows = np.split(sheet, shape[0] * shape[1])
    assert all(row[16:].std() > 10 for row in rows)
    assert (rows[0] != rows[1]).any() and not list(ROOT.glob("runs/finetune*"))


def test_data_benchmarks(shapes, tmp_path, tool):
    """The figures are there and make sense; how large they are is for docs/benchmarks.md."""
    pytest.importorskip("decord")
    run = (
        sorted(shapes.rglob("*.mp4"))[0],
        "--rounds",
        "1",
        "--pairs",
        "1",
        "--json",
        tmp_path / "out.json",
    )
    out = tool("tools/benchmark.py", "loader", "--step-ms", "100", *run).stdout
    assert "PyTorchVideo, decord" in out and "plain decord" in out and "workers" in out
    found = json.loads((tmp_path / "out.json").read_text())
    assert 0 < found["codec_share"] < 10 and found["one_clip_ms"]["ours, auto"] > 0
    tool("tools/benchmark.py", "views", *run)
    assert 0 < json.loads((tmp_path / "out.json").read_text())["ratio"] < 1
    assert "no video" in tool("tools/benchmark.py", "loader", "/gone.mp4", check=2).stderr


def test_a_dry_run_warns_of_what_the_machine_lacks(capsys):
    compare(3.0, 0.0625, "shared memory", "lower data.prefetch_gib")
    compare(3.0, None, "shared memory", "lower data.prefetch_gib")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.strip() == (
        "WARNING: shared memory has 0.1 GiB free, less than 3.0: lower data.prefetch_gib"
    )


def test_dry_run(shapes, tmp_path, tool):
    """It says what a run would do and cost, and leaves nothing."""
    common = [
        f"data.root={shapes}",
        "init.weights=null",
        "model.embed_dim=16",
        "model.stages=[1,1,1,1]",
    ]
    args = [
        "--cfg",
        "tests/configs/finetune.yaml",
        *common,
        f"output={tmp_path / 'run'}",
        "optim.reference_batch=64",
    ]
    out = tool("tools/run_net.py", *args, "--dry-run", "--ranks", "2").stdout
    for text in (
        "32 videos, labels 0 to 7",
        "20 steps of 16 videos x 1 clips over 2 rank(s)",
        "GiB a rank",
        "whole run",
    ):
        assert text in out, text
    assert "is not the recipe's 64" in out and "32 of 32 files looked for are there" in out
    assert "worker(s) a rank hold up to" in out and "shared memory, for 1 rank(s), has" in out
    assert "WARNING: shared memory" not in out
    assert not (tmp_path / "run").exists()
    assert (
        "does not divide by 3 ranks"
        in tool("tools/run_net.py", *args, "--dry-run", "--ranks", "3", check=2).stderr
    )
